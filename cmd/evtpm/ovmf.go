package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

func ovmfCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:  "ovmf",
		Usage: "look into OVMF firmware images",
		Subcommands: []*cli.Command{{
			Name:        "inspect",
			Usage:       "show tables, sections, hashes area and reset vector, and what would keep QEMU from starting the image",
			ArgsUsage:   "FILE",
			Description: "Exit code 1 when the image cannot be read as firmware; problems of an SNP launch are part of the output.",
			Flags:       []cli.Flag{outputFlag()},
			Action:      func(c *cli.Context) error { return u.ovmfInspect(c) },
		}},
	}
}

// ovmfDocument is what -o json prints.
type ovmfDocument struct {
	Schema       string           `json:"schema"`
	File         string           `json:"file"`
	Size         uint32           `json:"size"`
	GPA          string           `json:"gpa"`
	SHA256       measure.HexBytes `json:"sha256"`
	OVMFHash     measure.Digest   `json:"ovmf_hash"`
	ResetEIP     string           `json:"reset_eip,omitempty"`
	HashArea     *areaText        `json:"hash_area,omitempty"`
	Secret       *areaText        `json:"secret,omitempty"`
	Table        []tableText      `json:"table"`
	Sections     []sectionText    `json:"sections"`
	SNP          string           `json:"snp"`           // "ok", or why not
	KernelHashes string           `json:"kernel_hashes"` // "ok", or why not
	Problems     []string         `json:"problems"`
}

type areaText struct {
	GPA  string `json:"gpa"`
	Size uint32 `json:"size"`
}

type tableText struct {
	GUID   string           `json:"guid"`
	Name   string           `json:"name,omitempty"`
	Offset int64            `json:"offset"`
	Data   measure.HexBytes `json:"data"`
}

type sectionText struct {
	Type string `json:"type"`
	GPA  string `json:"gpa"`
	Size uint32 `json:"size"`
	Page string `json:"page"` // as what QEMU has it measured, kernel hashes off
}

func (u *ui) ovmfInspect(c *cli.Context) error {
	name, err := oneArg(c, "a firmware image")
	if err != nil {
		return err
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	data, err := u.readInput(name, inputfile.MaxFirmware)
	if err != nil {
		return err
	}
	img, err := ovmf.Parse(data)
	if errors.Is(err, ovmf.ErrNoTable) && bytes.HasPrefix(data, []byte("IGVM")) {
		return fmt.Errorf("%s: an IGVM file, see evtpm svsm inspect", name)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	doc, err := inspectOVMF(name, data, img)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if asJSON {
		return u.json(doc)
	}
	for _, line := range doc.lines() {
		u.data("%s", line)
	}
	return nil
}

func inspectOVMF(name string, data []byte, img *ovmf.Image) (*ovmfDocument, error) {
	sum := sha256.Sum256(data)
	doc := &ovmfDocument{
		Schema: "evtpm.ovmf/v1", File: name, Size: img.Size, GPA: fmt.Sprintf("%#x", img.GPA()), SHA256: sum[:],
		Table: []tableText{}, Sections: []sectionText{}, Problems: []string{}, SNP: "ok", KernelHashes: "ok",
	}
	var err error
	if doc.OVMFHash, err = img.Hash(); err != nil {
		return nil, err
	}
	if img.ResetEIP != nil {
		doc.ResetEIP = fmt.Sprintf("%#x", *img.ResetEIP)
	}
	area := func(a *ovmf.Area) *areaText {
		if a == nil {
			return nil
		}
		return &areaText{fmt.Sprintf("%#x", a.GPA), a.Size}
	}
	doc.HashArea, doc.Secret = area(img.HashArea), area(img.Secret)
	for _, e := range img.Table {
		doc.Table = append(doc.Table, tableText{e.GUID.String(), e.Name, e.Offset, e.Data})
	}
	for _, s := range img.Sections {
		doc.Sections = append(doc.Sections, sectionText{s.Type.String(), fmt.Sprintf("%#x", s.GPA), s.Size, ovmf.PageType(s.Type, measure.VMMQEMU).String()})
	}
	if err := img.CheckSNP(); err != nil {
		doc.SNP = "no: QEMU would not start it"
		for _, e := range unjoin(err) {
			doc.Problems = append(doc.Problems, e.Error())
		}
	}
	if err := img.CheckKernelHashes(measure.ModeSNP); err != nil {
		// The error is of a launch with a kernel; here none is given.
		doc.KernelHashes = "no: " + strings.TrimPrefix(strings.TrimPrefix(err.Error(), "kernel given, but "), "the ")
	}
	return doc, nil
}

// unjoin lists the errors of a joined one.
func unjoin(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // the outermost error is what CheckSNP joins
		return j.Unwrap()
	}
	return []error{err}
}

func (d *ovmfDocument) lines() []string {
	var out []string
	line := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	line("size          %d bytes at %s", d.Size, d.GPA)
	line("sha256        %s", d.SHA256)
	line("ovmf hash     %s", d.OVMFHash)
	line("SEV-SNP       %s", d.SNP)
	line("kernel hashes %s", d.KernelHashes)
	if d.ResetEIP != "" {
		line("reset vector  %s (vCPUs other than the first)", d.ResetEIP)
	}
	if d.HashArea != nil {
		line("hashes area   %s+%#x", d.HashArea.GPA, d.HashArea.Size)
	}
	if d.Secret != nil {
		line("secret area   %s+%#x", d.Secret.GPA, d.Secret.Size)
	}
	for _, s := range d.Sections {
		line("section       %s+%#x %s, measured as %s", s.GPA, s.Size, s.Type, s.Page)
	}
	for _, t := range d.Table {
		name := t.Name
		if name == "" {
			name = "unknown"
		}
		line("table         %s %s, %d bytes at offset %#x", t.GUID, name, len(t.Data), t.Offset)
	}
	for _, p := range d.Problems {
		line("problem       %s", p)
	}
	return out
}
