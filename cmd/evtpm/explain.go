package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/explain"
	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

func explainCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "explain",
		Usage:     "say which input of a launch differs from the expected one",
		ArgsUsage: "[SPEC]",
		Description: "The expected launch is a SPEC, or flags as measure takes them. What was launched is a report or a launch digest.\n" +
			"Parameters of the expected launch are varied until one variant has the digest: vCPU counts, CPU models, guest\n" +
			"features, what becomes of command lines, and the files given with --try-ovmf, --try-kernel and --try-initrd.\n\n" +
			"Exit codes: 0 nothing differs, 5 fields of the report differ, 6 the launch digest differs.",
		Flags: append(launchFlags(),
			outputFlag(),
			&cli.StringFlag{Name: "report", Usage: "attestation report in `FILE`, in any form that evtpm report takes"},
			&cli.StringFlag{Name: "digest", Usage: "launch digest in `HEX`"},
			&cli.StringFlag{Name: "golden", Usage: "golden values in `FILE`, of one launch digest"},
			&cli.StringSliceFlag{Name: "try-ovmf", Usage: "firmware `FILE` that may have been launched; may be repeated"},
			&cli.StringSliceFlag{Name: "try-kernel", Usage: "kernel `FILE` that may have been launched; may be repeated"},
			&cli.StringSliceFlag{Name: "try-initrd", Usage: "initrd `FILE` that may have been launched; may be repeated"},
			&cli.StringSliceFlag{Name: "try-append", Usage: "kernel command `LINE` that may have been given; may be repeated"},
			&cli.DurationFlag{Name: "timeout", Value: time.Minute, Usage: "stop looking after `TIME`"},
		),
		Action: func(c *cli.Context) error { return u.explain(c) },
	}
}

// explainDocument is what -o json prints.
type explainDocument struct {
	Schema       string           `json:"schema"`
	HostProfile  string           `json:"host_profile"`
	LaunchDigest measure.HexBytes `json:"launch_digest"`
	*explain.Result

	// Fields are differences of a report, or of golden values, besides the launch
	// digest.
	Fields []explain.Difference `json:"fields,omitempty"`
}

func (u *ui) explain(c *cli.Context) error {
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	l, err := u.readLaunch(c)
	if err != nil {
		return err
	}
	defer l.close()
	image := l.plan != nil && l.plan.SVSMImage != nil
	if l.svsm != nil || l.mode == modeOVMFHash || l.Firmware == nil && !image {
		return errors.New("explain: expected a launch of OVMF, or a spec with an SVSM image")
	}
	found, err := u.found(c)
	if err != nil {
		return err
	}
	candidates, err := tries(c, l, found)
	if err != nil {
		return err
	}
	d, err := timeLimit(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context, d)
	defer cancel()
	start := time.Now()
	var result *explain.Result
	if image {
		result, err = explainSVSM(ctx, l, found.digest)
	} else {
		show, end := u.progress()
		candidates.Progress = func(tried, all int) {
			show(fmt.Sprintf("trying variants: %d %% of %d combinations; Ctrl-C ends it", 100*tried/all, all))
		}
		result, err = explain.Digest(ctx, l.Launch, found.digest, candidates)
		end()
	}
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("interrupted after %v: no match among the first %d variants", time.Since(start).Round(time.Millisecond), result.Tried)
	case errors.Is(err, context.DeadlineExceeded):
		return withClass(attest.ClassTimeout, fmt.Errorf("no end within %v: no match among the first %d variants; --timeout gives it longer", d, result.Tried))
	case err != nil:
		return err
	}
	u.say("host profile: %s", l.profileText())
	u.say("%d variants compared in %v", result.Tried, time.Since(start).Round(time.Millisecond))
	doc := explainDocument{Schema: "evtpm.explain/v1", HostProfile: l.profile(), LaunchDigest: found.digest, Result: result}
	if found.fields != nil {
		doc.Fields = l.compareFields(c, found.fields)
	}
	if asJSON {
		if err := u.json(doc); err != nil {
			return err
		}
	} else {
		for _, line := range doc.lines() {
			u.data("%s", line)
		}
	}
	switch {
	case !result.Matched || len(result.Differences) > 0:
		return errSilent(attest.ClassMeasurement)
	case len(doc.Fields) > 0:
		return errSilent(attest.ClassPolicy)
	}
	return nil
}

