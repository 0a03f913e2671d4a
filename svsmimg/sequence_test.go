package svsmimg

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/measure"
)

// launchDigest is a file's digest, or the test's end.
func launchDigest(t testing.TB, f *File, o SequenceOptions) measure.Digest {
	t.Helper()
	s, err := f.Sequence(o)
	if err != nil {
		t.Fatal(err)
	}
	return must(s.LaunchDigest())
}

// TestSequence lists the steps of a small file.
func TestSequence(t *testing.T) {
	f := small()
	s := must(f.Sequence(SequenceOptions{Profile: ProfileKVM}))
	type step struct {
		typ       measure.PageType
		gpa, size uint64
		source    string
		data      bool
	}
	var got []step
	for _, st := range s.Steps {
		got = append(got, step{st.Type, st.GPA, st.Size, st.Source, st.Data != nil})
	}
	want := []step{
		{measure.PageUnmeasured, 0x5000, 0x1000, "parameter area 7", false},
		{measure.PageNormal, 0x10000, 0x3000, "pages", true},
		{measure.PageNormal, 0x20000, 0x2000, "pages", false},
		{measure.PageSecrets, 0x30000, 0x1000, "secrets page", false},
		{measure.PageCPUID, 0x31000, 0x1000, "CPUID page", false},
		{measure.PageNormal, 0xffff0000, 0x10000, "firmware", true},
	}
	if !slices.Equal(got, want) {
		t.Errorf("found steps\n%v\nexpected\n%v", got, want)
	}
	if len(s.VMSAs) != 1 || s.VMSAs[0].GPA != measure.VMSAGPA || !bytes.Equal(s.VMSAs[0].Data, vmsaPage()) {
		t.Errorf("found VMSAs %v", s.VMSAs)
	}
	zero := must(f.Sequence(SequenceOptions{Profile: ProfileKVM, NativeZero: true}))
	if zero.Steps[2].Type != measure.PageZero {
		t.Errorf("with native zeros the page without data is of type %s", zero.Steps[2].Type)
	}
	if got, want := launchDigest(t, f, SequenceOptions{}), launchDigest(t, f, SequenceOptions{Profile: ProfileFile}); got != want {
		t.Errorf("a VMSA as KVM makes it, last in the file: found %s, expected that of the file, %s", got, want)
	}
	large := small(func(b *builder) {
		b.add(&PageData{GPA: 0x200000, Mask: 1, Flags: Page2MiB, Data: b.blob(filler(largePage, 2))})
	})
	pages := small(func(b *builder) { b.pages(0x200000, 1, filler(largePage, 2)) })
	if launchDigest(t, large, SequenceOptions{}) != launchDigest(t, pages, SequenceOptions{}) {
		t.Error("a page of 2 MiB is not measured as 512 pages")
	}
	area := must(small(func(b *builder) {
		b.f.Headers = slices.Insert(b.f.Headers, 2, []Header{&ParameterArea{Bytes: 3 * pageSize, Index: 9}, &ParameterInsert{GPA: 0x80000, Mask: 1, Index: 9}}...)
	}).Sequence(SequenceOptions{})).Steps[0]
	if area.Size != 3*pageSize || area.Type != measure.PageUnmeasured {
		t.Errorf("a parameter area of 3 pages is the step %v", area)
	}
}

// withMask is a file with a second platform, whose headers play no part.
func withMask() *File {
	return small(func(b *builder) {
		b.f.Headers = slices.Insert(b.f.Headers, 1, Header(&Platform{Mask: 2, Platform: PlatformSEVES, Version: 1}))
		b.add(&PageData{GPA: 0x10000, Mask: 2})
		b.add(&ParameterArea{Bytes: pageSize, Index: 8})
		b.add(&ParameterInsert{GPA: 0x20000, Mask: 2, Index: 8})
		other := vmsaPage()
		other[0x178] = 0x55
		b.context(measure.VMSAGPA, 2, other)
	})
}

// TestMasks: what is for another platform is not measured, save areas included.
func TestMasks(t *testing.T) {
	for _, p := range []Profile{ProfileFile, ProfileKVM, ProfileKVMBSP} {
		if got, want := launchDigest(t, withMask(), SequenceOptions{Profile: p}), launchDigest(t, small(), SequenceOptions{Profile: p}); got != want {
			t.Errorf("%s: found %s, expected %s", p, got, want)
		}
	}
}

