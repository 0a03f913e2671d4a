package svsmimg

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/evtpm/evtpm/measure"
)

// SequenceOptions say how a file is launched.
type SequenceOptions struct {
	// Profile is the host's; empty is what [File.InferProfile] says.
	Profile Profile

	// VCPUs is the number of vCPUs, 1 to 512. Zero is the number of the file's
	// VP_CONTEXTs, or 1 if there are none. It changes the launch on kvm alone.
	VCPUs int

	// CPUSignature is the CPUID 1.EAX of the CPU model, which vCPUs without
	// VP_CONTEXT have in RDX: needed on kvm for more vCPUs than the file has
	// contexts for.
	CPUSignature uint32

	// NativeZero measures pages without data with the AMD-SP's own page type for
	// zeros instead of as pages full of zeros: igvmmeasure's -n, right for
	// Vanadium, wrong for QEMU.
	NativeZero bool

	// Order is that of the file where it is empty and the profile is file, and
	// QEMU's for all other profiles.
	Order Order
}

// Mask is the compatibility mask of a platform; zero when the file is not for it.
func (f *File) Mask(p PlatformType) uint32 {
	for _, h := range f.Headers {
		if h, ok := h.(*Platform); ok && h.Platform == p {
			return h.Mask
		}
	}
	return 0
}

// Policy returns the guest policy that the file has for a platform.
func (f *File) Policy(p PlatformType) (policy uint64, ok bool) {
	mask := f.Mask(p)
	for _, h := range f.Headers {
		if h, isPolicy := h.(*GuestPolicy); isPolicy && h.Mask&mask != 0 {
			return h.Policy, true
		}
	}
	return 0, false
}

// IDBlock returns the file's SNP_ID_BLOCK; nil when there is none.
func (f *File) IDBlock() *SNPIDBlock {
	for _, h := range f.Headers {
		if h, ok := h.(*SNPIDBlock); ok {
			return h
		}
	}
	return nil
}

// contexts returns the VP_CONTEXTs of a platform in the order of their vCPUs.
func (f *File) contexts(mask uint32) []*VPContext {
	var out []*VPContext
	for _, h := range f.Headers {
		if h, ok := h.(*VPContext); ok && h.Mask&mask != 0 {
			out = append(out, h)
		}
	}
	slices.SortStableFunc(out, func(a, b *VPContext) int { return cmp.Compare(a.VPIndex, b.VPIndex) })
	return out
}

// InferProfile is the host profile that the file was made for, as far as it
// shows: a VMSA in guest memory needs a host that takes it from there.
func (f *File) InferProfile() Profile {
	for _, v := range f.contexts(f.Mask(PlatformSNP)) {
		if v.GPA != measure.VMSAGPA {
			return ProfileKVMDirect
		}
	}
	return ProfileKVM
}

// Sequence returns what the AMD-SP is given when the file is launched as a
// SEV-SNP VM. A file that the host would not start is an error.
func (f *File) Sequence(o SequenceOptions) (*measure.Sequence, error) {
	mask := f.Mask(PlatformSNP)
	if mask == 0 {
		return nil, errNotSNP
	}
	if o.Profile == "" {
		o.Profile = f.InferProfile()
	}
	if o.Order == "" {
		o.Order = OrderQEMU
		if o.Profile == ProfileFile {
			o.Order = OrderFile
		}
	}
	if o.Order != OrderFile && o.Order != OrderQEMU {
		return nil, fmt.Errorf("order %q: expected file or qemu", clip(string(o.Order)))
	}
	if o.VCPUs < 0 || o.VCPUs > measure.MaxVCPUs {
		return nil, fmt.Errorf("vCPUs: found %d, expected 1 to %d", o.VCPUs, measure.MaxVCPUs)
	}
	contexts := f.contexts(mask)
	if o.VCPUs == 0 {
		o.VCPUs = max(1, len(contexts))
	}
	b := &sequencer{f: f, mask: mask, nativeZero: o.NativeZero, qemu: o.Order == OrderQEMU, regions: f.regions(mask)}
	s := &measure.Sequence{Mode: measure.ModeSNP}
	var err error
	switch o.Profile {
	case ProfileFile:
		b.vmsas = true
	case ProfileKVMDirect:
		b.vmsas = true
		err = checkDirect(contexts)
	case ProfileKVM:
		s.VMSAs, err = f.kvmVMSAs(contexts, o.VCPUs, o.CPUSignature)
	case ProfileKVMBSP:
		if len(contexts) == 0 {
			return nil, errors.New("IGVM file has no VP_CONTEXT for SEV_SNP, the one that this host profile measures")
		}
		s.VMSAs, err = f.kvmVMSAs(contexts[:1], 1, o.CPUSignature)
	default:
		_, err = ParseProfile(string(o.Profile))
	}
	if err != nil {
		return nil, err
	}
	s.Steps = b.steps()
	if o.Profile == ProfileFile {
		splitVMSAs(s)
	}
	return s, s.Validate()
}

var errNotSNP = errors.New("IGVM file is not for SEV_SNP (QEMU: IGVM file does not describe a compatible supported platform)")

