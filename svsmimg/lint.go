package svsmimg

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/evtpm/evtpm/measure"
)

// A Severity says what a finding means for a launch.
type Severity string

// Severities.
const (
	// SeverityError is a launch that fails, or that another digest than the
	// predicted one comes out of.
	SeverityError Severity = "error"
	// SeverityWarning is something that is rarely meant, or that another tool takes
	// differently.
	SeverityWarning Severity = "warning"
	// SeverityNote is something to know.
	SeverityNote Severity = "note"
)

func (s Severity) rank() int {
	return slices.Index([]Severity{SeverityError, SeverityWarning, SeverityNote}, s)
}

// A Finding is something that lint says about a file.
type Finding struct {
	// Code names the kind of finding, stable: "policy-missing".
	Code     string   `json:"code"`
	Severity Severity `json:"severity"`
	// Message says what was found, and where.
	Message string `json:"message"`
	// Explanation says why it matters.
	Explanation string `json:"explanation"`
	// Fix says what to do.
	Fix string `json:"fix"`
}

// LintOptions say for which launch a file is looked at.
type LintOptions struct {
	// QEMU is the release that is to load the file; zero is [LatestQEMU].
	QEMU QEMUVersion

	// Launch says how the file is launched, its host profile among it. Profile
	// file takes no host's side.
	Launch SequenceOptions

	// Policy is the guest policy of QEMU's command line; nil is not known.
	Policy *uint64

	// Beside names what else QEMU is given: any of bios, pflash, kernel, initrd,
	// append, kernel-hashes, id-block.
	Beside []string
}

// A Rule is a kind of finding.
type Rule struct {
	Code        string   `json:"code"`
	Severity    Severity `json:"severity"`
	Explanation string   `json:"explanation"`
	Fix         string   `json:"fix"`
}

// Rules lists what lint looks for, in the order of their codes.
func Rules() []Rule {
	out := slices.Clone(rules)
	slices.SortFunc(out, func(a, b Rule) int { return cmp.Compare(a.Code, b.Code) })
	return out
}

// Lint looks for what would keep a file from starting, or make it measure
// differently from what is expected: errors first.
func (f *File) Lint(o LintOptions) ([]Finding, error) {
	if o.QEMU == (QEMUVersion{}) {
		o.QEMU = LatestQEMU
	}
	if o.Launch.Profile == "" {
		o.Launch.Profile = o.QEMU.Profile(f)
	}
	if _, err := ParseProfile(string(o.Launch.Profile)); err != nil {
		return nil, err
	}
	for _, b := range o.Beside {
		if _, ok := besides[b]; !ok {
			return nil, fmt.Errorf("beside %q: expected bios, pflash, kernel, initrd, append, kernel-hashes or id-block", clip(b))
		}
	}
	l := &linter{f: f, o: o, mask: f.Mask(PlatformSNP)}
	l.platforms()
	l.headers()
	l.besides()
	if l.mask != 0 {
		l.policy()
		l.pages()
		l.contexts()
		l.launch()
	}
	slices.SortStableFunc(l.found, func(a, b Finding) int { return cmp.Compare(a.Severity.rank(), b.Severity.rank()) })
	return l.found, nil
}

// maxFindings bounds how often one code is reported.
const maxFindings = 8

type linter struct {
	f     *File
	o     LintOptions
	mask  uint32
	found []Finding
	count map[string]int
}

// add reports a finding of a rule.
func (l *linter) add(code, format string, args ...any) {
	i := slices.IndexFunc(rules, func(r Rule) bool { return r.Code == code })
	if i < 0 {
		panic("svsmimg: lint rule " + code + " is not listed")
	}
	if l.count == nil {
		l.count = make(map[string]int)
	}
	if l.count[code]++; l.count[code] > maxFindings {
		return
	}
	l.found = append(l.found, Finding{code, rules[i].Severity, fmt.Sprintf(format, args...), rules[i].Explanation, rules[i].Fix})
}

// kvm reports whether the profile is a real host's, and not just the file's.
func (l *linter) kvm() bool { return l.o.Launch.Profile != ProfileFile }

// legacy reports whether the host builds the VMSAs itself.
func (l *linter) legacy() bool {
	return l.o.Launch.Profile == ProfileKVM || l.o.Launch.Profile == ProfileKVMBSP
}