// direct is a small file whose VMSA lies in guest memory, between other pages of
// the file.
func direct() *File {
	f := small()
	v := f.Headers[len(f.Headers)-1].(*VPContext)
	v.GPA = 0x90000
	f.Headers = slices.Insert(f.Headers[:len(f.Headers)-1], 8, Header(v))
	return f
}

// TestProfiles: which save areas a host measures, and where.
func TestProfiles(t *testing.T) {
	f := small()
	kvm4 := must(f.Sequence(SequenceOptions{Profile: ProfileKVM, VCPUs: 4, CPUSignature: 0xa00f11}))
	if len(kvm4.VMSAs) != 4 {
		t.Fatalf("found %d VMSAs, expected 4", len(kvm4.VMSAs))
	}
	ap := must(measure.ParseVMSA(kvm4.VMSAs[1].Data))
	reset := must(measure.VCPU{Signature: 0xa00f11, Features: 1, EIP: measure.ResetEIP}.VMSA())
	if d := ap.Diff(reset); len(d) > 0 {
		t.Errorf("vCPU 1 differs from one after a reset: %v", d)
	}
	if bsp := must(f.Sequence(SequenceOptions{Profile: ProfileKVMBSP, VCPUs: 4})); len(bsp.VMSAs) != 1 {
		t.Errorf("kvm-bsp measures %d VMSAs", len(bsp.VMSAs))
	}
	for name, c := range map[string]struct {
		f     *File
		o     SequenceOptions
		words string
	}{
		"no CPU model":     {f, SequenceOptions{Profile: ProfileKVM, VCPUs: 2}, "the CPU model must be given"},
		"direct on kvm":    {direct(), SequenceOptions{Profile: ProfileKVM}, "found the VMSA at 0x90000, expected 0xfffffffff000"},
		"direct on bsp":    {direct(), SequenceOptions{Profile: ProfileKVMBSP}, "found the VMSA at 0x90000"},
		"kvm on direct":    {f, SequenceOptions{Profile: ProfileKVMDirect}, "expected it in guest memory"},
		"too many vCPUs":   {f, SequenceOptions{VCPUs: 513}, "found 513, expected 1 to 512"},
		"negative":         {f, SequenceOptions{VCPUs: -1}, "found -1"},
		"unknown profile":  {f, SequenceOptions{Profile: "xen"}, `host profile "xen": expected file, kvm, kvm-bsp, kvm-direct`},
		"unknown order":    {f, SequenceOptions{Order: "up"}, `order "up"`},
		"no context, bsp":  {noContext(), SequenceOptions{Profile: ProfileKVMBSP}, "no VP_CONTEXT for SEV_SNP"},
		"no context, kvm":  {noContext(), SequenceOptions{Profile: ProfileKVM}, "the CPU model must be given"},
		"direct of none":   {noContext(), SequenceOptions{Profile: ProfileKVMDirect}, "found 0 VP_CONTEXTs, expected one"},
		"context for none": {twoContexts(), SequenceOptions{Profile: ProfileKVM, VCPUs: 1}, "found VP_CONTEXTs for 2 vCPUs, but the VM has 1"},
	} {
		if _, err := c.f.Sequence(c.o); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: found error %v, expected one with %q", name, err, c.words)
		}
	}
	if p := f.InferProfile(); p != ProfileKVM {
		t.Errorf("inferred %s, expected kvm", p)
	}
	if p := direct().InferProfile(); p != ProfileKVMDirect {
		t.Errorf("inferred %s, expected kvm-direct", p)
	}
	// In guest memory a VMSA keeps its place, and its bytes.
	s := must(direct().Sequence(SequenceOptions{}))
	at := slices.IndexFunc(s.Steps, func(st measure.Step) bool { return st.Type == measure.PageVMSA })
	if len(s.VMSAs) != 0 || at != 2 || s.Steps[at].GPA != 0x90000 {
		t.Errorf("found the VMSA as step %d of %d, and %d VMSAs at the end", at, len(s.Steps), len(s.VMSAs))
	}
	if got, want := launchDigest(t, direct(), SequenceOptions{}), launchDigest(t, direct(), SequenceOptions{Profile: ProfileFile}); got != want {
		t.Errorf("kvm-direct: found %s, expected that of the file, %s", got, want)
	}
	if must(f.Sequence(SequenceOptions{Profile: ProfileKVM, VCPUs: 512, CPUSignature: 1})).VMSAs[511].Source != "vCPU 511" {
		t.Error("512 vCPUs: the last one has another name")
	}
}

