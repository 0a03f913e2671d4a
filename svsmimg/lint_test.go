package svsmimg

import (
	"slices"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/measure"
)

// codes lists the codes of findings.
func codes(findings []Finding) []string {
	var out []string
	for _, f := range findings {
		if !slices.Contains(out, f.Code) {
			out = append(out, f.Code)
		}
	}
	slices.Sort(out)
	return out
}

// insertAt puts headers before the first header of a type.
func insertAt(t HeaderType, h ...Header) func(*builder) {
	return func(b *builder) {
		at := slices.IndexFunc(b.f.Headers, func(h Header) bool { return h.Type() == t })
		b.f.Headers = slices.Insert(b.f.Headers, at, h...)
	}
}

// lintCases are files with the codes of what is wrong with them, and no other.
var lintCases = []struct {
	name  string
	f     func() *File
	o     LintOptions
	codes []string
}{
	{"nothing", func() *File { return small() }, LintOptions{}, nil},
	{"as the file says", func() *File { return small() }, LintOptions{Launch: SequenceOptions{Profile: ProfileFile}}, nil},
	{"oldest QEMU", func() *File { return small() }, LintOptions{QEMU: QEMUVersion{Major: 10, Minor: 1}}, nil},
	{"no IGVM", func() *File { return small() }, LintOptions{QEMU: QEMUVersion{Major: 10}}, []string{"qemu-no-igvm"}},
	{"area-data", func() *File {
		return small(func(b *builder) { b.f.Headers[2].(*ParameterArea).Data = b.blob(filler(pageSize, 3)) })
	}, LintOptions{}, []string{"area-data"}},
	{"area-large", func() *File {
		return small(insertAt(TypePageData, &ParameterArea{Bytes: 2 * pageSize, Index: 8}, &ParameterInsert{GPA: 0x80000, Mask: 1, Index: 8}))
	}, LintOptions{}, []string{"area-large"}},
	{"area-unused", func() *File { return small(insertAt(TypePageData, &ParameterArea{Bytes: pageSize, Index: 8})) }, LintOptions{}, []string{"area-unused"}},
	{"bios", func() *File { return small() }, LintOptions{Beside: []string{"bios"}}, []string{"beside-conflict"}},
	{"pflash", func() *File { return small() }, LintOptions{Beside: []string{"pflash", "kernel-hashes"}}, []string{"beside-conflict"}},
	{"kernel", func() *File { return small() }, LintOptions{Beside: []string{"kernel", "initrd", "append"}}, []string{"beside-unmeasured"}},
	{"id-block of none", func() *File { return small() }, LintOptions{Beside: []string{"id-block"}}, nil},
	{"firmware-missing", func() *File {
		return small(func(b *builder) {
			b.f.Headers = slices.DeleteFunc(b.f.Headers, func(h Header) bool { p, ok := h.(*PageData); return ok && p.GPA > 0xf0000000 })
		})
	}, LintOptions{}, []string{"firmware-missing"}},
	{"header-unknown", func() *File { return small(func(b *builder) { b.add(&Unknown{Kind: 0x3f0, Content: []byte{1}}) }) }, LintOptions{}, []string{"header-unknown"}},
	{"id-block", func() *File { return signedWith(func(b *SNPIDBlock) { b.IDSignature[0] ^= 1 }) }, LintOptions{}, []string{"id-block"}},
	{"id-block version", func() *File { return signedWith(func(b *SNPIDBlock) { b.Version = 2 }) }, LintOptions{}, []string{"id-block"}},
	{"id-block-author", func() *File {
		return signedWith(func(b *SNPIDBlock) { b.AuthorKeyEnabled = true })
	}, LintOptions{}, []string{"id-block", "id-block-author"}},
	{"id-block-digest", func() *File { return signedWith(nil) }, LintOptions{Launch: SequenceOptions{Profile: ProfileKVM, VCPUs: 2, CPUSignature: 1}}, []string{"id-block-digest"}},
	{"id-block beside", func() *File { return signedWith(nil) }, LintOptions{Beside: []string{"id-block"}}, []string{"beside-conflict"}},
	{"insert-after-pages", func() *File {
		return small(func(b *builder) {
			b.add(&ParameterArea{Bytes: pageSize, Index: 8})
			b.add(&ParameterInsert{GPA: 0x80000, Mask: 1, Index: 8})
		})
	}, LintOptions{Launch: SequenceOptions{Profile: ProfileFile}}, []string{"insert-after-pages"}},
	{"launch", func() *File { return small() }, LintOptions{Launch: SequenceOptions{Profile: ProfileKVM, VCPUs: 3}}, []string{"launch"}},
	{"order", insertLate, LintOptions{}, []string{"insert-after-pages", "order"}},
	{"page-2mib", func() *File {
		return small(insertAt(TypeVPContext, &PageData{GPA: 0x200000, Mask: 1, Flags: Page2MiB}))
	}, LintOptions{}, []string{"page-2mib"}},
	{"page-cpuid", func() *File {
		return small(insertAt(TypeVPContext, &PageData{GPA: 0x200000, Mask: 1, Kind: DataCPUIDXF}))
	}, LintOptions{}, []string{"page-cpuid"}},
	{"page-secrets", func() *File {
		return small(insertAt(TypeVPContext, &PageData{GPA: 0x200000, Mask: 1, Kind: DataSecrets}))
	}, LintOptions{}, []string{"page-secrets"}},
	{"page-shared", func() *File {
		return small(insertAt(TypeVPContext, &PageData{GPA: 0x200000, Mask: 1, Flags: PageShared}))
	}, LintOptions{}, []string{"page-shared"}},
	{"page-unmeasured", func() *File {
		return small(func(b *builder) {
			insertAt(TypeVPContext, &PageData{GPA: 0x200000, Mask: 1, Flags: PageUnmeasured, Data: b.blob(filler(pageSize, 6))})(b)
		})
	}, LintOptions{}, []string{"page-unmeasured"}},
	{"unmeasured zeros", func() *File {
		return small(insertAt(TypeVPContext, &PageData{GPA: 0x200000, Mask: 1, Flags: PageUnmeasured}))
	}, LintOptions{}, nil},
	{"platform-no-snp", func() *File {
		f := noContext()
		f.Headers[0] = &Platform{Mask: 1, Platform: PlatformNative, Version: 1}
		return f
	}, LintOptions{}, []string{"platform-no-snp"}},
	{"policy-command-line", func() *File { return withPolicy(0x20000) }, LintOptions{}, []string{"policy-command-line"}},
	{"policy, as the file says", func() *File { return withPolicy(0x20000) }, LintOptions{Launch: SequenceOptions{Profile: ProfileFile}}, nil},
	{"policy given", func() *File { return withPolicy(0x20000) }, LintOptions{Policy: ptr(0x20000)}, nil},
	{"policy-debug", func() *File { return withPolicy(0xb0000) }, LintOptions{Policy: ptr(0xb0000)}, []string{"policy-debug"}},
	{"policy-migration", func() *File { return withPolicy(0x70000) }, LintOptions{Policy: ptr(0x70000)}, []string{"policy-migration"}},
	{"policy-mismatch", func() *File { return small() }, LintOptions{Policy: ptr(0xb0000)}, []string{"policy-mismatch"}},
	{"policy-missing", func() *File { return small(func(b *builder) { b.f.Headers = slices.Delete(b.f.Headers, 1, 2) }) }, LintOptions{}, []string{"policy-missing"}},
	{"policy-reserved", func() *File { return withPolicy(0x10000) }, LintOptions{Policy: ptr(0x10000)}, []string{"policy-reserved"}},
	{"policy-reserved, high", func() *File { return withPolicy(0x4030000) }, LintOptions{Policy: ptr(0x4030000)}, []string{"policy-reserved"}},
	{"qemu-directive", func() *File { return small(insertAt(TypeParameterInsert, &Parameter{Kind: TypeDeviceTree, Index: 7})) }, LintOptions{}, []string{"qemu-directive"}},
	{"COCONUT's directive", func() *File { return small(insertAt(TypeParameterInsert, &Parameter{Kind: TypeDeviceTree, Index: 7})) }, LintOptions{QEMU: QEMUVersion{11, 1, true}}, nil},
	{"MADT, 10.2", func() *File { return small(insertAt(TypeParameterInsert, &Parameter{Kind: TypeMADT, Index: 7})) }, LintOptions{QEMU: QEMUVersion{Major: 10, Minor: 2}}, []string{"qemu-directive"}},
	{"MADT, 11.0", func() *File { return small(insertAt(TypeParameterInsert, &Parameter{Kind: TypeMADT, Index: 7})) }, LintOptions{QEMU: QEMUVersion{Major: 11}}, nil},
	{"qemu-no-native", func() *File {
		return small(insertAt(TypeGuestPolicy, &Platform{Mask: 2, Platform: PlatformNative, Version: 1}))
	}, LintOptions{QEMU: QEMUVersion{Major: 10, Minor: 1}}, []string{"qemu-no-native"}},
	{"native", func() *File {
		return small(insertAt(TypeGuestPolicy, &Platform{Mask: 2, Platform: PlatformNative, Version: 1}))
	}, LintOptions{}, nil},
	{"sev-features-host", func() *File { return withVMSA(func(v *measure.VMSA) { v.SEVFeatures = 0x29 }) }, LintOptions{}, []string{"sev-features-host"}},
	{"features, bsp", func() *File { return withVMSA(func(v *measure.VMSA) { v.SEVFeatures = 0x29 }) }, LintOptions{Launch: SequenceOptions{Profile: ProfileKVMBSP}}, nil},
	{"features, COCONUT's QEMU", func() *File { return withVMSA(func(v *measure.VMSA) { v.SEVFeatures = 0x29 }) }, LintOptions{QEMU: QEMUVersion{11, 1, true}}, nil},
	{"features, COCONUT's QEMU, upstream kernel", func() *File { return withVMSA(func(v *measure.VMSA) { v.SEVFeatures = 0x29 }) }, LintOptions{QEMU: QEMUVersion{11, 1, true}, Launch: SequenceOptions{Profile: ProfileKVM}}, []string{"sev-features-host"}},
	{"sev-features-snp", func() *File { return withVMSA(func(v *measure.VMSA) { v.SEVFeatures = 0x20 }) }, LintOptions{Launch: SequenceOptions{Profile: ProfileFile}}, []string{"sev-features-snp"}},
	{"shared-gpa-boundary", func() *File {
		return small(func(b *builder) { b.f.Headers[0].(*Platform).SharedGPABoundary = 1 << 46 })
	}, LintOptions{}, []string{"shared-gpa-boundary"}},
	{"vmsa-cr0", func() *File { return withVMSA(func(v *measure.VMSA) { v.CR0, v.RIP = 0x11, 0x1000 }) }, LintOptions{}, []string{"vmsa-cr0"}},
	{"vmsa-cr0 of COCONUT", func() *File { return withVMSA(func(v *measure.VMSA) { v.CR0, v.RIP = 0x31, 0x1000 }) }, LintOptions{}, nil},
	{"vmsa-changed", func() *File { return withVMSA(func(v *measure.VMSA) { v.CR4 = 0 }) }, LintOptions{}, []string{"vmsa-changed"}},
	{"vmsa-count", twoContexts, LintOptions{}, []string{"vmsa-count"}},
	{"vmsa-gpa", func() *File {
		return small(func(b *builder) { b.f.Headers[len(b.f.Headers)-1].(*VPContext).GPA = 0x90000 })
	}, LintOptions{Launch: SequenceOptions{Profile: ProfileKVM}}, []string{"launch", "vmsa-gpa"}},
	{"vmsa-gpa, direct", func() *File { return small() }, LintOptions{Launch: SequenceOptions{Profile: ProfileKVMDirect}}, []string{"launch", "vmsa-gpa"}},
	{"direct", direct, LintOptions{}, nil},
	{"vmsa-missing", noContext, LintOptions{Launch: SequenceOptions{CPUSignature: 1}}, []string{"vmsa-missing"}},
	{"vmsa-not-last", func() *File { return small(func(b *builder) { b.add(&PageData{GPA: 0x80000, Mask: 1}) }) }, LintOptions{}, []string{"vmsa-not-last"}},
	{"vmsa-not-last, area", func() *File {
		return small(func(b *builder) {
			v := b.f.Headers[len(b.f.Headers)-1]
			b.f.Headers = slices.Insert(b.f.Headers[:len(b.f.Headers)-1], 3, v)
		})
	}, LintOptions{}, []string{"vmsa-not-last"}},
	{"vmsa-registers", func() *File { return withVMSA(func(v *measure.VMSA) { v.XSS = 1 }) }, LintOptions{}, []string{"launch", "vmsa-registers"}},
	{"vmsa-several-platforms", withMask, LintOptions{Launch: SequenceOptions{Profile: ProfileFile}}, []string{"vmsa-several-platforms"}},
	{"vmsa-vmpl", func() *File {
		f := direct()
		v := must(measure.ParseVMSA(vmsaPage()))
		v.VMPL = 1
		for _, h := range f.Headers {
			if h, ok := h.(*VPContext); ok {
				copy(f.Data[h.Data.Offset:], v.Page())
			}
		}
		return f
	}, LintOptions{}, []string{"vmsa-vmpl"}},
}