func (l *linter) platforms() {
	v := l.o.QEMU
	if !v.loadsIGVM() {
		l.add("qemu-no-igvm", "QEMU %s has no IGVM loader", v)
		return
	}
	if l.mask == 0 {
		l.add("platform-no-snp", "the file is for %s", l.f.platformNames())
	}
	for _, h := range l.f.Headers {
		p, ok := h.(*Platform)
		if !ok {
			continue
		}
		if p.SharedGPABoundary != 0 && p.Platform == PlatformSNP {
			l.add("shared-gpa-boundary", "shared GPA boundary (vTOM) is 0x%x", p.SharedGPABoundary)
		}
		if p.Platform == PlatformNative && !v.loadsNative() {
			l.add("qemu-no-native", "the file is for NATIVE, which QEMU %s does not start", v)
		}
	}
	if n := l.f.platformsWithVMSA(); n > 1 {
		l.add("vmsa-several-platforms", "%d platforms have VMSAs", n)
	}
}

func (f *File) platformsWithVMSA() int {
	n := 0
	for _, h := range f.Headers {
		p, ok := h.(*Platform)
		if ok && (p.Platform == PlatformSNP || p.Platform == PlatformSEVES) && len(f.contexts(p.Mask)) > 0 {
			n++
		}
	}
	return n
}

// DifferentFromIgvmmeasure says what of a file makes igvmmeasure print another
// launch digest than that of [ProfileFile]; nothing in most files.
func (f *File) DifferentFromIgvmmeasure() []string {
	var out []string
	mask := f.Mask(PlatformSNP)
	areas := make(map[uint32]uint64)
	for _, h := range f.Headers {
		switch h := h.(type) {
		case *ParameterArea:
			areas[h.Index] = h.Bytes
		case *ParameterInsert:
			if size := areas[h.Index]; h.Mask&mask != 0 && size > pageSize {
				out = append(out, fmt.Sprintf("parameter area %d has 0x%x bytes, of which it measures one page", h.Index, size))
			}
		}
	}
	if n := f.platformsWithVMSA(); n > 1 {
		out = append(out, fmt.Sprintf("%d platforms have VMSAs, and it measures all", n))
	}
	return out
}

func (f *File) platformNames() string {
	var names []byte
	for _, h := range f.Headers {
		if p, ok := h.(*Platform); ok {
			if names != nil {
				names = append(names, ", "...)
			}
			names = append(names, p.Platform.String()...)
		}
	}
	return string(names)
}

// headers looks at what a loader must know.
func (l *linter) headers() {
	unsupported := make(map[HeaderType]bool)
	areas := make(map[uint32]*ParameterArea)
	inserted := make(map[uint32]bool)
	for _, h := range l.f.Headers {
		t := h.Type()
		if u, ok := h.(*Unknown); ok {
			l.add("header-unknown", "type 0x%x, %d bytes", uint32(u.Kind), len(u.Content))
		} else if !l.o.QEMU.takes(t) && l.o.QEMU.loadsIGVM() && !unsupported[t] {
			unsupported[t] = true
			l.add("qemu-directive", "%s is not known to QEMU %s", t, l.o.QEMU)
		}
		switch h := h.(type) {
		case *ParameterArea:
			areas[h.Index] = h
			if h.Bytes > pageSize {
				l.add("area-large", "parameter area %d has 0x%x bytes", h.Index, h.Bytes)
			}
			if h.Data.Size != 0 && !isZero(l.f.Bytes(h.Data)) {
				l.add("area-data", "parameter area %d has initial data", h.Index)
			}
		case *ParameterInsert:
			inserted[h.Index] = true
		}
	}
	var left []uint32
	for i := range areas {
		if !inserted[i] {
			left = append(left, i)
		}
	}
	slices.Sort(left)
	for _, i := range left {
		l.add("area-unused", "parameter area %d is never inserted", i)
	}
}

// besides names what QEMU can be given beside a file, and what comes of it.
var besides = map[string]string{
	"bios":          "QEMU refuses -bios together with an IGVM file",
	"pflash":        "QEMU refuses pflash together with an IGVM file",
	"kernel":        "-kernel is taken, but nothing of it is measured",
	"initrd":        "-initrd is taken, but nothing of it is measured",
	"append":        "-append is taken, but nothing of it is measured",
	"kernel-hashes": "kernel-hashes=on has no place to put the hashes",
	"id-block":      "id-block and id-auth of the command line stand against the file's SNP_ID_BLOCK",
}

func (l *linter) besides() {
	for _, b := range l.o.Beside {
		switch {
		case b == "id-block" && l.f.IDBlock() == nil:
		case b == "kernel" || b == "initrd" || b == "append":
			l.add("beside-unmeasured", "%s", besides[b])
		default:
			l.add("beside-conflict", "%s", besides[b])
		}
	}
}