func noContext() *File {
	f := small()
	f.Headers = f.Headers[:len(f.Headers)-1]
	return f
}

func twoContexts() *File {
	return small(func(b *builder) {
		b.add(&VPContext{GPA: measure.VMSAGPA, Mask: 1, VPIndex: 1, Data: b.blob(vmsaPage())})
	})
}

// withVMSA is a small file with another VMSA.
func withVMSA(change func(*measure.VMSA)) *File {
	return small(func(b *builder) {
		v := must(measure.ParseVMSA(vmsaPage()))
		change(v)
		b.f.Headers = b.f.Headers[:len(b.f.Headers)-1]
		b.context(measure.VMSAGPA, maskSNP, v.Page())
	})
}

// TestKVMRegisters: what KVM makes of registers, and which QEMU does not hand over.
func TestKVMRegisters(t *testing.T) {
	measured := func(change func(*measure.VMSA)) *measure.VMSA {
		s := must(withVMSA(change).Sequence(SequenceOptions{Profile: ProfileKVM}))
		return must(measure.ParseVMSA(s.VMSAs[0].Data))
	}
	v := measured(func(v *measure.VMSA) {
		v.EFER, v.CR0, v.CR4, v.RFLAGS = 0, 0x60000001, 0x20, 0x200
		v.LDTR.Base, v.TR.Base = 0x11, 0x22
		v.GDTR, v.IDTR = measure.Segment{Selector: 1, Attrib: 2, Limit: 0x12345, Base: 7}, measure.Segment{Attrib: 9, Limit: 0xffff0008}
		v.SS.Attrib = 0xf3
		v.R15, v.RIP, v.CR3, v.DR6, v.PAT, v.MXCSR, v.X87FCW = 15, 16, 0x3000, 0, 1, 2, 3
	})
	for _, c := range []struct {
		name        string
		found, want uint64
	}{
		{"efer", v.EFER, 0x1000}, {"cr0", v.CR0, 0x11}, {"cr4", v.CR4, 0x60}, {"rflags", v.RFLAGS, 0x202}, {"tr.base", v.TR.Base, 0x11},
		{"gdtr.limit", uint64(v.GDTR.Limit), 0x2345}, {"gdtr.base", v.GDTR.Base, 7}, {"gdtr.attrib", uint64(v.GDTR.Attrib | v.GDTR.Selector), 0},
		{"idtr.limit", uint64(v.IDTR.Limit), 8}, {"idtr.attrib", uint64(v.IDTR.Attrib), 0}, {"cpl", uint64(v.CPL), 3},
		{"r15", v.R15, 15}, {"rip", v.RIP, 16}, {"cr3", v.CR3, 0x3000}, {"dr6", v.DR6, 0}, {"pat", v.PAT, 1}, {"mxcsr", uint64(v.MXCSR), 2}, {"fcw", uint64(v.X87FCW), 3},
	} {
		if c.found != c.want {
			t.Errorf("%s: found 0x%x, expected 0x%x", c.name, c.found, c.want)
		}
	}
	// Vectors of COCONUT's igvmbuilder pass unchanged.
	c := coconut{in: &coconutInputs{bootLoader: filler(100, 1)}, r: &Recipe{}, mask: maskSNP, b: newBuilder(1)}
	c.vmsa()
	page := c.b.f.Data
	if got := asKVM(must(measure.ParseVMSA(page))).Page(); !bytes.Equal(got, page) {
		t.Error("KVM changes registers of COCONUT's VMSA")
	}
	// The vCPUs' features are the boot vCPU's.
	s := must(withVMSA(func(v *measure.VMSA) { v.SEVFeatures = 0x29 }).Sequence(SequenceOptions{Profile: ProfileKVM, VCPUs: 2, CPUSignature: 1}))
	if f := must(measure.ParseVMSA(s.VMSAs[1].Data)).SEVFeatures; f != 0x29 {
		t.Errorf("vCPU 1: found sev_features 0x%x, expected 0x29", f)
	}
	for name, c := range map[string]struct {
		change func(*measure.VMSA)
		words  string
	}{
		"vmpl":        {func(v *measure.VMSA) { v.VMPL = 1 }, "vmpl: found 0x1"},
		"cpl":         {func(v *measure.VMSA) { v.CPL = 3 }, "cpl: found 0x3"},
		"xss":         {func(v *measure.VMSA) { v.XSS = 1 }, "xss: found 0x1"},
		"virtual_tom": {func(v *measure.VMSA) { v.VirtualTOM = 1 << 46 }, "virtual_tom: found 0x400000000000"},
		"x87_dp":      {func(v *measure.VMSA) { v.X87DP = 1 }, "x87_dp"},
		"x87_ftw":     {func(v *measure.VMSA) { v.X87FTW = 1 }, "x87_ftw"},
		"x87_fsw":     {func(v *measure.VMSA) { v.X87FSW = 1 }, "x87_fsw"},
		"x87_fop":     {func(v *measure.VMSA) { v.X87FOP = 1 }, "x87_fop"},
		"features":    {func(v *measure.VMSA) { v.SEVFeatures = 0x28 }, "expected SNPActive"},
		"dr7":         {func(v *measure.VMSA) { v.DR7 = 0x401 }, "expected no breakpoint"},
	} {
		for _, p := range []Profile{ProfileKVM, ProfileKVMBSP} {
			if _, err := withVMSA(c.change).Sequence(SequenceOptions{Profile: p}); err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%s, %s: found error %v, expected one with %q", name, p, err, c.words)
			}
		}
	}
	unnamed := small(func(b *builder) {
		page := vmsaPage()
		page[0xfff] = 1
		b.f.Headers = b.f.Headers[:len(b.f.Headers)-1]
		b.context(measure.VMSAGPA, maskSNP, page)
	})
	if _, err := unnamed.Sequence(SequenceOptions{Profile: ProfileKVM}); err == nil || !strings.Contains(err.Error(), "not synchronized with KVM") {
		t.Errorf("found error %v, expected one about fields that are not synchronized", err)
	}
	if _, err := unnamed.Sequence(SequenceOptions{Profile: ProfileFile}); err != nil {
		t.Errorf("as the file says: %v", err)
	}
}

