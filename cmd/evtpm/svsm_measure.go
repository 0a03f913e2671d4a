package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
	"github.com/evtpm/evtpm/svsmimg"
)

func svsmMeasureCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name: "measure", Usage: "compute the launch digest of an image on a kind of host",
		ArgsUsage: "FILE",
		Description: "The digest is printed in lower-case hexadecimal, alone on standard output; the host profile that it is for on standard\n" +
			"error. -o json prints golden values. An image with an ID block that is not that of the launch ends with code 6.\n\n" +
			"FILE may also be an svsm.bin, which is launched together with an OVMF: --ovmf, --vars-size and a CPU model are needed then.",
		Flags: append(svsmLaunchFlags(), outputFlag(),
			&cli.BoolFlag{Name: "trace", Usage: "print every launch step as a line of JSON instead of the digest"},
			&cli.StringFlag{Name: "map", Usage: "draw guest memory at launch as SVG into `FILE`"},
			&cli.BoolFlag{Name: "ignore-id-block", Usage: "do not hold the digest against the image's ID block"},
			&cli.StringFlag{Name: "ovmf", Usage: "firmware `FILE` of an svsm.bin"},
			&cli.StringFlag{Name: "vars-size", Usage: "size in bytes of the variable store between an svsm.bin and its firmware"}),
		Action: func(c *cli.Context) error { return u.svsmMeasure(c) },
	}
}

// svsmProfileBin is the host profile of svsm.bin launches: COCONUT's hosts of
// early 2024.
const svsmProfileBin = "coconut-svsm-bin"

func (u *ui) svsmMeasure(c *cli.Context) error {
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	name, err := oneArg(c, "an IGVM file, or an svsm.bin")
	if err != nil {
		return err
	}
	data, err := u.readInput(name, inputfile.MaxImage)
	if err != nil {
		return err
	}
	golden := &measure.Golden{Schema: measure.GoldenSchema, Platform: "snp"}
	var seq *measure.Sequence
	f, err := svsmimg.Parse(data)
	switch {
	case errors.Is(err, svsmimg.ErrNotIGVM) && c.String("ovmf") != "":
		golden.HostProfile = svsmProfileBin
		seq, err = u.svsmBinSequence(c, data)
	case errors.Is(err, svsmimg.ErrNotIGVM):
		if _, binErr := svsmimg.ParseSVSMBin(data); binErr == nil {
			err = errors.New("found an svsm.bin, which is launched together with a firmware: --ovmf is missing")
		}
	case err == nil:
		seq, err = svsmGolden(c, f, golden)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	u.say("host profile: %s", golden.HostProfile)
	if golden.HostProfile == string(svsmimg.ProfileFile) {
		for _, why := range f.DifferentFromIgvmmeasure() {
			u.warn("igvmmeasure prints another digest: %s", why)
		}
	}
	if svg := c.String("map"); svg != "" {
		if err := writeFile(svg, seq.WriteMap); err != nil {
			return err
		}
	}
	if c.Bool("trace") {
		return seq.WriteTrace(u.out)
	}
	digest, err := seq.LaunchDigest()
	if err != nil {
		return err
	}
	golden.LaunchDigests = []measure.Digest{digest}
	if asJSON {
		doc, err := golden.Encode()
		if err != nil {
			return err
		}
		if _, err := u.out.Write(doc); err != nil {
			return err
		}
	} else {
		u.data("%s", digest)
	}
	if f == nil || c.Bool("ignore-id-block") {
		return nil
	}
	if b := f.IDBlock(); b != nil && b.LaunchDigest != digest {
		return withClass(attest.ClassMeasurement, fmt.Errorf("%s: ID block is for launch digest %s: the AMD-SP would refuse this launch (--ignore-id-block)", name, b.LaunchDigest))
	}
	return nil
}

// svsmGolden fills in what an image's launch must show, besides the digest.
func svsmGolden(c *cli.Context, f *svsmimg.File, g *measure.Golden) (*measure.Sequence, error) {
	o, err := svsmLaunch(c, f)
	if err != nil {
		return nil, err
	}
	g.HostProfile = string(o.Profile)
	g.Policy, _ = f.Policy(svsmimg.PlatformSNP)
	if b := f.IDBlock(); b != nil {
		auth, err := b.Auth()
		if err != nil {
			return nil, err
		}
		if g.IDBlock, err = auth.Golden(b.Block(g.Policy)); err != nil {
			return nil, err
		}
	}
	return f.Sequence(o)
}

// svsmBinSequence is the launch of an svsm.bin.
func (u *ui) svsmBinSequence(c *cli.Context, data []byte) (*measure.Sequence, error) {
	svsm, err := svsmimg.ParseSVSMBin(data)
	if err != nil {
		return nil, err
	}
	firmware, err := inputfile.Read(c.String("ovmf"), inputfile.MaxFirmware)
	if err != nil {
		return nil, err
	}
	img, err := ovmf.Parse(firmware)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.String("ovmf"), err)
	}
	o := ovmf.SVSMOptions{VCPUs: 1}
	if c.IsSet("vars-size") {
		vars, err := decimal(c, "vars-size")
		if err != nil {
			return nil, err
		}
		o.VarsSize = int64(vars)
	}
	if c.IsSet("vcpus") {
		if o.VCPUs, err = decimal(c, "vcpus"); err != nil {
			return nil, err
		}
	}
	if o.CPUSignature, err = svsmSignature(c); err != nil {
		return nil, err
	}
	if o.CPUSignature == 0 {
		return nil, errors.New("--vcpu-type: expected a CPU model, whose signature is measured")
	}
	return svsmimg.SVSMBinSequence(svsm, img, o)
}