func ptr(n uint64) *uint64 { return &n }

// withPolicy is a small file with another policy.
func withPolicy(policy uint64) *File {
	return small(func(b *builder) { b.f.Headers[1].(*GuestPolicy).Policy = policy })
}

// signedWith is a small file with an ID block that was changed after it was
// signed.
func signedWith(change func(*SNPIDBlock)) *File {
	key := must(measure.ParsePrivateKeyPEM([]byte(testIDKey)))
	f := must(small().Sign(IDBlockOptions{Launch: SequenceOptions{Profile: ProfileKVM}}, measure.SignOptions{IDKey: key}))
	if change != nil {
		change(f.IDBlock())
	}
	return f
}

// TestLint: each file has the findings that it was made for.
func TestLint(t *testing.T) {
	tested := make(map[string]bool)
	for _, c := range lintCases {
		t.Run(c.name, func(t *testing.T) {
			f, err := Parse(encodedOptional(c.f()))
			if err != nil {
				t.Fatal(err)
			}
			findings, err := f.Lint(c.o)
			if err != nil {
				t.Fatal(err)
			}
			if got := codes(findings); !slices.Equal(got, c.codes) {
				t.Errorf("found %v, expected %v: %+v", got, c.codes, findings)
			}
			rank := 0
			for _, f := range findings {
				tested[f.Code] = true
				if f.Explanation == "" || f.Fix == "" || f.Message == "" || f.Severity.rank() < rank {
					t.Errorf("found %+v", f)
				}
				rank = f.Severity.rank()
			}
		})
	}
	for _, r := range Rules() {
		if !tested[r.Code] {
			t.Errorf("no file has the finding %s", r.Code)
		}
	}
}