// checkDirect says what keeps a host from taking the VMSA out of the file.
func checkDirect(contexts []*VPContext) error {
	switch {
	case len(contexts) != 1:
		return fmt.Errorf("host profile kvm-direct: found %d VP_CONTEXTs, expected one: KVM takes the boot vCPU's alone", len(contexts))
	case contexts[0].GPA == measure.VMSAGPA:
		return fmt.Errorf("host profile kvm-direct: found the VMSA at 0x%x, where KVM builds its own; expected it in guest memory. Use host profile kvm or kvm-bsp, or rebuild the image", contexts[0].GPA)
	}
	return nil
}

// splitVMSAs moves the VMSAs at the end of the steps to where a sequence keeps
// them.
func splitVMSAs(s *measure.Sequence) {
	n := len(s.Steps)
	for n > 0 && s.Steps[n-1].Type == measure.PageVMSA {
		n--
	}
	s.Steps, s.VMSAs = s.Steps[:n:n], s.Steps[n:]
}

// A sequencer turns a file's directives into launch steps.
type sequencer struct {
	f          *File
	mask       uint32
	nativeZero bool
	qemu       bool
	vmsas      bool // VP_CONTEXTs are pages of their own
	regions    regions

	out     []measure.Step
	pending []measure.Step // pages that QEMU has not given to the AMD-SP yet
	last    *PageData      // of pending
	lastAt  int            // its place among the headers
}

func (b *sequencer) steps() []measure.Step {
	areas := make(map[uint32]uint64)
	most := 0 // at once, since a hostile file has a step for every header
	for _, h := range b.f.Headers {
		if mask, ok := maskOf(h); ok && mask&b.mask != 0 {
			most++
		}
	}
	b.out = make([]measure.Step, 0, most)
	for i, h := range b.f.Headers {
		switch h := h.(type) {
		case *ParameterArea:
			areas[h.Index] = h.Bytes
		case *PageData:
			if h.Mask&b.mask != 0 {
				b.page(i, h)
			}
		case *ParameterInsert:
			if h.Mask&b.mask != 0 {
				if !b.qemu {
					b.flush()
				}
				b.out = append(b.out, measure.Step{
					Type: measure.PageUnmeasured, GPA: h.GPA, Size: areas[h.Index], Source: fmt.Sprintf("parameter area %d", h.Index),
				})
			}
		case *VPContext:
			if h.Mask&b.mask != 0 && b.vmsas {
				// Hosts that take VMSAs from the file give igvmmeasure's digest, and
				// so keep the place of a VMSA.
				b.flush()
				b.out = append(b.out, measure.Step{
					Type: measure.PageVMSA, GPA: h.GPA, Size: pageSize, Data: b.f.Bytes(h.Data), Source: fmt.Sprintf("vCPU %d", h.VPIndex),
				})
			}
		}
	}
	b.flush()
	return b.out
}

// page adds a page to the pending ones, or ends them and starts anew: QEMU's rule
// (backends/igvm.c, qigvm_page_attrs_equal).
func (b *sequencer) page(i int, p *PageData) {
	if l := b.last; l != nil && (b.lastAt != i-1 || l.GPA+l.Bytes() != p.GPA || l.Flags != p.Flags || l.Kind != p.Kind ||
		l.Mask != p.Mask || (l.Data.Size == 0) != (p.Data.Size == 0)) {
		b.flush()
	}
	b.last, b.lastAt = p, i
	step := measure.Step{Type: b.pageType(p), GPA: p.GPA, Size: p.Bytes(), Source: b.regions.pageName(p)}
	if step.Type == measure.PageNormal {
		step.Data = b.f.Bytes(p.Data)
	}
	if n := len(b.pending); n > 0 && b.join(&b.pending[n-1], &step, p) {
		return
	}
	b.pending = append(b.pending, step)
}

// join lengthens a step by the page after it, where both are one piece of the
// file.
func (b *sequencer) join(s, next *measure.Step, p *PageData) bool {
	if s.Type != next.Type || s.GPA+s.Size != next.GPA || s.Source != next.Source {
		return false
	}
	if next.Data == nil {
		if s.Data != nil {
			return false
		}
		s.Size += next.Size
		return true
	}
	if s.Data == nil {
		return false
	}
	// The previous step's data ends where this page's starts.
	end := uint64(p.Data.Offset)
	start := end - uint64(len(s.Data))
	if end < uint64(len(s.Data)) || &b.f.Data[start] != &s.Data[0] {
		return false
	}
	s.Size += next.Size
	s.Data = b.f.Data[start : end+next.Size : end+next.Size]
	return true
}

func (b *sequencer) flush() {
	b.out = append(b.out, b.pending...)
	b.pending, b.last = b.pending[:0], nil
}

// pageType is what QEMU and igvmmeasure measure a page as. QEMU's own type for
// pages of zeros ends as NORMAL in KVM. The shared flag changes nothing in
// either.
func (b *sequencer) pageType(p *PageData) measure.PageType {
	switch {
	case p.Kind == DataSecrets:
		return measure.PageSecrets
	case p.Kind == DataCPUID || p.Kind == DataCPUIDXF:
		return measure.PageCPUID
	case p.Flags&PageUnmeasured != 0:
		return measure.PageUnmeasured
	case p.Data.Size == 0 && b.nativeZero:
		return measure.PageZero
	}
	return measure.PageNormal
}
