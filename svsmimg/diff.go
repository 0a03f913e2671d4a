package svsmimg

import (
	"fmt"

	"github.com/evtpm/evtpm/measure"
)

// A FileDiff says how the launches of two files differ.
type FileDiff struct {
	Launch *measure.LaunchDiff

	// Settings are differences of what is not given to the AMD-SP as pages:
	// platforms, policies, ID blocks.
	Settings []SettingDiff

	// VMSAs are the registers that differ, by vCPU.
	VMSAs []VMSADiff
}

// A SettingDiff is something named that differs; empty where a file has none.
type SettingDiff struct{ Name, A, B string }

// A VMSADiff lists the registers of one vCPU that differ.
type VMSADiff struct {
	VCPU       int
	GPAA, GPAB uint64
	Registers  []measure.RegisterDiff
}

// Same reports whether both files are launched alike.
func (d *FileDiff) Same() bool {
	return d.Launch.First == nil && len(d.Settings) == 0
}

// Diff compares the launches of two files.
func Diff(a, b *File, oa, ob SequenceOptions) (*FileDiff, error) {
	sa, err := a.Sequence(oa)
	if err != nil {
		return nil, fmt.Errorf("first file: %w", err)
	}
	sb, err := b.Sequence(ob)
	if err != nil {
		return nil, fmt.Errorf("second file: %w", err)
	}
	pa, err := sa.Pages()
	if err != nil {
		return nil, fmt.Errorf("first file: %w", err)
	}
	pb, err := sb.Pages()
	if err != nil {
		return nil, fmt.Errorf("second file: %w", err)
	}
	d := &FileDiff{Launch: measure.Diff(pa, pb), Settings: diffSettings(a, b)}
	va, vb := vmsasOf(sa), vmsasOf(sb)
	for i := range min(len(va), len(vb)) {
		regs, err := diffVMSA(va[i].Data, vb[i].Data)
		if err != nil {
			return nil, fmt.Errorf("vCPU %d: %w", i, err)
		}
		if len(regs) > 0 || va[i].GPA != vb[i].GPA {
			d.VMSAs = append(d.VMSAs, VMSADiff{VCPU: i, GPAA: va[i].GPA, GPAB: vb[i].GPA, Registers: regs})
		}
	}
	return d, nil
}

func diffVMSA(a, b []byte) ([]measure.RegisterDiff, error) {
	va, err := measure.ParseVMSA(a)
	if err != nil {
		return nil, fmt.Errorf("first file: %w", err)
	}
	vb, err := measure.ParseVMSA(b)
	if err != nil {
		return nil, fmt.Errorf("second file: %w", err)
	}
	return va.Diff(vb), nil
}

// vmsasOf lists the VMSAs of a sequence, wherever in it they are.
func vmsasOf(s *measure.Sequence) []measure.Step {
	var out []measure.Step
	for _, st := range s.Steps {
		if st.Type == measure.PageVMSA {
			out = append(out, st)
		}
	}
	return append(out, s.VMSAs...)
}

func diffSettings(a, b *File) []SettingDiff {
	var out []SettingDiff
	add := func(name, va, vb string) {
		if va != vb {
			out = append(out, SettingDiff{name, va, vb})
		}
	}
	number := func(n uint64, ok bool) string {
		if !ok {
			return ""
		}
		return Hex(n).String()
	}
	for t := PlatformNative; t <= PlatformCCA; t++ {
		pa, pb := a.platform(t), b.platform(t)
		add("platform "+t.String(), pa.describe(), pb.describe())
		na, oka := a.Policy(t)
		nb, okb := b.Policy(t)
		add("policy of "+t.String(), number(na, oka), number(nb, okb))
	}
	ia, ib := a.IDBlock(), b.IDBlock()
	for i, va := range ia.describe() {
		vb := ib.describe()[i]
		add(va.name, va.value, vb.value)
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

func (b *SNPIDBlock) describe() []named {
	out := []named{{name: "ID block: launch digest"}, {name: "ID block: family ID"}, {name: "ID block: image ID"}, {name: "ID block: guest SVN"}, {name: "ID block: ID key digest"}, {name: "ID block: author key digest"}}
	if b == nil {
		return out
	}
	info := b.info()
	values := []string{info.LaunchDigest.String(), info.FamilyID.String(), info.ImageID.String(), fmt.Sprint(info.GuestSVN), info.Bad, info.Bad}
	if info.IDKeyDigest != nil {
		values[4], values[5] = info.IDKeyDigest.String(), "none"
	}
	if info.AuthorKeyDigest != nil {
		values[5] = info.AuthorKeyDigest.String()
	}
	for i := range out {
		out[i].value = values[i]
	}
	return out
}