// Bits of a guest policy (SNP ABI 56860, Guest Policy).
const (
	policyMustBeOne = 1 << 17
	policyMigrateMA = 1 << 18
	policyDebug     = 1 << 19
	policyReserved  = 26 // bits from here on are zero
	policyDefault   = 0x30000
)

func (l *linter) policy() {
	policy, ok := l.f.Policy(PlatformSNP)
	if !ok {
		l.add("policy-missing", "there is no GUEST_POLICY for SEV_SNP")
		return
	}
	if policy&policyDebug != 0 {
		l.add("policy-debug", "policy 0x%x has the debug bit (19) set", policy)
	}
	if policy&policyMigrateMA != 0 {
		l.add("policy-migration", "policy 0x%x has the migration agent bit (18) set", policy)
	}
	if policy&policyMustBeOne == 0 || policy>>policyReserved != 0 {
		l.add("policy-reserved", "policy is 0x%x", policy)
	}
	switch {
	case l.o.Policy != nil && *l.o.Policy != policy:
		l.add("policy-mismatch", "the file's policy is 0x%x, the command line's 0x%x", policy, *l.o.Policy)
	case l.o.Policy == nil && policy != policyDefault && l.kvm():
		l.add("policy-command-line", "the file's policy is 0x%x, QEMU's default 0x%x", policy, uint64(policyDefault))
	}
}

func (l *linter) pages() {
	var secrets, cpuid, large, shared, unmeasured int
	var insertAfter bool
	pages := 0
	for _, h := range l.f.Headers {
		switch h := h.(type) {
		case *ParameterInsert:
			insertAfter = insertAfter || h.Mask&l.mask != 0 && pages > 0
		case *PageData:
			if h.Mask&l.mask == 0 {
				continue
			}
			pages++
			switch h.Kind {
			case DataSecrets:
				secrets++
			case DataCPUID, DataCPUIDXF:
				cpuid++
			}
			if h.Flags&Page2MiB != 0 {
				large++
			}
			if h.Flags&PageShared != 0 {
				shared++
			}
			if h.Flags&PageUnmeasured != 0 && h.Data.Size != 0 && !isZero(l.f.Bytes(h.Data)) {
				if unmeasured++; unmeasured == 1 {
					l.add("page-unmeasured", "the page at 0x%x has contents and is not measured", h.GPA)
				}
			}
		}
	}
	if secrets != 1 {
		l.add("page-secrets", "found %d SECRETS pages", secrets)
	}
	if cpuid != 1 {
		l.add("page-cpuid", "found %d CPUID pages", cpuid)
	}
	if large > 0 {
		l.add("page-2mib", "found %d pages of 2 MiB", large)
	}
	if shared > 0 {
		l.add("page-shared", "found %d shared pages", shared)
	}
	if insertAfter {
		l.add("insert-after-pages", "a PARAMETER_INSERT stands after PAGE_DATA")
	}
	if _, err := l.f.firmware(l.mask); errors.Is(err, errNoFirmware) {
		l.add("firmware-missing", "no page of the SEV_SNP platform ends at 4 GiB")
	}
}

// stockFeatures are the SEV_FEATURES that an upstream kernel of 2026 offers.
const stockFeatures = measure.FeatureSNPActive | measure.FeatureDebugSwap | measure.FeatureSecureTSC

func (l *linter) contexts() {
	contexts := l.f.contexts(l.mask)
	switch {
	case len(contexts) == 0:
		l.add("vmsa-missing", "there is no VP_CONTEXT for SEV_SNP")
	case len(contexts) > 1 && l.kvm():
		l.add("vmsa-count", "found VP_CONTEXTs for %d vCPUs", len(contexts))
	}
	last := contexts[:min(1, len(contexts))]
	if len(last) == 1 {
		l.vmsaPlace(last[0])
	}
	for _, c := range contexts {
		v, err := measure.ParseVMSA(l.f.Bytes(c.Data))
		if err != nil {
			l.add("vmsa-registers", "vCPU %d: %v", c.VPIndex, err)
			continue
		}
		l.vmsa(c, v)
	}
}

// cr0Coconut is CR0 of a vCPU that starts in real mode in an SVSM (ET, NE); in
// protected mode bit 0 is set as well.
const cr0Coconut = 0x30

