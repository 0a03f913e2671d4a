package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
	"github.com/evtpm/evtpm/svsmimg"
)

func diffCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "diff",
		Usage:     "compare two launches down to the first differing step and its guest address",
		ArgsUsage: "A B",
		Description: "A and B are specs (.yaml), firmware images, IGVM files, traces that evtpm measure --trace printed, or golden values.\n" +
			"A firmware image beside a spec is compared as launched with everything else that the spec says.\n" +
			"Golden values are compared field by field, and only with golden values.\n\n" +
			"Exit codes: 0 nothing differs, 6 something does.",
		Flags:  []cli.Flag{outputFlag(), specOwnerFlag(), frozenFlag()},
		Action: func(c *cli.Context) error { return u.diff(c) },
	}
}

// launchSide is one of the two things that are compared.
type launchSide struct {
	name   string
	golden *measure.Golden // of golden values; then the rest is empty
	pages  []measure.Page
	vmsas  []*measure.VMSA // what is known of them

	spec *launchInput // of a spec; the caller closes it
	bare *ovmf.Image  // of a firmware alone: what it is launched with is not known
}

// bareOptions are what a firmware alone is launched with, where nothing says it.
var bareOptions = ovmf.LaunchOptions{VCPUs: 2}

// diffDocument is what -o json prints.
type diffDocument struct {
	Schema    string       `json:"schema"`
	Same      bool         `json:"same"`
	Assumed   string       `json:"assumed,omitempty"` // of a firmware alone
	First     *firstDiff   `json:"first,omitempty"`
	Regions   []regionDiff `json:"regions,omitempty"`
	Reordered bool         `json:"reordered,omitempty"`
	VCPUs     *[2]int      `json:"vcpus,omitempty"`
	Registers []vmsaDiff   `json:"registers,omitempty"`
	Fields    []fieldDiff  `json:"fields,omitempty"`
}

type firstDiff struct {
	Step int       `json:"step"`
	A    *pageText `json:"a"`
	B    *pageText `json:"b"`
}

type pageText struct {
	Type     string `json:"type"`
	GPA      string `json:"gpa"`
	Source   string `json:"source"`
	Contents string `json:"contents,omitempty"`
}

type regionDiff struct {
	GPA  string `json:"gpa"`
	Size uint64 `json:"size"`
	What string `json:"what"`
	A    string `json:"a,omitempty"`
	B    string `json:"b,omitempty"`
}

type vmsaDiff struct {
	VCPU     int    `json:"vcpu"`
	Register string `json:"register"`
	A        string `json:"a"`
	B        string `json:"b"`
}

type fieldDiff struct {
	Field string          `json:"field"`
	A     json.RawMessage `json:"a"`
	B     json.RawMessage `json:"b"`
}

