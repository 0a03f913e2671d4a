package main

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/measure"
)

func measureCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "measure",
		Usage:     "compute the launch digest of a spec, or of parameters given as sev-snp-measure takes them",
		ArgsUsage: "[SPEC]",
		Description: "With a SPEC, or with flags alone. The flags of sev-snp-measure mean what they mean there, and the digest is printed as it\n" +
			"prints it: lower-case hexadecimal, alone on standard output. -o json prints golden values.\n\n" +
			"--matrix prints the digest of every combination: --matrix vcpus=1..512,cpu=all,guest-features=0x1,0x21,kernel-hashes=on,off",
		Flags: append(launchFlags(),
			&cli.StringFlag{Name: "output-format", Aliases: []string{"output", "o"}, Value: "hex", Usage: "hex, base64 (of the 48 bytes) or json (golden values)"},
			&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "say on standard output what the digest is of, as sev-snp-measure does"},
			&cli.BoolFlag{Name: "dump-vmsa", Usage: "write the measured save areas to vmsa<N>.bin"},
			&cli.BoolFlag{Name: "trace", Usage: "print every launch step as a line of JSON instead of the digest"},
			&cli.StringFlag{Name: "map", Usage: "draw guest memory at launch as SVG into `FILE`"},
			&cli.StringFlag{Name: "matrix", Usage: "print the digests of all combinations of `AXES`"},
			&cli.StringFlag{Name: "platform", Value: "snp", Usage: "platform of the golden values: snp or sim"},
		),
		Action: func(c *cli.Context) error { return u.measure(c) },
	}
}

func (u *ui) measure(c *cli.Context) error {
	if f := c.String("output-format"); f != "hex" && f != "base64" && f != "json" {
		return fmt.Errorf("--output-format: found %q, expected hex, base64 or json", f)
	}
	l, err := u.readLaunch(c)
	if err != nil {
		return err
	}
	defer l.close()
	switch {
	case l.mode == modeOVMFHash:
		return u.measureOVMFHash(c, l)
	case c.IsSet("matrix"):
		return u.measureMatrix(c, l)
	}
	seq, err := l.sequence()
	if err != nil {
		return err
	}
	if c.Bool("dump-vmsa") {
		if err := dumpVMSAs(seq); err != nil {
			return err
		}
	}
	if name := c.String("map"); name != "" {
		if err := writeFile(name, seq.WriteMap); err != nil {
			return err
		}
	}
	u.say("host profile: %s", l.profileText())
	if c.Bool("trace") {
		return seq.WriteTrace(u.out)
	}
	if c.String("output-format") == "json" {
		return u.measureJSON(l, seq)
	}
	digest, err := foldAny(seq)
	if err != nil {
		return err
	}
	text := hex.EncodeToString(digest)
	if c.String("output-format") == "base64" {
		text = base64.StdEncoding.EncodeToString(digest)
	}
	if c.Bool("verbose") {
		text = fmt.Sprintf("Calculated %s guest measurement: %s", l.verboseMode(), text)
	}
	u.data("%s", text)
	return nil
}

// foldAny is the launch digest in the length of its mode.
func foldAny(seq *measure.Sequence) ([]byte, error) {
	if seq.Mode == measure.ModeSEV || seq.Mode == measure.ModeSEVES {
		d, err := seq.SEVDigest()
		return d[:], err
	}
	d, err := seq.LaunchDigest()
	return d[:], err
}

// sevDigestDocument is what -o json prints for SEV and SEV-ES, whose digests no
// report carries.
type sevDigestDocument struct {
	Schema       string           `json:"schema"`
	Mode         measure.Mode     `json:"mode"`
	HostProfile  string           `json:"host_profile"`
	LaunchDigest measure.HexBytes `json:"launch_digest"`
}

func (u *ui) measureJSON(l *launchInput, seq *measure.Sequence) error {
	if seq.Mode == measure.ModeSEV || seq.Mode == measure.ModeSEVES {
		d, err := seq.SEVDigest()
		if err != nil {
			return err
		}
		return u.json(sevDigestDocument{"evtpm.sev-digest/v1", seq.Mode, l.profile(), d[:]})
	}
	golden, err := l.golden(seq)
	if err != nil {
		return err
	}
	doc, err := golden.Encode()
	if err != nil {
		return err
	}
	_, err = u.out.Write(doc)
	return err
}

// measureOVMFHash prints the digest of the firmware's pages alone, or with -o
// json the firmware's hash and metadata.
func (u *ui) measureOVMFHash(c *cli.Context, l *launchInput) error {
	if c.String("output-format") == "json" {
		p, err := l.Firmware.Precomputed()
		if err != nil {
			return err
		}
		doc, err := p.Encode()
		if err != nil {
			return err
		}
		_, err = u.out.Write(doc)
		return err
	}
	hash, err := l.Firmware.Hash()
	if err != nil {
		return err
	}
	u.data("%s", hash)
	return nil
}

// dumpVMSAs writes each save area to a file, named as sev-snp-measure names them.
func dumpVMSAs(seq *measure.Sequence) error {
	if len(seq.VMSAs) == 0 {
		return errors.New("--dump-vmsa: found no save areas: mode sev measures none")
	}
	for i := range seq.VMSAs {
		if err := os.WriteFile(fmt.Sprintf("vmsa%d.bin", i), seq.VMSAs[i].Data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeFile writes a file by way of a function.
func writeFile(name string, write func(io.Writer) error) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