// insertLate is a file with parameter areas that are inserted after pages.
func insertLate() *File {
	return small(func(b *builder) {
		at := slices.IndexFunc(b.f.Headers, func(h Header) bool { p, ok := h.(*PageData); return ok && p.GPA == 0x12000 }) + 1
		b.f.Headers = slices.Insert(b.f.Headers, at,
			[]Header{
				&ParameterArea{Bytes: pageSize, Index: 1}, &ParameterInsert{GPA: 0x6000, Mask: 1, Index: 1},
				&ParameterArea{Bytes: pageSize, Index: 2}, &ParameterInsert{GPA: 0x7000, Mask: 1, Index: 2},
			}...)
	})
}

// TestOrder: in QEMU an insertion overtakes the pages that are kept back, and no
// others.
func TestOrder(t *testing.T) {
	addresses := func(order Order) []uint64 {
		var out []uint64
		for _, s := range must(insertLate().Sequence(SequenceOptions{Order: order})).Steps {
			out = append(out, s.GPA)
		}
		return out
	}
	if got, want := addresses(OrderFile), []uint64{0x5000, 0x10000, 0x6000, 0x7000, 0x20000, 0x30000, 0x31000, 0xffff0000}; !slices.Equal(got, want) {
		t.Errorf("order of the file: found %x, expected %x", got, want)
	}
	if got, want := addresses(OrderQEMU), []uint64{0x5000, 0x6000, 0x7000, 0x10000, 0x20000, 0x30000, 0x31000, 0xffff0000}; !slices.Equal(got, want) {
		t.Errorf("QEMU's order: found %x, expected %x", got, want)
	}
	if a, b := launchDigest(t, insertLate(), SequenceOptions{Profile: ProfileFile}), launchDigest(t, insertLate(), SequenceOptions{Profile: ProfileKVM}); a == b {
		t.Error("both orders give one digest")
	}
	// Only neighbours of one kind are kept back together: the page before a gap has
	// been given when the insertion comes.
	for name, change := range map[string]func(p *PageData){
		"gap":   func(p *PageData) { p.GPA = 0x13000 },
		"flags": func(p *PageData) { p.Flags = PageUnmeasured },
		"mask":  func(p *PageData) { p.Mask = 3 },
		"data":  func(p *PageData) { p.Data = Blob{} },
	} {
		f := small(func(b *builder) {
			b.f.Headers = slices.Insert(b.f.Headers, 1, Header(&Platform{Mask: 2, Platform: PlatformNative, Version: 1}))
			at := slices.IndexFunc(b.f.Headers, func(h Header) bool { p, ok := h.(*PageData); return ok && p.GPA == 0x12000 })
			p := *b.f.Headers[at].(*PageData)
			change(&p)
			b.f.Headers[at] = &p
			b.f.Headers = slices.Insert(b.f.Headers, at+1, []Header{&ParameterArea{Bytes: pageSize, Index: 1}, &ParameterInsert{GPA: 0x6000, Mask: 1, Index: 1}}...)
		})
		s := must(f.Sequence(SequenceOptions{}))
		if s.Steps[1].GPA != 0x10000 || s.Steps[2].GPA != 0x6000 {
			t.Errorf("%s: found steps at 0x%x and 0x%x, expected 0x10000 and 0x6000", name, s.Steps[1].GPA, s.Steps[2].GPA)
		}
	}
	// A header between two pages ends what is kept back, when the second comes.
	f := small(func(b *builder) {
		at := slices.IndexFunc(b.f.Headers, func(h Header) bool { p, ok := h.(*PageData); return ok && p.GPA == 0x11000 })
		b.f.Headers = slices.Insert(b.f.Headers, at, Header(&RequiredMemory{GPA: 0x10000, Mask: 1, Bytes: pageSize}))
		b.f.Headers = slices.Insert(b.f.Headers, at+2, []Header{&ParameterArea{Bytes: pageSize, Index: 1}, &ParameterInsert{GPA: 0x6000, Mask: 1, Index: 1}}...)
	})
	s := must(f.Sequence(SequenceOptions{}))
	if s.Steps[1].GPA != 0x10000 || s.Steps[2].GPA != 0x6000 || s.Steps[3].GPA != 0x11000 {
		t.Errorf("found steps at 0x%x, 0x%x, 0x%x, expected 0x10000, 0x6000, 0x11000", s.Steps[1].GPA, s.Steps[2].GPA, s.Steps[3].GPA)
	}
}