// TestRules: rules are listed in order, whole, once.
func TestRules(t *testing.T) {
	list := Rules()
	for i, r := range list {
		if i > 0 && list[i-1].Code >= r.Code {
			t.Errorf("%s stands after %s", r.Code, list[i-1].Code)
		}
		if r.Severity.rank() < 0 || !strings.HasSuffix(r.Explanation, ".") || !strings.HasSuffix(r.Fix, ".") {
			t.Errorf("%s: severity %q, explanation %q, fix %q", r.Code, r.Severity, r.Explanation, r.Fix)
		}
	}
}

// TestLintMisuse: options that mean nothing are errors.
func TestLintMisuse(t *testing.T) {
	for _, o := range []LintOptions{{Beside: []string{"floppy"}}, {Launch: SequenceOptions{Profile: "xen"}}} {
		if _, err := small().Lint(o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
	many := small(func(b *builder) {
		for range 100 {
			b.add(&Unknown{Kind: 0x3f0})
		}
	})
	if n := len(must(many.Lint(LintOptions{}))); n != maxFindings {
		t.Errorf("found %d findings of one kind, expected at most %d", n, maxFindings)
	}
}

// TestQEMUVersion reads versions.
func TestQEMUVersion(t *testing.T) {
	for text, want := range map[string]string{"11.1": "11.1", "10.1.2": "10.1", "coconut": "coconut"} {
		v, err := ParseQEMUVersion(text)
		if err != nil || v.String() != want {
			t.Errorf("%s: found %s, %v", text, v, err)
		}
	}
	for _, text := range []string{"", "11", "11.x", "11.1.2.3", "-1.0", "99999.1", "COCONUT"} {
		if _, err := ParseQEMUVersion(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

// TestDifferentFromIgvmmeasure: what the lint rules of the two codes say.
func TestDifferentFromIgvmmeasure(t *testing.T) {
	for i := range lintCases {
		c := &lintCases[i]
		f := c.f()
		want := 0
		for _, code := range codes(must(f.Lint(LintOptions{Launch: SequenceOptions{Profile: ProfileFile}}))) {
			if code == "area-large" || code == "vmsa-several-platforms" {
				want++
			}
		}
		if got := f.DifferentFromIgvmmeasure(); len(got) != want {
			t.Errorf("%s: found %q, expected %d reasons", c.name, got, want)
		}
	}
}
