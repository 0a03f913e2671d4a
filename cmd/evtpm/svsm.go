package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/svsmimg"
)

func svsmCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:  "svsm",
		Usage: "look into SVSM images (IGVM files), check, measure, build and sign them",
		Subcommands: []*cli.Command{
			svsmInspectCommand(u),
			svsmLintCommand(u),
			svsmMeasureCommand(u),
			svsmDiffCommand(u),
			svsmBuildCommand(u),
			svsmSignCommand(u),
			svsmVerifyCommand(u),
			svsmExtractCommand(u),
		},
	}
}

// svsmLaunchFlags say how an image is launched.
func svsmLaunchFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "host-profile", Usage: "how the host measures vCPUs: kvm (upstream), kvm-bsp, kvm-direct, or file (what the file says, as igvmmeasure). Default: what the image was made for"},
		&cli.StringFlag{Name: "vcpus", Usage: "number of vCPUs; part of the digest on host profile kvm. Default: as many as the image has contexts for"},
		&cli.StringFlag{Name: "vcpu-type", Usage: "CPU model of QEMU, for vCPUs that the image has no context for"},
		&cli.StringFlag{Name: "vcpu-sig", Usage: "CPUID 1.EAX of the vCPUs, instead of --vcpu-type"},
		&cli.StringFlag{Name: "order", Usage: "qemu, or file: the order in which headers become launch steps. Default: file on host profile file, else qemu"},
		&cli.BoolFlag{Name: "native-zero", Usage: "measure pages without data with the AMD-SP's own type for zeros, as Vanadium and igvmmeasure -n do; QEMU does not"},
	}
}

// svsmLaunch reads svsmLaunchFlags for an image, whose profile it fills in.
func svsmLaunch(c *cli.Context, f *svsmimg.File) (svsmimg.SequenceOptions, error) {
	o := svsmimg.SequenceOptions{NativeZero: c.Bool("native-zero"), Order: svsmimg.Order(c.String("order"))}
	var err error
	if c.IsSet("vcpus") {
		if o.VCPUs, err = decimal(c, "vcpus"); err != nil {
			return o, err
		}
		if o.VCPUs < 1 {
			return o, fmt.Errorf("--vcpus: found %d, expected 1 or more", o.VCPUs)
		}
	}
	switch name := c.String("host-profile"); {
	case name != "":
		if o.Profile, err = svsmimg.ParseProfile(name); err != nil {
			return o, fmt.Errorf("--host-profile: %w", err)
		}
	case f != nil:
		o.Profile = f.InferProfile()
	}
	o.CPUSignature, err = svsmSignature(c)
	return o, err
}

// svsmSignature reads the CPU model's signature; zero is none given.
func svsmSignature(c *cli.Context) (uint32, error) {
	switch {
	case c.IsSet("vcpu-sig") && c.IsSet("vcpu-type"):
		return 0, errors.New("--vcpu-sig: found beside --vcpu-type, expected one of them")
	case c.IsSet("vcpu-sig"):
		n, err := parseNumber("vcpu-sig", c.String("vcpu-sig"), 32)
		return uint32(n), err
	case c.IsSet("vcpu-type"):
		return cpuSignature(c.String("vcpu-type"))
	}
	return 0, nil
}

// readImage reads and parses an IGVM file.
func (u *ui) readImage(name string) (*svsmimg.File, error) {
	data, err := u.readInput(name, inputfile.MaxImage)
	if err != nil {
		return nil, err
	}
	f, err := svsmimg.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return f, nil
}

// imageArg reads the image that is a command's only argument.
func (u *ui) imageArg(c *cli.Context) (string, *svsmimg.File, error) {
	name, err := oneArg(c, "an IGVM file")
	if err != nil {
		return "", nil, err
	}
	f, err := u.readImage(name)
	return name, f, err
}

func svsmExtractCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name: "extract", Usage: "take the firmware out of an image, as a file for QEMU's -bios",
		ArgsUsage: "FILE",
		Description: "What the simulated platform runs of an image: machines without SEV-SNP have no VMPL for an SVSM. The file is the\n" +
			"firmware, with zeros before it where its size is not a multiple of 64 KiB, as QEMU wants it.",
		Flags: []cli.Flag{outFlag("write the firmware to `FILE`")},
		Action: func(c *cli.Context) error {
			if _, err := needed(c, "out", "where the firmware goes"); err != nil {
				return err
			}
			name, f, err := u.imageArg(c)
			if err != nil {
				return err
			}
			e, err := f.Extract()
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			u.say("firmware: %d bytes at %#x", len(e.Firmware), 1<<32-len(e.Firmware))
			return writeOut(c, e.BIOS())
		},
	}
}

// outFlag is the flag of commands that write a file.
func outFlag(usage string) cli.Flag {
	return &cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: usage}
}

// writeOut writes the file of outFlag.
func writeOut(c *cli.Context, data []byte) error {
	return writeFile(c.String("out"), func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

func svsmDiffCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name: "diff", Usage: "compare two images: first differing launch step, regions, registers, settings",
		ArgsUsage:   "A B",
		Description: "Both are launched in the same way. Exit codes: 0 nothing differs, 6 something does.",
		Flags:       append(svsmLaunchFlags(), outputFlag()),
		Action:      func(c *cli.Context) error { return u.svsmDiff(c) },
	}
}

func (u *ui) svsmDiff(c *cli.Context) error {
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	if c.NArg() != 2 {
		return fmt.Errorf("%s: found %s, expected two: A B", c.Command.HelpName, arguments(c.NArg()))
	}
	var images [2]*svsmimg.File
	var sides [2]*launchSide
	for i := range sides {
		name := c.Args().Get(i)
		if images[i], err = u.readImage(name); err != nil {
			return err
		}
		o, err := svsmLaunch(c, images[i])
		if err != nil {
			return err
		}
		seq, err := images[i].Sequence(o)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if sides[i], err = sideOf(name, seq); err != nil {
			return err
		}
		u.say("%s: host profile %s", name, o.Profile)
	}
	doc := diffLaunches(sides[0], sides[1])
	doc.Schema = "evtpm.diff/v1"
	for _, s := range svsmimg.DiffSettings(images[0], images[1]) {
		doc.Same = false
		doc.Fields = append(doc.Fields, fieldDiff{s.Name, settingText(s.A), settingText(s.B)})
	}
	if asJSON {
		err = u.json(doc)
	} else {
		for _, line := range doc.lines() {
			u.data("%s", line)
		}
	}
	if err == nil && !doc.Same {
		err = errSilent(attest.ClassMeasurement)
	}
	return err
}

// settingText is a setting as JSON; null where there is none.
func settingText(s string) []byte {
	if s == "" {
		return []byte("null")
	}
	return fmt.Appendf(nil, "%q", s)
}
