package measure

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"slices"
)

// region is a run of guest memory in a map.
type region struct {
	typ       PageType
	gpa, size uint64
	source    string
	vmsas     int // how many VMSAs share the page
	step      int // the first of the launch's steps in it
	order     int // its place among the regions by that; the first is 1
}

// mapColours are the fills of page types: measured contents dark, type and
// address alone light.
var mapColours = map[PageType]string{
	PageNormal:     "#2f6f9f",
	PageVMSA:       "#6b4f9f",
	PageZero:       "#dfe7ee",
	PageUnmeasured: "#f3e3d3",
	PageSecrets:    "#f6d9a6",
	PageCPUID:      "#cfe8cf",
}

// mapMeasures says in words what of a type's pages is measured.
var mapMeasures = map[PageType]string{
	PageNormal:     "type, address and contents",
	PageVMSA:       "type, address and contents",
	PageZero:       "type and address; the AMD-SP fills it with zeros",
	PageUnmeasured: "type and address; contents are the host's",
	PageSecrets:    "type and address; contents are the AMD-SP's",
	PageCPUID:      "type and address; contents are checked by the AMD-SP",
}

// Layout of the drawing, in pixels.
const (
	mapWidth, mapBarX, mapBarWidth = 900, 200, 180
	mapTop, mapRow, mapGap         = 70, 34, 18
	mapTextX                       = mapBarX + mapBarWidth + 16
)

// WriteMap draws guest memory as an SVG image, highest address first: what is
// measured, as what, and who brings it. Heights are not to scale; gaps are pages
// that are not given to the AMD-SP at launch.
func (s *Sequence) WriteMap(w io.Writer) error {
	if err := s.Validate(); err != nil {
		return err
	}
	regions := s.mapRegions()
	var body bytes.Buffer
	y := mapTop
	text := func(x, y int, class, format string, args ...any) {
		fmt.Fprintf(&body, `<text x="%d" y="%d" class="%s">`, x, y, class)
		_ = xml.EscapeText(&body, fmt.Appendf(nil, format, args...)) // a bytes.Buffer takes everything
		body.WriteString("</text>\n")
	}
	for i, r := range regions {
		if i > 0 {
			if above := regions[i-1]; r.gpa+r.size != above.gpa {
				fmt.Fprintf(&body, `<line x1="%d" y1="%d" x2="%d" y2="%d" class="gap"/>`+"\n", mapBarX+mapBarWidth/2, y, mapBarX+mapBarWidth/2, y+mapGap)
				text(mapTextX, y+mapGap-5, "dim", "not given at launch")
				y += mapGap
			}
		}
		fmt.Fprintf(&body, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"/>`+"\n", mapBarX, y, mapBarWidth, mapRow, mapColours[r.typ])
		class := "dark"
		if r.typ.measured() {
			class = "light"
		}
		text(mapBarX+mapBarWidth/2, y+mapRow/2+5, class, "%s", r.typ)
		text(mapBarX+6, y+14, class+" order", "%d", r.order)
		text(mapBarX-10, y+mapRow-4, "gpa", "0x%x", r.gpa)
		what := r.source
		switch {
		case r.vmsas == 1:
			what = "save area of 1 vCPU"
		case r.vmsas > 0:
			what = fmt.Sprintf("save areas of %d vCPUs, one page each, all at this address", r.vmsas)
		case r.size > 0:
			what += ", " + sizeText(r.size)
		}
		text(mapTextX, y+14, "what", "%s", what)
		measures := mapMeasures[r.typ]
		if s.Mode == ModeSEV || s.Mode == ModeSEVES {
			measures = "contents, in launch order"
		}
		text(mapTextX, y+29, "dim", "measured: %s", measures)
		y += mapRow
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d">`+"\n", mapWidth, y+40)
	out.WriteString(`<style>text{font:12px sans-serif}.head{font:bold 16px sans-serif}.gpa{text-anchor:end;font-family:monospace}` +
		`.light{fill:#fff;text-anchor:middle}.dark{fill:#222;text-anchor:middle}.order{font-size:10px;text-anchor:start}.dim{fill:#667}rect{stroke:#445;stroke-width:.5}` +
		`.gap{stroke:#99a;stroke-dasharray:2 3}</style>` + "\n")
	fmt.Fprintf(&out, `<rect width="%d" height="%d" fill="#fff" stroke="none"/>`+"\n", mapWidth, y+40)
	out.WriteString(`<text x="20" y="30" class="head">Guest memory at launch</text>` + "\n")
	fmt.Fprintf(&out, `<text x="20" y="50" class="dim">%s</text>`+"\n", s.mapCaption())
	fmt.Fprintf(&out, `<text x="20" y="%d" class="dim">Highest address first, not to scale. The number in a box: when in the launch it is measured.</text>`+"\n", y+24)
	out.Write(body.Bytes())
	out.WriteString("</svg>\n")
	_, err := w.Write(out.Bytes())
	return err
}

// mapCaption is the launch digest, in words of the mode.
func (s *Sequence) mapCaption() string {
	if s.Mode == ModeSEV || s.Mode == ModeSEVES {
		d, err := s.SEVDigest()
		if err != nil {
			return ""
		}
		return fmt.Sprintf("launch digest (%s) %x", s.Mode, d)
	}
	d, err := s.LaunchDigest()
	if err != nil {
		return ""
	}
	return "launch digest " + d.String()
}

// mapRegions lists the regions in descending order of address, neighbours of one
// kind joined.
func (s *Sequence) mapRegions() []region {
	var out []region
	if !s.Start.IsZero() {
		// The pages behind a precomputed hash are known by it alone.
		out = append(out, region{typ: PageNormal, gpa: 1 << 32, source: "firmware, known by its hash", step: -1})
	}
	for i := range s.Steps {
		st := &s.Steps[i]
		out = append(out, region{typ: st.Type, gpa: st.GPA, size: st.Size, source: st.Source, step: i})
	}
	for i := range s.VMSAs {
		st := &s.VMSAs[i]
		if i > 0 && st.GPA == s.VMSAs[i-1].GPA {
			out[len(out)-1].vmsas++
			continue
		}
		out = append(out, region{typ: st.Type, gpa: st.GPA, size: st.Size, source: st.Source, vmsas: 1, step: len(s.Steps) + i})
	}
	slices.SortStableFunc(out, func(a, b region) int { return cmp.Compare(b.gpa, a.gpa) })
	joined := out[:0]
	for _, r := range out {
		if n := len(joined); n > 0 {
			if above := &joined[n-1]; above.typ == r.typ && above.source == r.source && r.gpa+r.size == above.gpa && r.vmsas == 0 {
				above.gpa, above.size = r.gpa, above.size+r.size
				above.step = min(above.step, r.step)
				continue
			}
		}
		joined = append(joined, r)
	}
	inTime := make([]*region, len(joined))
	for i := range joined {
		inTime[i] = &joined[i]
	}
	slices.SortFunc(inTime, func(a, b *region) int { return cmp.Compare(a.step, b.step) })
	for i, r := range inTime {
		r.order = i + 1
	}
	return joined
}

// sizeText is a size in pages, and in the largest unit that gives a whole number.
func sizeText(n uint64) string {
	pages := fmt.Sprintf("%d pages", (n+PageSize-1)/PageSize)
	switch {
	case n < PageSize:
		return fmt.Sprintf("%d bytes", n)
	case n == PageSize:
		return "1 page"
	case n%(1<<20) == 0:
		return fmt.Sprintf("%s (%d MiB)", pages, n>>20)
	}
	return fmt.Sprintf("%s (%d KiB)", pages, n>>10)
}