func (u *ui) diff(c *cli.Context) error {
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	if c.NArg() != 2 {
		return fmt.Errorf("%s: found %s, expected two: A B", c.Command.HelpName, arguments(c.NArg()))
	}
	var sides [2]*launchSide
	for i := range sides {
		if sides[i], err = u.readSide(c, c.Args().Get(i)); err != nil {
			return err
		}
		if l := sides[i].spec; l != nil {
			defer l.close()
		}
	}
	a, b := sides[0], sides[1]
	assumed, err := launchBare(a, b)
	if err != nil {
		return err
	}
	var doc *diffDocument
	switch {
	case (a.golden != nil) != (b.golden != nil):
		return errors.New("diff: found golden values on one side, expected them on both or on neither")
	case a.golden != nil:
		if doc, err = diffGolden(a.golden, b.golden); err != nil {
			return err
		}
	default:
		doc = diffLaunches(a, b)
	}
	if doc.Assumed = assumed; assumed != "" {
		u.say("%s", assumed)
	}
	doc.Schema = "evtpm.diff/v1"
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

// readSide finds out what a file is, and reads it.
func (u *ui) readSide(c *cli.Context, name string) (*launchSide, error) {
	if ext := filepath.Ext(name); ext == ".yaml" || ext == ".yml" {
		l, err := specLaunch(c, name)
		if err != nil {
			return nil, err
		}
		side, err := sideOf(name, l.plan.Sequence)
		if err != nil {
			l.close()
			return nil, err
		}
		side.spec = l
		return side, nil
	}
	data, err := u.readInput(name, inputfile.MaxImage)
	if err != nil {
		return nil, err
	}
	var seq *measure.Sequence
	switch first := bytes.TrimLeft(data[:min(len(data), 64)], " \t\r\n"); {
	case bytes.HasPrefix(data, []byte("IGVM")):
		var f *svsmimg.File
		if f, err = svsmimg.Parse(data); err == nil {
			seq, err = f.Sequence(svsmimg.SequenceOptions{})
		}
	case bytes.HasPrefix(first, []byte(`{"n":0`)):
		var pages []measure.Page
		if pages, err = measure.ParseTrace(data); err == nil {
			return &launchSide{name: name, pages: pages}, nil
		}
	case bytes.HasPrefix(first, []byte("{")):
		var g *measure.Golden
		if g, err = measure.ParseGolden(data); err == nil {
			return &launchSide{name: name, golden: g}, nil
		}
	default:
		var img *ovmf.Image
		if img, err = ovmf.Parse(data); err == nil {
			return &launchSide{name: name, bare: img}, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return sideOf(name, seq)
}

// launchBare launches a firmware alone: with everything else that the spec on the
// other side says, so that nothing differs that does not come from the firmware.
// assumed says in words what it is launched with, where that is not the same on
// both sides by itself.
func launchBare(a, b *launchSide) (assumed string, err error) {
	launch := func(s *launchSide, seq *measure.Sequence, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		launched, err := sideOf(s.name, seq)
		if err == nil {
			s.pages, s.vmsas = launched.pages, launched.vmsas
		}
		return err
	}
	if a.bare == nil {
		a, b = b, a
	}
	switch {
	case a.bare == nil:
		return "", nil
	case b.spec != nil && b.spec.Firmware != nil:
		l := b.spec.Launch
		l.Firmware = a.bare
		if seq, err := l.Sequence(); err == nil {
			return fmt.Sprintf("%s is compared as launched with everything else that %s says", printable(a.name), printable(b.name)), launch(a, seq, nil)
		}
		// It has no room for the kernel's hashes, say.
	case b.bare != nil:
		seq, err := b.bare.Sequence(bareOptions)
		if err := launch(b, seq, err); err != nil {
			return "", err
		}
	case b.golden != nil:
		return "", nil // not to be compared
	}
	seq, err := a.bare.Sequence(bareOptions)
	if b.bare == nil {
		assumed = fmt.Sprintf("%s is a firmware alone, compared as launched with %s of CPUID signature 0 and no kernel; differences of vCPUs and kernel hashes say nothing",
			printable(a.name), countText(bareOptions.VCPUs))
	}
	return assumed, launch(a, seq, err)
}

func sideOf(name string, seq *measure.Sequence) (*launchSide, error) {
	s := &launchSide{name: name}
	var err error
	if s.pages, err = seq.Pages(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for _, st := range append(seq.Steps[:len(seq.Steps):len(seq.Steps)], seq.VMSAs...) {
		if st.Type == measure.PageVMSA {
			// One that sets what has no name here is shown as contents only.
			v, err := measure.ParseVMSA(st.Data)
			if err != nil {
				v = nil
			}
			s.vmsas = append(s.vmsas, v)
		}
	}
	return s, nil
}

func diffLaunches(a, b *launchSide) *diffDocument {
	d := measure.Diff(a.pages, b.pages)
	if d.First == nil {
		return &diffDocument{Same: true}
	}
	doc := &diffDocument{First: &firstDiff{d.First.N, textOf(d.First.A), textOf(d.First.B)}, Reordered: d.Reordered}
	for _, r := range d.Regions {
		doc.Regions = append(doc.Regions, regionDiff{fmt.Sprintf("%#x", r.GPA), r.Size, r.What, sideText(r.What, &r.A), sideText(r.What, &r.B)})
	}
	if d.VMSAsA != d.VMSAsB {
		doc.VCPUs = &[2]int{d.VMSAsA, d.VMSAsB}
	}
	// vCPUs beyond the second are as the second is.
	pagesA, pagesB := vmsaPages(a.pages), vmsaPages(b.pages)
	for i := range min(len(pagesA), len(pagesB), 2) {
		known := i < len(a.vmsas) && i < len(b.vmsas) && a.vmsas[i] != nil && b.vmsas[i] != nil
		if !known {
			// A trace has the digest of a save area alone.
			if x, y := pagesA[i].Contents, pagesB[i].Contents; x != y {
				doc.Registers = append(doc.Registers, vmsaDiff{i, "contents", x.String(), y.String()})
			}
			continue
		}
		for _, r := range a.vmsas[i].Diff(b.vmsas[i]) {
			doc.Registers = append(doc.Registers, vmsaDiff{i, r.Name, fmt.Sprintf("%#x", r.A), fmt.Sprintf("%#x", r.B)})
		}
	}
	return doc
}

func vmsaPages(pages []measure.Page) []measure.Page {
	var out []measure.Page
	for _, p := range pages {
		if p.Type == measure.PageVMSA {
			out = append(out, p)
		}
	}
	return out
}

func textOf(p *measure.Page) *pageText {
	if p == nil {
		return nil
	}
	t := &pageText{Type: p.Type.String(), GPA: fmt.Sprintf("%#x", p.GPA), Source: p.Source}
	if !p.Contents.IsZero() {
		t.Contents = p.Contents.String()
	}
	return t
}

// sideText is what a region is on one side.
func sideText(what string, p *measure.Page) string {
	switch {
	case p.Type == 0:
		return ""
	case what == measure.Type:
		return fmt.Sprintf("%s (%s)", p.Type, p.Source)
	}
	return p.Source
}

// diffGolden compares golden values field by field.
func diffGolden(a, b *measure.Golden) (*diffDocument, error) {
	var fields [2]map[string]json.RawMessage
	for i, g := range []*measure.Golden{a, b} {
		data, err := g.Encode()
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(data, &fields[i]); err != nil {
			return nil, err
		}
	}
	// Lists are compared by what their elements are named after.
	for i := range fields {
		if err := errors.Join(spread(fields[i], "inputs", "name"), spreadPCRs(fields[i])); err != nil {
			return nil, err
		}
	}
	names := slices.Collect(maps.Keys(fields[0]))
	for name := range fields[1] {
		if fields[0][name] == nil {
			names = append(names, name)
		}
	}
	order := []string{"name", "platform", "host_profile", "launch_digests", "policy", "host_data", "id_block", "pcrs", "inputs"}
	place := func(name string) int {
		first, _, _ := strings.Cut(name, ".")
		if i := slices.Index(order, first); i >= 0 {
			return i
		}
		return len(order)
	}
	slices.SortFunc(names, func(x, y string) int {
		return cmp.Or(cmp.Compare(place(x), place(y)), cmp.Compare(len(x), len(y)), strings.Compare(x, y))
	})
	doc := &diffDocument{Same: true}
	for _, name := range names {
		x, y := fields[0][name], fields[1][name]
		if x == nil {
			x = json.RawMessage("null")
		}
		if y == nil {
			y = json.RawMessage("null")
		}
		var cx, cy bytes.Buffer
		if err := errors.Join(json.Compact(&cx, x), json.Compact(&cy, y)); err != nil {
			return nil, err
		}
		if !bytes.Equal(cx.Bytes(), cy.Bytes()) {
			doc.Same = false
			doc.Fields = append(doc.Fields, fieldDiff{name, cx.Bytes(), cy.Bytes()})
		}
	}
	return doc, nil
}

// spread replaces a list of objects by its elements, each under the list's name and
// its own: {"inputs": [{"name": "kernel", ...}]} is {"inputs.kernel": {...}}.
func spread(fields map[string]json.RawMessage, list, key string) error {
	if fields[list] == nil {
		return nil
	}
	var elements []map[string]json.RawMessage
	if err := json.Unmarshal(fields[list], &elements); err != nil {
		return err
	}
	delete(fields, list)
	for _, e := range elements {
		name := list + "." + strings.Trim(string(e[key]), `"`)
		for fields[name] != nil {
			name += "+" // of a second one with this name
		}
		delete(e, key)
		data, err := json.Marshal(e)
		if err != nil {
			return err
		}
		fields[name] = data
	}
	return nil
}

// spreadPCRs does the same with PCRs, whose list lies beside their bank.
func spreadPCRs(fields map[string]json.RawMessage) error {
	if fields["pcrs"] == nil {
		return nil
	}
	var pcrs map[string]json.RawMessage
	if err := json.Unmarshal(fields["pcrs"], &pcrs); err != nil {
		return err
	}
	fields["pcrs"] = pcrs["values"]
	if err := spread(fields, "pcrs", "pcr"); err != nil {
		return err
	}
	fields["pcrs.bank"] = pcrs["bank"]
	return nil
}

// lines say the differences in words.
func (d *diffDocument) lines() []string {
	if d.Same {
		return []string{"same"}
	}
	var out []string
	// Names and values are those of the files.
	line := func(format string, args ...any) { out = append(out, harmless(fmt.Appendf(nil, format, args...))) }
	if f := d.First; f != nil {
		line("first difference: step %d: %s | %s", f.Step, f.A.text(), f.B.text())
	}
	for _, r := range d.Regions {
		side := r.A
		switch {
		case r.A == "":
			side = r.B
		case r.B != "" && r.B != r.A:
			side = r.A + " | " + r.B
		}
		line("%s+%#x: %s: %s", r.GPA, r.Size, r.What, side)
	}
	if d.Reordered {
		line("the same pages in another order")
	}
	if d.VCPUs != nil {
		line("vCPUs: %d | %d", d.VCPUs[0], d.VCPUs[1])
	}
	for _, r := range d.Registers {
		line("vCPU %d: %s: %s | %s", r.VCPU, r.Register, r.A, r.B)
	}
	for _, f := range d.Fields {
		line("%s: %s | %s", f.Field, f.A, f.B)
	}
	return out
}

func (p *pageText) text() string {
	if p == nil {
		return "end of the launch"
	}
	s := fmt.Sprintf("%s page at %s (%s)", p.Type, p.GPA, p.Source)
	if p.Contents != "" {
		s += " " + p.Contents[:16] + "..."
	}
	return s
}
