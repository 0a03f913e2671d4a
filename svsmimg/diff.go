package svsmimg

import "fmt"

// A SettingDiff is something about two files that differs and that is not among
// their launch steps; empty where a file has none.
type SettingDiff struct{ Name, A, B string }

// DiffSettings compares what two files say besides the pages and save areas of
// their launch, which [github.com/evtpm/evtpm/measure.Diff] compares: platforms,
// policies, the ID block.
func DiffSettings(a, b *File) []SettingDiff {
	var out []SettingDiff
	add := func(name, va, vb string) {
		if va != vb {
			out = append(out, SettingDiff{name, va, vb})
		}
	}
	policy := func(f *File, t PlatformType) string {
		n, ok := f.Policy(t)
		if !ok {
			return ""
		}
		return Hex(n).String()
	}
	for t := PlatformNative; t <= PlatformCCA; t++ {
		add("platform "+t.String(), a.platform(t).describe(), b.platform(t).describe())
		add("policy of "+t.String(), policy(a, t), policy(b, t))
	}
	of := b.IDBlock().describe()
	for i, v := range a.IDBlock().describe() {
		add(v.name, v.value, of[i].value)
	}
	return out
}

func (f *File) platform(t PlatformType) *Platform {
	for _, h := range f.Headers {
		if p, ok := h.(*Platform); ok && p.Platform == t {
			return p
		}
	}
	return nil
}

func (p *Platform) describe() string {
	if p == nil {
		return ""
	}
	return fmt.Sprintf("highest VTL %d, shared GPA boundary 0x%x", p.HighestVTL, p.SharedGPABoundary)
}

type named struct{ name, value string }

// describe lists an ID block's fields, empty ones for no block.
func (b *SNPIDBlock) describe() []named {
	if b == nil {
		b := new(SNPIDBlock).describe()
		for i := range b {
			b[i].value = ""
		}
		return b
	}
	info := b.info()
	id, author := info.Bad, info.Bad
	if info.IDKeyDigest != nil {
		id, author = info.IDKeyDigest.String(), "none"
	}
	if info.AuthorKeyDigest != nil {
		author = info.AuthorKeyDigest.String()
	}
	return []named{
		{"ID block: launch digest", info.LaunchDigest.String()},
		{"ID block: family ID", info.FamilyID.String()},
		{"ID block: image ID", info.ImageID.String()},
		{"ID block: guest SVN", fmt.Sprint(info.GuestSVN)},
		{"ID block: ID key digest", id},
		{"ID block: author key digest", author},
	}
}
