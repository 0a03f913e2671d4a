package measure

import (
	"cmp"
	"slices"
)

// A Page is one page of a launch, without its contents.
type Page struct {
	Type     PageType
	GPA      uint64
	Contents Digest // SHA-384; zero where contents are not measured
	Source   string
}

// same reports whether two pages are measured alike. Source is not measured.
func (p *Page) same(q *Page) bool {
	return p.Type == q.Type && p.GPA == q.GPA && p.Contents == q.Contents
}

// Pages lists every page of an SNP sequence in launch order, the VMSAs last.
func (s *Sequence) Pages() ([]Page, error) {
	var out []Page
	_, err := s.Walk(func(u Update) {
		out = append(out, Page{Type: u.Type, GPA: u.GPA, Contents: u.Contents, Source: s.step(u).Source})
	})
	return out, err
}

// A PageDiff is the first place where two launches differ.
type PageDiff struct {
	N    int   // position in launch order, from 0
	A, B *Page // nil where one launch has ended
}

// What a region of a launch differs in.
const (
	OnlyA    = "only in the first"
	OnlyB    = "only in the second"
	Contents = "contents"
	Type     = "page type"
)

// A RegionDiff is a run of pages that differ in the same way.
type RegionDiff struct {
	GPA, Size uint64
	What      string // OnlyA, OnlyB, Contents or Type
	A, B      Page   // the first page of the run; zero where there is none
}

// A LaunchDiff says how two launches differ. All fields are zero for launches
// that are measured alike.
type LaunchDiff struct {
	First *PageDiff

	// Regions lists what differs besides the order and the VMSAs, in ascending
	// order of address.
	Regions []RegionDiff

	// Reordered says that the pages are the same, given in another order.
	Reordered bool

	// VMSAs counts the measured vCPUs.
	VMSAsA, VMSAsB int
}

// Diff compares two launches page by page.
func Diff(a, b []Page) *LaunchDiff {
	d := new(LaunchDiff)
	for n := range max(len(a), len(b)) {
		var pa, pb *Page
		if n < len(a) {
			pa = &a[n]
		}
		if n < len(b) {
			pb = &b[n]
		}
		if pa == nil || pb == nil || !pa.same(pb) {
			d.First = &PageDiff{N: n, A: pa, B: pb}
			break
		}
	}
	if d.First == nil {
		return d
	}
	var left, right []Page
	left, d.VMSAsA = byAddress(a)
	right, d.VMSAsB = byAddress(b)
	d.regions(left, right)
	d.Reordered = len(d.Regions) == 0 && d.VMSAsA == d.VMSAsB
	if d.Reordered {
		// The VMSAs are outside of the regions: order is all only if they agree.
		d.Reordered = slices.EqualFunc(vmsas(a), vmsas(b), func(p, q Page) bool { return p.same(&q) })
	}
	return d
}

// byAddress sorts the pages that are no VMSAs, and counts those.
func byAddress(pages []Page) (sorted []Page, count int) {
	for _, p := range pages {
		if p.Type == PageVMSA {
			count++
			continue
		}
		sorted = append(sorted, p)
	}
	slices.SortStableFunc(sorted, func(p, q Page) int { return cmp.Compare(p.GPA, q.GPA) })
	return sorted, count
}

func vmsas(pages []Page) []Page {
	var out []Page
	for _, p := range pages {
		if p.Type == PageVMSA {
			out = append(out, p)
		}
	}
	return out
}

// regions merges two sorted lists of pages.
func (d *LaunchDiff) regions(a, b []Page) {
	add := func(what string, gpa uint64, pa, pb Page) {
		if n := len(d.Regions); n > 0 {
			if r := &d.Regions[n-1]; r.What == what && r.GPA+r.Size == gpa && r.A.Source == pa.Source && r.B.Source == pb.Source {
				r.Size += PageSize
				return
			}
		}
		d.Regions = append(d.Regions, RegionDiff{GPA: gpa, Size: PageSize, What: what, A: pa, B: pb})
	}
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].GPA < b[0].GPA:
			add(OnlyA, a[0].GPA, a[0], Page{})
			a = a[1:]
		case len(a) == 0 || b[0].GPA < a[0].GPA:
			add(OnlyB, b[0].GPA, Page{}, b[0])
			b = b[1:]
		default:
			if a[0].Type != b[0].Type {
				add(Type, a[0].GPA, a[0], b[0])
			} else if a[0].Contents != b[0].Contents {
				add(Contents, a[0].GPA, a[0], b[0])
			}
			a, b = a[1:], b[1:]
		}
	}
}