// lines say the result in words.
func (d *explainDocument) lines() []string {
	var out []string
	switch {
	case d.Matched && len(d.Differences) == 0:
		out = append(out, "matches")
	case d.Matched:
		out = append(out, "matches with "+joinPhrases(d.Differences))
	default:
		first := d.Unexplained[0]
		out = append(out, fmt.Sprintf("no variant matches; the first region that cannot be explained: %s at %#x (tried %s)", first.Name, first.GPA, first.Tried))
		for _, r := range d.Unexplained[1:] {
			out = append(out, fmt.Sprintf("then: %s at %#x (tried %s)", r.Name, r.GPA, r.Tried))
		}
	}
	for _, f := range d.Fields {
		out = append(out, "besides the launch digest: "+f.Text)
	}
	return out
}

func joinPhrases(diffs []explain.Difference) string {
	var out []string
	for _, d := range diffs {
		out = append(out, d.Text)
	}
	if n := len(out); n > 1 {
		return strings.Join(out[:n-1], ", ") + " and " + out[n-1]
	}
	return out[0]
}

// foundLaunch is what was launched, as far as it is known.
type foundLaunch struct {
	digest []byte
	fields *explain.Fields // nil of a bare digest
	cpuid  *attest.CPUID   // of the host; nil where no report says it
	inputs []measure.GoldenInput
}

// found reads what was launched.
func (u *ui) found(c *cli.Context) (*foundLaunch, error) {
	report, digest, golden := c.String("report"), c.String("digest"), c.String("golden")
	given := 0
	for _, s := range []string{report, digest, golden} {
		if s != "" {
			given++
		}
	}
	switch {
	case given != 1:
		return nil, errors.New("explain: expected --report, --digest or --golden, and one of them")
	case digest != "":
		data, err := hex.DecodeString(strings.TrimSpace(digest))
		if err != nil {
			return nil, fmt.Errorf("--digest: %w", err)
		}
		return &foundLaunch{digest: data}, nil
	case golden != "":
		return foundGolden(golden)
	}
	return u.foundReport(report)
}