// TestExtract takes the firmware out again.
func TestExtract(t *testing.T) {
	f := small()
	e := must(f.Extract())
	if !bytes.Equal(e.Firmware, firmware(64<<10, 3)) || !bytes.Equal(e.BIOS(), e.Firmware) {
		t.Error("the firmware is not what was put in")
	}
	if len(e.Pages) != 1 || e.Pages[0].GPA != 0x10000 || !bytes.Equal(e.Pages[0].Data, filler(3*pageSize, 1)) {
		t.Errorf("found pages %v", e.Pages)
	}
	odd := small(func(b *builder) { b.page(0xfffef000, 1, DataNormal, filler(pageSize, 50)) })
	e = must(odd.Extract())
	if len(e.Firmware) != 68<<10 || len(e.BIOS()) != 128<<10 || !bytes.HasSuffix(e.BIOS(), e.Firmware) || !isZero(e.BIOS()[:60<<10]) {
		t.Errorf("found a firmware of %d bytes and a BIOS of %d", len(e.Firmware), len(e.BIOS()))
	}
	// The firmware's end that is shown below 1 MiB is there by itself; a page that
	// differs from it is not.
	alias := small(func(b *builder) {
		fw := firmware(64<<10, 3)
		b.pages(top1M-uint64(len(fw)), maskSNP, fw)
		b.page(top1M-uint64(len(fw))-pageSize, maskSNP, DataNormal, filler(pageSize, 60))
	})
	if e := must(alias.Extract()); len(e.Pages) != 2 || e.Pages[1].GPA != 0xef000 || len(e.Pages[1].Data) != pageSize {
		t.Errorf("found %d pieces of memory, expected the one below the firmware's end to be the second", len(e.Pages))
	}
	other := small(func(b *builder) { b.page(0xff000, maskSNP, DataNormal, filler(pageSize, 61)) })
	if e := must(other.Extract()); len(e.Pages) != 2 || e.Pages[1].GPA != 0xff000 {
		t.Errorf("found %d pieces of memory, expected the page at 0xff000 among them", len(e.Pages))
	}
	// In order of address, also above 4 GiB, and for the platform alone.
	several := small(func(b *builder) {
		b.f.Headers = slices.Insert(b.f.Headers, 1, Header(&Platform{Mask: maskNative, Platform: PlatformNative, Version: 1}))
		b.page(0x100000000, maskSNP, DataNormal, filler(pageSize, 62))
		b.page(0x70000, maskSNP, DataNormal, filler(pageSize, 63))
		b.page(0x60000, maskNative, DataNormal, filler(pageSize, 64))
	})
	if e := must(several.Extract()); len(e.Pages) != 3 || e.Pages[0].GPA != 0x10000 || e.Pages[1].GPA != 0x70000 || e.Pages[2].GPA != 0x100000000 {
		t.Errorf("found pages %v", e.Pages)
	}
	// Where the boot vCPU starts says whether there is an SVSM.
	for entry, svsm := range map[uint64]bool{0: true, top4G - 64<<10 - 1: true, top4G - 64<<10: false, top4G - 1: false, top4G: true, 0x8000000000: true} {
		f := withVMSA(func(v *measure.VMSA) { v.CS.Base, v.RIP = 0, entry })
		if e := must(f.Extract()); e.SVSM != svsm {
			t.Errorf("start at 0x%x: found SVSM %t, expected %t", entry, e.SVSM, svsm)
		}
	}
	if e := must(noContext().Extract()); e.SVSM {
		t.Error("a file without VP_CONTEXT, which starts at the reset vector, holds an SVSM")
	}
	// Of an image with an SVSM, nothing but the firmware has a place without VMPLs.
	if e.SVSM {
		t.Error("a file that starts at the reset vector holds an SVSM")
	}
	if e := must(must(coconutRecipe().Build(files(coconutFiles()))).File.Extract()); !e.SVSM || e.Pages != nil || !bytes.Equal(e.Firmware, coconutFiles()["OVMF.fd"]) {
		t.Errorf("COCONUT: found SVSM %t, %d pieces of memory, a firmware of %d bytes", e.SVSM, len(e.Pages), len(e.Firmware))
	}
	none := small(func(b *builder) {
		b.f.Headers = slices.DeleteFunc(b.f.Headers, func(h Header) bool { p, ok := h.(*PageData); return ok && p.GPA == 0xfffff000 })
	})
	if _, err := none.Extract(); err == nil || !strings.Contains(err.Error(), "no firmware") {
		t.Errorf("found error %v, expected one about a missing firmware", err)
	}
	// Pages that share their data make no large extract of a small file.
	for name, gpa := range map[string]uint64{"pages": 0x100000000, "firmware": top4G - 20000*pageSize} {
		bomb := small(func(b *builder) {
			one := b.blob(filler(pageSize, 9))
			b.f.Headers = slices.DeleteFunc(b.f.Headers, func(h Header) bool { p, ok := h.(*PageData); return ok && p.GPA > 0xf0000000 })
			for i := range uint64(20000) {
				b.add(&PageData{GPA: gpa + i*pageSize, Mask: 1, Data: one})
			}
			if name == "pages" {
				b.page(0xfffff000, 1, DataNormal, filler(pageSize, 50))
			}
		})
		if _, err := bomb.Extract(); err == nil {
			t.Errorf("%s: a file of %d bytes gives an extract of %d", name, len(bomb.Data), 20000*pageSize)
		}
	}
	tdx := small(func(b *builder) {
		b.f.Headers[0].(*Platform).Platform = PlatformSEV
		b.f.Headers = b.f.Headers[:len(b.f.Headers)-1]
	})
	if _, err := tdx.Extract(); err == nil || !strings.Contains(err.Error(), "neither for SEV_SNP nor for NATIVE") {
		t.Errorf("found error %v, expected one about platforms", err)
	}
}