// vmsaPlace holds the address of the boot vCPU's VMSA, and its place in the file,
// against the host.
func (l *linter) vmsaPlace(c *VPContext) {
	direct := c.GPA != measure.VMSAGPA
	switch {
	case l.legacy() && direct:
		l.add("vmsa-gpa", "the VMSA is at 0x%x, host profile %s wants 0x%x", c.GPA, l.o.Launch.Profile, uint64(measure.VMSAGPA))
	case l.o.Launch.Profile == ProfileKVMDirect && !direct:
		l.add("vmsa-gpa", "the VMSA is at 0x%x, host profile kvm-direct wants it in guest memory", c.GPA)
	}
	after := false
	for _, h := range l.f.Headers {
		switch h := h.(type) {
		case *VPContext:
			after = after || h == c
		case *PageData:
			if after && h.Mask&l.mask != 0 && l.legacy() {
				l.add("vmsa-not-last", "the page at 0x%x stands after the VMSA", h.GPA)
				return
			}
		case *ParameterInsert:
			if after && h.Mask&l.mask != 0 && l.legacy() {
				l.add("vmsa-not-last", "parameter area %d is inserted after the VMSA", h.Index)
				return
			}
		}
	}
}

func (l *linter) vmsa(c *VPContext, v *measure.VMSA) {
	if v.SEVFeatures&measure.FeatureSNPActive == 0 {
		l.add("sev-features-snp", "vCPU %d: sev_features is 0x%x", c.VPIndex, v.SEVFeatures)
	}
	if rest := v.SEVFeatures &^ stockFeatures; rest != 0 && l.o.Launch.Profile == ProfileKVM {
		l.add("sev-features-host", "vCPU %d: sev_features is 0x%x; upstream kernels offer 0x%x, so 0x%x is missing", c.VPIndex, v.SEVFeatures, uint64(stockFeatures), rest)
	}
	if !l.legacy() {
		if v.VMPL != 0 {
			l.add("vmsa-vmpl", "vCPU %d: vmpl is %d", c.VPIndex, v.VMPL)
		}
		return
	}
	if err := checkKVM(v); err != nil {
		l.add("vmsa-registers", "vCPU %d: %v", c.VPIndex, err)
	}
	if v.CR0 != cr0Coconut && v.CR0 != cr0Coconut|1 && v.CS.Base+v.RIP != measure.ResetEIP {
		l.add("vmsa-cr0", "vCPU %d: cr0 is 0x%x", c.VPIndex, v.CR0)
	}
	for _, d := range v.Diff(asKVM(v)) {
		l.add("vmsa-changed", "vCPU %d: %s is 0x%x in the file, KVM measures 0x%x", c.VPIndex, d.Name, d.A, d.B)
	}
}

// launch compares digests.
func (l *linter) launch() {
	byFile, byQEMU := l.o.Launch, l.o.Launch
	byFile.Order, byQEMU.Order = OrderFile, OrderQEMU
	a, errA := l.f.Sequence(byFile)
	b, errB := l.f.Sequence(byQEMU)
	if errors.Join(errA, errB) != nil {
		l.add("launch", "%v", cmp.Or(errA, errB))
		return
	}
	if !sameSteps(a.Steps, b.Steps) || !sameSteps(a.VMSAs, b.VMSAs) {
		l.orders(a, b)
	}
	h := l.f.IDBlock()
	if h == nil {
		return
	}
	_, err := l.f.VerifyIDBlock(l.o.Launch)
	var other *DigestError
	switch {
	case errors.As(err, &other):
		l.add("id-block-digest", "%v", err)
	case errors.Is(err, errNoPolicy): // has its own finding
	case err != nil:
		l.add("id-block", "%v", err)
	}
	if h.AuthorKeyEnabled != (h.AuthorKey[0] != 0) {
		l.add("id-block-author", "AUTHOR_KEY_ENABLED is %t, the author key starts with 0x%02x", h.AuthorKeyEnabled, h.AuthorKey[0])
	}
}

// sameSteps reports whether two launches of one file have the same steps: those
// have the same digest, whatever it is.
func sameSteps(a, b []measure.Step) bool {
	return slices.EqualFunc(a, b, func(x, y measure.Step) bool {
		if x.Type != y.Type || x.GPA != y.GPA || x.Size != y.Size || len(x.Data) != len(y.Data) {
			return false
		}
		// Save areas are made for each launch; all other data is the file's.
		return len(x.Data) == 0 || &x.Data[0] == &y.Data[0] || x.Type == measure.PageVMSA && bytes.Equal(x.Data, y.Data)
	})
}

// orders compares the digests of a file's order and of QEMU's.
func (l *linter) orders(byFile, byQEMU *measure.Sequence) {
	a, errA := byFile.LaunchDigest()
	b, errB := byQEMU.LaunchDigest()
	switch err := errors.Join(errA, errB); {
	case err != nil:
		l.add("launch", "%v", err)
	case a != b:
		l.add("order", "in the order of the file the launch digest is %s, in QEMU's %s", a, b)
	}
}