func (u *ui) foundReport(name string) (*foundLaunch, error) {
	data, err := u.readInput(name, attest.MaxReportFile)
	if err != nil {
		return nil, err
	}
	raw, _, err := attest.SplitReport(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	r, err := attest.ParseReport(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &foundLaunch{digest: r.Measurement[:], cpuid: r.CPUID, fields: &explain.Fields{
		Policy: uint64(r.Policy), HostData: r.HostData, FamilyID: r.FamilyID, ImageID: r.ImageID,
		GuestSVN: r.GuestSVN, IDKeyDigest: r.IDKeyDigest, AuthorKeyDigest: r.AuthorKeyDigest,
	}}, nil
}

func foundGolden(name string) (*foundLaunch, error) {
	g, err := readGolden(name)
	if err != nil {
		return nil, err
	}
	if n := len(g.LaunchDigests); n != 1 {
		return nil, fmt.Errorf("%s: found %d launch digests, expected one", name, n)
	}
	f := &explain.Fields{Policy: g.Policy}
	copy(f.HostData[:], g.HostData)
	if b := g.IDBlock; b != nil {
		copy(f.FamilyID[:], b.FamilyID)
		copy(f.ImageID[:], b.ImageID)
		f.GuestSVN, f.IDKeyDigest = b.GuestSVN, b.IDKeyDigest
		if b.AuthorKeyDigest != nil {
			f.AuthorKeyDigest = *b.AuthorKeyDigest
		}
	}
	return &foundLaunch{digest: g.LaunchDigests[0][:], fields: f, inputs: g.Inputs}, nil
}

// tries reads the candidates: files and lines that flags name, and what golden
// values say that they derive from.
func tries(c *cli.Context, l *launchInput, found *foundLaunch) (explain.Candidates, error) {
	out := explain.Candidates{Cmdlines: c.StringSlice("try-append")}
	for _, in := range found.inputs {
		switch {
		case in.Name == "cmdline":
			out.Cmdlines = append(out.Cmdlines, in.Value)
		case (in.Name == "kernel" || in.Name == "initrd") && len(in.SHA256) == sha256.Size:
			file := explain.File{Name: fmt.Sprintf("with SHA-256 %s", in.SHA256), SHA256: [sha256.Size]byte(in.SHA256)}
			if in.Value != "" {
				file.Name = in.Value
			}
			if in.Name == "kernel" {
				out.Kernels = append(out.Kernels, file)
			} else {
				out.Initrds = append(out.Initrds, file)
			}
		}
	}
	for _, name := range c.StringSlice("try-ovmf") {
		img, err := scanFirmware(name, l.Options.Mode)
		if err != nil {
			return out, err
		}
		out.Firmwares = append(out.Firmwares, explain.Firmware{Name: name, Image: img})
	}
	for _, f := range []struct {
		flag  string
		limit int64
		into  *[]explain.File
	}{{"try-kernel", inputfile.MaxKernel, &out.Kernels}, {"try-initrd", inputfile.MaxInitrd, &out.Initrds}} {
		for _, name := range c.StringSlice(f.flag) {
			sum, err := inputfile.SHA256(name, f.limit)
			if err != nil {
				return out, err
			}
			*f.into = append(*f.into, explain.File{Name: name, SHA256: sum})
		}
	}
	if l.Boot == nil {
		out.Boots = boots(c, out)
	}
	if id := found.cpuid; id != nil {
		if sig, err := measure.SignatureOf(int(id.Family), int(id.Model), int(id.Stepping)); err == nil {
			out.Signatures = append(out.Signatures, explain.Signature{Name: fmt.Sprintf("host (%#x in the report)", sig), Value: sig})
		}
	}
	return out, nil
}

// boots combines the candidates of a direct boot where none is expected.
func boots(c *cli.Context, candidates explain.Candidates) []explain.Boot {
	var out []explain.Boot
	cmdlines := append([]string{c.String("append")}, candidates.Cmdlines...)
	initrds := append([]explain.File{{SHA256: measure.NoInitrd}}, candidates.Initrds...)
	for _, k := range candidates.Kernels {
		for _, i := range initrds {
			for _, line := range cmdlines {
				out = append(out, explain.Boot{Kernel: k.SHA256, KernelName: k.Name, Initrd: i.SHA256, InitrdName: i.Name, Cmdline: line})
			}
		}
	}
	return out
}

// scanFirmware reads a candidate firmware: its contents only where a digest
// cannot do without them.
func scanFirmware(name string, mode measure.Mode) (*ovmf.Image, error) {
	f, size, err := inputfile.Open(name, inputfile.MaxFirmware)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var img *ovmf.Image
	if mode == measure.ModeSNP {
		img, err = ovmf.Scan(f, size)
	} else {
		data := make([]byte, size)
		if _, err = io.ReadFull(f, data); err == nil {
			img, err = ovmf.Parse(data)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return img, nil
}

// compareFields compares what was found besides the launch digest with what is
// expected. Flags alone expect nothing but the policy.
func (l *launchInput) compareFields(c *cli.Context, f *explain.Fields) []explain.Difference {
	switch {
	case l.plan != nil:
		return explain.Compare(l.plan.Golden, f)
	case c.IsSet("policy"):
		return explain.Compare(&measure.Golden{Policy: l.policy}, &explain.Fields{Policy: f.Policy})
	}
	return nil
}
