package explain

import (
	"crypto/sha256"
	"fmt"
	"sort"
	"strings"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

// A prefix is a variant of everything before the VMSAs.
type prefix struct {
	mode     measure.Mode
	vmm      measure.VMM
	firmware *ovmf.Image
	hashes   *measure.KernelHashes
	diffs    []Difference
}

// A cpu is a variant of what every VMSA derives from.
type cpu struct {
	vcpu  measure.VCPU
	gpa   uint64
	diffs []Difference
	cost  int // at least the number of differences
}

// firmwareChoice, bootChoice are one axis' variants.
type firmwareChoice struct {
	image *ovmf.Image
	diffs []Difference
}

type bootChoice struct {
	hashes *measure.KernelHashes
	diffs  []Difference
}

// maxCost bounds how many parameters are varied at once, the vCPU count not
// counted; maxCPUDiffs how many of them the VMSAs derive from.
const (
	maxCost     = 3
	maxCPUDiffs = 2
)

// prefixes lists the variants before the VMSAs, few differences first.
func (s *search) prefixes() []prefix {
	var out []prefix
	for _, mode := range s.modes {
		var modeDiffs []Difference
		if mode != s.base.Options.Mode {
			modeDiffs = []Difference{{"mode", string(s.base.Options.Mode), string(mode), fmt.Sprintf("mode %s instead of %s", mode, s.base.Options.Mode)}}
		}
		for _, vmm := range []measure.VMM{measure.VMMQEMU, measure.VMMEC2, measure.VMMGCE} {
			var vmmDiffs []Difference
			if vmm != s.base.Options.VMM {
				vmmDiffs = []Difference{{"vmm", string(s.base.Options.VMM), string(vmm), fmt.Sprintf("VMM %s instead of %s", vmm, s.base.Options.VMM)}}
			}
			for _, fw := range s.firmwares() {
				for _, boot := range s.boots(fw.image, mode) {
					diffs := join(modeDiffs, vmmDiffs, fw.diffs, boot.diffs)
					if len(diffs) > maxCost {
						continue
					}
					out = append(out, prefix{mode, vmm, fw.image, boot.hashes, diffs})
				}
			}
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return len(out[i].diffs) < len(out[j].diffs) })
	return out
}

func join(lists ...[]Difference) []Difference {
	var out []Difference
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}

func (s *search) firmwares() []firmwareChoice {
	out := []firmwareChoice{{image: s.base.Firmware}}
	for _, f := range s.candidates.Firmwares {
		out = append(out, firmwareChoice{f.Image, []Difference{{"firmware", s.base.FirmwareName, f.Name, "the firmware of " + f.Name}}})
	}
	return out
}

// boots lists the variants of the direct boot that a firmware can measure.
func (s *search) boots(img *ovmf.Image, mode measure.Mode) []bootChoice {
	base := s.base.Boot
	var out []bootChoice
	if base == nil {
		out = append(out, bootChoice{})
	} else {
		out = append(out, bootChoice{diffs: []Difference{{"kernel-hashes", "on", "off", "kernel hashes off"}}})
	}
	if img.CheckKernelHashes(mode) != nil {
		return out
	}
	if base == nil {
		for _, b := range s.candidates.Boots {
			for _, h := range s.bootHashes(&b) {
				d := Difference{"kernel-hashes", "off", "on", "kernel hashes on with kernel " + b.KernelName}
				out = append(out, bootChoice{h.hashes, join([]Difference{d}, h.diffs)})
			}
		}
		return out
	}
	return append(out, s.bootHashes(base)...)
}

// bootHashes lists the variants of a direct boot.
func (s *search) bootHashes(base *Boot) []bootChoice {
	files := func(field, baseName string, baseHash [32]byte, candidates []File) []fileChoice {
		out := []fileChoice{{hash: baseHash}}
		for _, f := range candidates {
			if f.SHA256 != baseHash {
				out = append(out, fileChoice{f.SHA256, []Difference{{field, baseName, f.Name, fmt.Sprintf("the %s %s", field, f.Name)}}})
			}
		}
		return out
	}
	initrds := s.candidates.Initrds
	if base.InitrdName != "" {
		initrds = append([]File{{"", measure.NoInitrd}}, initrds...)
	}
	var out []bootChoice
	for _, k := range files("kernel", base.KernelName, base.Kernel, s.candidates.Kernels) {
		for _, i := range files("initrd", base.InitrdName, base.Initrd, initrds) {
			if len(i.diffs) > 0 && i.diffs[0].Found == "" {
				i.diffs = []Difference{{"initrd", base.InitrdName, "", "no initrd"}}
			}
			for _, c := range cmdlines(base.Cmdline, s.candidates.Cmdlines) {
				h := &measure.KernelHashes{Kernel: k.hash, Initrd: i.hash, Cmdline: c.hash}
				out = append(out, bootChoice{h, join(k.diffs, i.diffs, c.diffs)})
			}
		}
	}
	return out
}

type fileChoice struct {
	hash  [32]byte
	diffs []Difference
}

// cmdlines lists what is known to become of a command line on its way.
func cmdlines(base string, candidates []string) []fileChoice {
	out := []fileChoice{{hash: hashString(base + "\x00")}}
	seen := map[[32]byte]bool{out[0].hash: true}
	add := func(measured, found, text string) {
		h := hashString(measured)
		if seen[h] {
			return
		}
		seen[h] = true
		out = append(out, fileChoice{h, []Difference{{"cmdline", base, found, text}}})
	}
	variant := func(v, text string) { add(v+"\x00", v, text) }

	trimmed := strings.TrimSpace(base)
	variant(base+"\n", "a cmdline with a trailing newline")
	variant(base+"\r\n", "a cmdline with a trailing carriage return and newline")
	variant(strings.TrimRight(base, "\r\n"), "a cmdline without its trailing newline")
	variant(base+" ", "a cmdline with a trailing space")
	variant(" "+base, "a cmdline with a leading space")
	variant(" "+base+" ", "a cmdline with a leading and a trailing space")
	variant(strings.TrimRight(base, " \t"), "a cmdline without its trailing space")
	variant(strings.TrimLeft(base, " \t"), "a cmdline without its leading space")
	variant(trimmed, "a cmdline without leading and trailing space")
	variant(trimmed+"\n", "a trimmed cmdline with a trailing newline")
	variant(strings.Join(strings.Fields(base), " "), "a cmdline with single spaces between its words")
	variant(strings.ReplaceAll(base, "\t", " "), "a cmdline with spaces instead of tabs")
	variant(strings.Join(strings.Fields(base), "  "), "a cmdline with double spaces between its words")
	variant(strings.ReplaceAll(base, `"`, ""), "a cmdline without its quotation marks")
	variant(strings.ReplaceAll(base, `'`, ""), "a cmdline without its apostrophes")
	variant(`"`+base+`"`, "a cmdline in quotation marks")
	variant(`'`+base+`'`, "a cmdline in apostrophes")
	variant(strings.ReplaceAll(base, `\`, ""), "a cmdline without its backslashes")
	variant(strings.ReplaceAll(base, ",,", ","), "a cmdline with single commas instead of double ones")
	variant(strings.ReplaceAll(base, ",", ",,"), "a cmdline with double commas instead of single ones")
	variant(base+" initrd=initrd", `a cmdline with "initrd=initrd" appended`)
	variant("", "an empty cmdline")
	add(base, base, "a cmdline hashed without its final NUL")
	add(base+"\x00\x00", base, "a cmdline hashed with two final NULs")
	for _, c := range candidates {
		variant(c, fmt.Sprintf("the cmdline %q", c))
	}
	return out
}

func hashString(s string) [32]byte { return sha256.Sum256([]byte(s)) }

// featureNames are the bits of SEV_FEATURES in words.
var featureNames = []struct {
	bit  uint64
	name string
}{
	{measure.FeatureVTOM, "vTOM"},
	{measure.FeatureReflectVC, "reflect #VC"},
	{measure.FeatureRestrictedInjection, "restricted injection"},
	{measure.FeatureAlternateInjection, "alternate injection"},
	{measure.FeatureDebugSwap, "debug swap"},
	{measure.FeaturePreventHostIBS, "prevent host IBS"},
	{measure.FeatureBTBIsolation, "BTB isolation"},
	{measure.FeatureVMPLSSS, "VMPL SSS"},
	{measure.FeatureSecureTSC, "secure TSC"},
	{measure.FeatureVMGEXITParameter, "VMGEXIT parameter"},
	{measure.FeatureIBSVirtualization, "IBS virtualization"},
	{measure.FeatureVMSARegProt, "VMSA register protection"},
	{measure.FeatureSMTProtection, "SMT protection"},
}

// FeatureText says features in words: "0x21 (debug swap)".
func FeatureText(features uint64) string {
	var names []string
	if features&measure.FeatureSNPActive == 0 {
		names = append(names, "SNPActive off")
	}
	for _, f := range featureNames {
		if features&f.bit != 0 {
			names = append(names, f.name)
		}
	}
	if len(names) == 0 {
		return fmt.Sprintf("0x%x", features)
	}
	return fmt.Sprintf("0x%x (%s)", features, strings.Join(names, ", "))
}

// commonFeatures are what hosts are known to have given; all other combinations
// of defined bits come after them.
var commonFeatures = []uint64{0x1, 0x21, 0x201, 0x221, 0x9, 0x29, 0x4001, 0x8001, 0x5, 0x3, 0x11, 0x0}

// features lists SEV_FEATURES to try, the likelier ones first. rare says from
// where on they are rare.
func features(base uint64) (list []uint64, rare int) {
	seen := map[uint64]bool{base: true}
	add := func(f uint64) {
		if !seen[f] {
			seen[f] = true
			list = append(list, f)
		}
	}
	for _, f := range commonFeatures {
		add(f)
	}
	for _, f := range featureNames {
		add(base ^ f.bit)
	}
	rare = len(list)
	for set := range uint64(1) << len(featureNames) {
		f := uint64(measure.FeatureSNPActive)
		for i, n := range featureNames {
			if set>>i&1 != 0 {
				f |= n.bit
			}
		}
		add(f)
	}
	return list, rare
}

// cpus lists the variants of the VMSAs for a VMM, few differences first.
func (s *search) cpus(mode measure.Mode, vmm measure.VMM) []cpu {
	o := s.base.Options
	base := measure.VCPU{VMM: vmm, Signature: o.CPUSignature, Features: s.baseFeatures(), NoFPU: o.NoFPU, ZeroRDX: o.ZeroRDX}
	if mode == measure.ModeSEVES {
		base.Features = 0
	}
	gpa := o.VMSAGPA
	if gpa == 0 {
		gpa = measure.VMSAGPA
	}
	axes := [][]cpuChange{{{}}, {{}}, {{}}, {{}}, {{}}}
	const signatureAxis, featureAxis, fpuAxis, rdxAxis, gpaAxis = 0, 1, 2, 3, 4
	if vmm == measure.VMMQEMU {
		likely, rare := s.signatures()
		for i, sig := range append(likely, rare...) {
			change := cpuChange{
				apply: func(c *cpu) { c.vcpu.Signature = sig.Value },
				diffs: []Difference{{"cpu", s.cpuName(), sig.Name, fmt.Sprintf("CPU %s instead of %s", sig.Name, s.cpuName())}},
			}
			if i >= len(likely) {
				change.extra = 1 // tried with one other difference at most
			}
			axes[signatureAxis] = append(axes[signatureAxis], change)
		}
		text := "no x87 and SSE state in the VMSAs (KVM's older VM types)"
		if o.NoFPU {
			text = "x87 and SSE state in the VMSAs (KVM's newer VM types)"
		}
		axes[fpuAxis] = append(axes[fpuAxis], cpuChange{
			apply: func(c *cpu) { c.vcpu.NoFPU = !o.NoFPU },
			diffs: []Difference{{"fpu", onOff(!o.NoFPU), onOff(o.NoFPU), text}},
		})
	}
	if vmm == measure.VMMEC2 {
		axes[rdxAxis] = append(axes[rdxAxis], cpuChange{
			apply: func(c *cpu) { c.vcpu.ZeroRDX = !o.ZeroRDX },
			diffs: []Difference{{"rdx", rdx(o.ZeroRDX), rdx(!o.ZeroRDX), fmt.Sprintf("RDX %s in the VMSAs instead of %s", rdx(!o.ZeroRDX), rdx(o.ZeroRDX))}},
		})
	}
	if mode == measure.ModeSNP {
		list, rare := features(base.Features)
		for i, f := range list {
			d := Difference{"guest-features", hex(base.Features), hex(f), "guest features " + FeatureText(f)}
			change := cpuChange{apply: func(c *cpu) { c.vcpu.Features = f }, diffs: []Difference{d}}
			if i >= rare {
				// Thousands: tried only when nothing else is varied.
				change.extra = maxCost - 1
			}
			axes[featureAxis] = append(axes[featureAxis], change)
		}
		for _, g := range []uint64{measure.VMSAGPA, 0xFFFFFFFFFF000} {
			if g != gpa {
				axes[gpaAxis] = append(axes[gpaAxis], cpuChange{
					apply: func(c *cpu) { c.gpa = g },
					diffs: []Difference{{"vmsa-gpa", hex(gpa), hex(g), fmt.Sprintf("VMSAs measured at 0x%x instead of 0x%x", g, gpa)}},
				})
			}
		}
	}
	var out []cpu
	var build func(axis int, c cpu)
	build = func(axis int, c cpu) {
		if axis == len(axes) {
			out = append(out, c)
			return
		}
		for _, change := range axes[axis] {
			next := c
			next.diffs = join(c.diffs, change.diffs)
			next.cost += len(change.diffs) + change.extra
			if len(next.diffs) > maxCPUDiffs || next.cost > maxCost {
				continue
			}
			if change.apply != nil {
				change.apply(&next)
			}
			build(axis+1, next)
		}
	}
	build(0, cpu{vcpu: base, gpa: gpa})
	sort.SliceStable(out, func(i, j int) bool { return out[i].cost < out[j].cost })
	return out
}

// cpuChange is one value of an axis. extra makes it count for more than its
// differences.
type cpuChange struct {
	apply func(*cpu)
	diffs []Difference
	extra int
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func rdx(zero bool) string {
	if zero {
		return "0"
	}
	return "0x600"
}

func hex(n uint64) string { return fmt.Sprintf("0x%x", n) }

func (s *search) cpuName() string {
	if s.base.CPUModel != "" {
		return s.base.CPUModel
	}
	return fmt.Sprintf("0x%x", s.base.Options.CPUSignature)
}

// baseFeatures is the SEV_FEATURES of the expected launch.
func (s *search) baseFeatures() uint64 {
	o := s.base.Options
	if o.GuestFeatures == 0 && !o.RawFeatures {
		return measure.FeatureSNPActive
	}
	return o.GuestFeatures
}

// processors are those that run SEV-SNP, by their own signatures: what vCPUs show
// that QEMU gives the CPU model "host". (Steppings as in attestation reports and
// microcode patch levels. Milan's is that of QEMU's EPYC-Milan.)
var processors = []Signature{
	{"host on Milan-X (0xa00f12)", 0xa00f12},
	{"host on Genoa (0xa10f11)", 0xa10f11},
	{"host on Genoa-X (0xa10f12)", 0xa10f12},
	{"host on Bergamo or Siena (0xaa0f02)", 0xaa0f02},
	{"host on Turin (0xb00f21)", 0xb00f21},
	{"host on Turin Dense (0xb10f10)", 0xb10f10},
}

// signatures lists the other CPU models by signature, then what is rarer.
func (s *search) signatures() (likely, rare []Signature) {
	seen := map[uint32]bool{s.base.Options.CPUSignature: true}
	add := func(into *[]Signature, sig Signature) {
		if !seen[sig.Value] {
			seen[sig.Value] = true
			*into = append(*into, sig)
		}
	}
	for _, sig := range s.candidates.Signatures {
		add(&likely, sig)
	}
	for _, m := range measure.CPUModels() {
		add(&likely, Signature{m.Name, m.Signature()})
	}
	add(&likely, Signature{"with signature 0", 0})
	for _, sig := range processors {
		add(&rare, sig)
	}
	return likely, rare
}
