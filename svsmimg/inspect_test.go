package svsmimg

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/evtpm/evtpm/measure"
)

// TestInspect: platforms, regions, registers, parameters, ID block, firmware.
func TestInspect(t *testing.T) {
	info := signedWith(nil).Inspect()
	if len(info.Platforms) != 1 {
		t.Fatalf("found platforms %v", info.Platforms)
	}
	p := info.Platforms[0]
	if p.Type != "SEV_SNP" || p.Policy == nil || *p.Policy != 0x30000 || p.HighestVTL != 2 {
		t.Errorf("found platform %+v", p)
	}
	want := []RegionInfo{
		{0x5000, 0x1000, "parameter area 7", "PARAMETER_INSERT", measuredAddress, 0},
		{0x10000, 0x3000, "pages", "NORMAL", measuredContents, 0},
		{0x20000, 0x2000, "pages", "NORMAL", measuredContents, 2},
		{0x30000, 0x1000, "secrets page", "SECRETS", measuredAddress, 0},
		{0x31000, 0x1000, "CPUID page", "CPUID_DATA", measuredAddress, 0},
		{0xffff0000, 0x10000, "firmware", "NORMAL", measuredContents, 0},
		{measure.VMSAGPA, 0x1000, "VMSA", "VP_CONTEXT", measuredContents, 0},
	}
	if d := cmp.Diff(want, p.Regions); d != "" {
		t.Errorf("regions: -want +got:\n%s", d)
	}
	if v := p.VCPUs[0]; len(p.VCPUs) != 1 || !slices.Contains(v.Registers, Register{"rdx", 0x800f12}) || !slices.Contains(v.Registers, Register{"cs.base", 0xffff0000}) || slices.ContainsFunc(v.Registers, func(r Register) bool { return r.Value == 0 }) {
		t.Errorf("found vCPUs %+v", p.VCPUs)
	}
	if a := info.Areas; len(a) != 1 || a[0].Index != 7 || *a[0].GPA != 0x5000 || a[0].Parameters[0] != (ParameterInfo{"VP_COUNT", 8, false}) {
		t.Errorf("found areas %+v", a)
	}
	if b := info.IDBlock; b == nil || b.IDKeyDigest == nil || b.AuthorKeyDigest != nil || b.Bad != "" {
		t.Errorf("found ID block %+v", b)
	}
	if fw := info.Firmware; fw == nil || fw.GPA != 0xffff0000 || len(fw.Sections) != 7 || !slices.Contains(fw.Table, "SEV-ES reset block") {
		t.Errorf("found firmware %+v", fw)
	}
	if info.Bytes != len(must(signedWith(nil).Encode())) {
		t.Errorf("found %d bytes", info.Bytes)
	}
	if _, err := json.Marshal(info); err != nil {
		t.Error(err)
	}
}

// TestInspectEverything: no header makes inspect fail, and what cannot be read says
// why.
func TestInspectEverything(t *testing.T) {
	info := everything().Inspect()
	if len(info.Platforms) != 4 || len(info.Headers) != len(contentSizes)+3 || info.Firmware != nil {
		t.Errorf("found %d platforms, %d types of headers, firmware %v", len(info.Platforms), len(info.Headers), info.Firmware)
	}
	native := info.Platforms[1]
	if v := native.VCPUs; len(v) != 1 || !slices.Contains(v[0].Registers, Register{"cs.base", 0xffff0000}) || !slices.Contains(v[0].Registers, Register{"r15", 4}) ||
		!slices.Contains(v[0].Registers, Register{"gdtr.limit", 9}) || !slices.Contains(v[0].Registers, Register{"ds.limit", 5}) || !slices.Contains(v[0].Registers, Register{"efer", 1}) {
		t.Errorf("found NATIVE's vCPUs %+v", v)
	}
	if a := info.Areas[1]; a.GPA != nil {
		t.Errorf("an area that is never inserted is at %v", a.GPA)
	}
	bad := small(func(b *builder) {
		page := vmsaPage()
		page[0xfff] = 1
		b.f.Headers = b.f.Headers[:len(b.f.Headers)-1]
		b.context(measure.VMSAGPA, maskSNP, page)
		b.add(&SNPIDBlock{Mask: 1, Version: 1})
		b.page(0xfffef000, 1, DataNormal, nil)
		b.f.Headers = slices.DeleteFunc(b.f.Headers, func(h Header) bool { p, ok := h.(*PageData); return ok && p.GPA == 0xfffff000 })
		b.add(&PageData{GPA: 0xfffff000, Mask: 1})
	}).Inspect()
	if bad.Platforms[0].VCPUs[0].Bad == "" || bad.IDBlock.Bad == "" || bad.Firmware.Bad == "" {
		t.Errorf("found %+v, %+v, %+v; expected reasons", bad.Platforms[0].VCPUs[0], bad.IDBlock, bad.Firmware)
	}
}

// TestNativeContext writes and reads every register.
func TestNativeContext(t *testing.T) {
	c := new(NativeContext)
	n := uint64(1)
	for _, f := range c.fields() {
		switch v := f.to.(type) {
		case *uint64:
			*v = n << 40
		case *uint32:
			*v = uint32(n << 20)
		case *uint16:
			*v = uint16(n << 8)
		}
		n++
	}
	got, err := ParseNativeContext(c.Page())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(c, got); d != "" {
		t.Errorf("-written +read:\n%s", d)
	}
	for _, at := range []int{nativeIDTRReserved, nativeIDTRReserved + 3, nativeContextSize, pageSize - 1} {
		page := c.Page()
		page[at] ^= 1
		if _, err := ParseNativeContext(page); err == nil {
			t.Errorf("byte 0x%x is not looked at", at)
		}
	}
	if _, err := ParseNativeContext(nil); err == nil {
		t.Error("no bytes are taken")
	}
}

// TestDiffSettings: what differs besides the launch, by name.
func TestDiffSettings(t *testing.T) {
	if d := DiffSettings(small(), small()); d != nil {
		t.Errorf("two same files differ: %v", d)
	}
	b := signedWith(nil)
	b.Headers[1] = &GuestPolicy{Policy: 0xb0000, Mask: 1}
	b.Headers[0].(*Platform).HighestVTL = 0
	names := make(map[string][2]string)
	for _, s := range DiffSettings(small(), b) {
		names[s.Name] = [2]string{s.A, s.B}
	}
	if names["policy of SEV_SNP"] != [2]string{"0x30000", "0xb0000"} || names["platform SEV_SNP"][1] != "highest VTL 0, shared GPA boundary 0x0" ||
		names["ID block: author key digest"] != [2]string{"", "none"} || len(names["ID block: launch digest"][1]) != 96 || len(names) != 8 {
		t.Errorf("found %v", names)
	}
}

// TestNames: every number that a file can hold has a text.
func TestNames(t *testing.T) {
	for _, s := range []string{
		HeaderType(0x302).String(), HeaderType(0x999).String(), PlatformCCA.String(), PlatformType(9).String(),
		DataCPUIDXF.String(), PageDataType(9).String(), sectionNone.String(), Hex(0x1f).String(),
	} {
		if s == "" {
			t.Error("found an empty name")
		}
	}
	var h Hex
	if err := json.Unmarshal([]byte(`"0x1F"`), &h); err != nil || h != 0x1f {
		t.Errorf("found %v, %v", h, err)
	}
}
