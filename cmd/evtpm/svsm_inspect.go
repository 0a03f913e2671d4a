package main

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/svsmimg"
)

func svsmInspectCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name: "inspect", Usage: "show platforms, policy, memory by region, save areas, ID block, firmware; what is measured and what is not",
		ArgsUsage:   "FILE",
		Description: "FILE may also be an svsm.bin, the older kind of image: evtpm svsm measure --ovmf says how it is launched with a firmware.",
		Flags: append(svsmLaunchFlags(), outputFlag(),
			&cli.StringFlag{Name: "map", Usage: "draw guest memory at launch as SVG into `FILE`"}),
		Action: func(c *cli.Context) error { return u.svsmInspect(c) },
	}
}

func (u *ui) svsmInspect(c *cli.Context) error {
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	name, err := oneArg(c, "an IGVM file")
	if err != nil {
		return err
	}
	data, err := u.readInput(name, inputfile.MaxImage)
	if err != nil {
		return err
	}
	f, err := svsmimg.Parse(data)
	if errors.Is(err, svsmimg.ErrNotIGVM) {
		if bin, binErr := svsmimg.ParseSVSMBin(data); binErr == nil {
			return u.svsmBin(c, bin.Inspect(), asJSON)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if svg := c.String("map"); svg != "" {
		o, err := svsmLaunch(c, f)
		if err != nil {
			return err
		}
		seq, err := f.Sequence(o)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		u.say("host profile: %s", o.Profile)
		if err := writeFile(svg, seq.WriteMap); err != nil {
			return err
		}
	}
	info := f.Inspect()
	if asJSON {
		return u.json(info)
	}
	_, err = u.out.Write(svsmText(info))
	return err
}

// svsmBin shows what is in an svsm.bin.
func (u *ui) svsmBin(c *cli.Context, info *svsmimg.BinInfo, asJSON bool) error {
	if c.IsSet("map") {
		return errors.New("--map: found an svsm.bin, which has no addresses without its firmware: evtpm svsm measure --ovmf --map")
	}
	if asJSON {
		return u.json(info)
	}
	u.data("svsm.bin, %d bytes, starts at offset %s", info.Bytes, info.Entry)
	for _, t := range info.Table {
		u.data("  table entry: %s", t)
	}
	for _, s := range info.Sections {
		u.data("  %-10s %#8x  %s", s.GPA, uint64(s.Size), s.Type)
	}
	return nil
}

// svsmText lays out what is in an image for people.
func svsmText(info *svsmimg.Info) []byte {
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("IGVM format %d, %s, %d bytes", info.Version, info.Architecture, info.Bytes)
	var counts []string
	for _, h := range info.Headers {
		counts = append(counts, fmt.Sprintf("%d %s", h.Count, h.Type))
	}
	line("headers: %s", strings.Join(counts, ", "))
	for _, p := range info.Platforms {
		line("")
		policy := "no policy"
		if p.Policy != nil {
			policy = "policy " + p.Policy.String()
		}
		line("platform %s: mask %s, highest VTL %d, %s", p.Type, p.Mask, p.HighestVTL, policy)
		if p.SharedGPABoundary != 0 {
			line("  shared GPA boundary %s", p.SharedGPABoundary)
		}
		for _, r := range p.Regions {
			zeros := ""
			if r.Zeros > 0 {
				zeros = fmt.Sprintf(", %d pages without data", r.Zeros)
			}
			line("  %-18s %#10x  %-16s %-22s measured: %s%s", r.GPA, uint64(r.Size), r.Type, r.Name, r.Measured, zeros)
		}
		if p.RegionsLeftOut > 0 {
			line("  and %d more", p.RegionsLeftOut)
		}
		for i, v := range p.VCPUs {
			line("  vCPU %d, save area at %s", v.Index, v.GPA)
			if i > 0 && slices.Equal(v.Registers, p.VCPUs[0].Registers) && v.Bad == p.VCPUs[0].Bad {
				line("    as vCPU 0")
				continue
			}
			if v.Bad != "" {
				line("    cannot be read: %s", v.Bad)
			}
			for _, r := range v.Registers {
				line("    %-14s %s", r.Name, r.Value)
			}
		}
	}
	if len(info.Areas) > 0 {
		line("")
	}
	for _, a := range info.Areas {
		gpa := "never inserted"
		if a.GPA != nil {
			gpa = "at " + a.GPA.String()
		}
		var filled []string
		for _, p := range a.Parameters {
			filled = append(filled, fmt.Sprintf("%s at offset %s", p.Type, p.Offset))
		}
		if len(filled) == 0 {
			filled = []string{"nothing"}
		}
		line("parameter area %d: %s bytes %s, filled by the host with %s", a.Index, a.Size, gpa, strings.Join(filled, ", "))
	}
	svsmIDBlockText(line, info.IDBlock)
	svsmFirmwareText(line, info.Firmware)
	return b.Bytes()
}

func svsmIDBlockText(line func(string, ...any), b *svsmimg.IDBlockInfo) {
	line("")
	if b == nil {
		line("ID block: none")
		return
	}
	line("ID block: version %d, guest SVN %d", b.Version, b.GuestSVN)
	line("  launch digest     %s", b.LaunchDigest)
	line("  family ID         %s", b.FamilyID)
	line("  image ID          %s", b.ImageID)
	if b.Bad != "" {
		line("  keys cannot be read: %s", b.Bad)
	}
	if b.IDKeyDigest != nil {
		line("  ID key digest     %s", b.IDKeyDigest)
	}
	if b.AuthorKeyDigest != nil {
		line("  author key digest %s", b.AuthorKeyDigest)
	}
}

func svsmFirmwareText(line func(string, ...any), fw *svsmimg.FirmwareInfo) {
	line("")
	if fw == nil {
		line("firmware: none")
		return
	}
	line("firmware: %s bytes at %s", fw.Size, fw.GPA)
	if fw.Bad != "" {
		line("  not an OVMF image for SEV: %s", fw.Bad)
		return
	}
	for _, t := range fw.Table {
		line("  table entry: %s", t)
	}
	for _, s := range fw.Sections {
		line("  %-10s %#8x  %s", s.GPA, uint64(s.Size), s.Type)
	}
}
