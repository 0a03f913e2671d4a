package svsmimg

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/evtpm/evtpm/measure"
)

// maxErrors bounds how many faults of one file are reported.
const maxErrors = 16

// A checker looks at a file as a whole: what headers mean together.
type checker struct {
	f         *File
	errs      []error
	platforms map[uint32]PlatformType // by mask
	all       uint32                  // masks of all platforms
	areas     map[uint32]*area
	policies  uint32 // platforms that have a policy
	idBlocks  uint32
	contexts  map[uint32][]uint16 // vCPU indices by platform
	pages     uint64
}

type area struct {
	bytes    uint64
	inserted bool
}

// check says what makes a file one that no loader takes, or that two loaders
// take in two ways.
func (f *File) check() error {
	c := &checker{f: f, platforms: make(map[uint32]PlatformType), areas: make(map[uint32]*area), contexts: make(map[uint32][]uint16)}
	at := sectionPlatform
	for i, h := range f.Headers {
		if len(c.errs) >= maxErrors {
			break
		}
		if s := h.Type().section(); s != sectionNone {
			if s < at {
				c.fail(i, h, "found in the %s section, expected in the %s section before it", at, s)
			}
			at = s
		}
		c.header(i, h)
	}
	if len(c.platforms) == 0 {
		c.errs = append(c.errs, errors.New("IGVM file: found no SUPPORTED_PLATFORM header"))
	}
	if len(f.Data) == 0 {
		c.errs = append(c.errs, errors.New("IGVM file: found no file data: loaders refuse such a file"))
	}
	if c.pages > MaxPages {
		c.errs = append(c.errs, fmt.Errorf("IGVM file: found %d pages of guest memory, expected at most %d", c.pages, MaxPages))
	}
	c.checkContexts()
	if len(c.errs) == 0 {
		c.checkOverlap()
	}
	return errors.Join(c.errs...)
}

func (c *checker) fail(i int, h Header, format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf("IGVM header %d (%s): %w", i, h.Type(), fmt.Errorf(format, args...)))
}

func (c *checker) header(i int, h Header) {
	if mask, ok := maskOf(h); ok && h.Type() != TypeSupportedPlatform && mask&c.all == 0 {
		c.fail(i, h, "found compatibility mask 0x%x, which names no platform of the file (0x%x)", mask, c.all)
		return
	}
	if b := blobOf(h); b != nil && uint64(b.Offset)+uint64(b.Size) > uint64(len(c.f.Data)) {
		c.fail(i, h, "found %d bytes at 0x%x of the file data, which has %d", b.Size, b.Offset, len(c.f.Data))
		return
	}
	switch h := h.(type) {
	case *Platform:
		c.platform(i, h)
	case *GuestPolicy:
		if c.policies&h.Mask&c.all != 0 {
			c.fail(i, h, "found a second one for a platform; loaders differ in which of them they take")
		}
		c.policies |= h.Mask
	case *RelocatableRegion:
		c.relocatable(i, h)
	case *PageTableRelocation:
		if h.GPA%pageSize != 0 || h.Size%pageSize != 0 || h.UsedSize%pageSize != 0 || h.UsedSize > h.Size || h.GPA+h.Size < h.GPA {
			c.fail(i, h, "found 0x%x bytes used of 0x%x at 0x%x, expected whole pages", h.UsedSize, h.Size, h.GPA)
		}
	case *CoRIM:
		if h.Kind != TypeCoRIMDocument && h.Kind != TypeCoRIMSignature {
			c.fail(i, h, "found a CoRIM header of another type")
		}
	case *ParameterArea:
		c.area(i, h)
	case *PageData:
		c.page(i, h)
	case *ParameterInsert:
		c.insert(i, h)
	case *Parameter:
		c.parameter(i, h)
	case *VPContext:
		c.context(i, h)
	case *RequiredMemory:
		c.rangeOf(i, h, h.GPA, uint64(h.Bytes))
		if h.Flags&^1 != 0 {
			c.fail(i, h, "found flags 0x%x, expected 0 or 1", h.Flags)
		}
	case *ErrorRange:
		c.rangeOf(i, h, h.GPA, uint64(h.Bytes))
	case *SNPIDBlock:
		if c.platforms[h.Mask] != PlatformSNP {
			c.fail(i, h, "found compatibility mask 0x%x, expected that of SEV_SNP alone", h.Mask)
		}
		if c.idBlocks&h.Mask != 0 {
			c.fail(i, h, "found a second one (QEMU: Multiple ID blocks encountered in IGVM file)")
		}
		c.idBlocks |= h.Mask
	case *Unknown:
		if _, known := contentSizes[h.Kind]; known || h.Kind&typeOptional != 0 {
			c.fail(i, h, "found the type of a known header")
		}
	}
}

func (c *checker) platform(i int, p *Platform) {
	switch {
	case bits.OnesCount32(p.Mask) != 1:
		c.fail(i, p, "found compatibility mask 0x%x, expected exactly one bit", p.Mask)
	case c.all&p.Mask != 0:
		c.fail(i, p, "found compatibility mask 0x%x, which another platform has already", p.Mask)
	case p.Platform > PlatformCCA:
		c.fail(i, p, "found %s, expected 0 to %d", p.Platform, PlatformCCA)
	case p.HighestVTL != 0 && p.HighestVTL != 2:
		c.fail(i, p, "found highest VTL %d, expected 0 or 2", p.HighestVTL)
	case p.Version != 1:
		c.fail(i, p, "found platform version %d, expected 1", p.Version)
	case p.SharedGPABoundary != 0 && (p.Platform == PlatformNative || p.Platform == PlatformVSM):
		c.fail(i, p, "found shared GPA boundary 0x%x for %s, expected 0", p.SharedGPABoundary, p.Platform)
	case (p.Platform == PlatformCCA) != (c.f.Architecture == ArchAArch64) && p.Platform != PlatformVSM:
		c.fail(i, p, "found %s in a file for another architecture", p.Platform)
	}
	for mask, other := range c.platforms {
		if other == p.Platform && mask != p.Mask {
			c.fail(i, p, "found %s a second time; loaders differ in which of them they take", p.Platform)
		}
	}
	c.platforms[p.Mask] = p.Platform
	c.all |= p.Mask
}

func (c *checker) relocatable(i int, h *RelocatableRegion) {
	switch {
	case h.Alignment == 0 || h.Alignment%pageSize != 0:
		c.fail(i, h, "found alignment 0x%x, expected a multiple of %d", h.Alignment, pageSize)
	case h.Size == 0 || h.Size%pageSize != 0 || h.GPA+h.Size < h.GPA:
		c.fail(i, h, "found 0x%x bytes at 0x%x, expected whole pages", h.Size, h.GPA)
	case h.GPA%h.Alignment != 0 || h.MinGPA%h.Alignment != 0 || h.MaxGPA%h.Alignment != 0:
		c.fail(i, h, "found addresses 0x%x, 0x%x to 0x%x, expected multiples of the alignment 0x%x", h.GPA, h.MinGPA, h.MaxGPA, h.Alignment)
	}
}

// rangeOf checks a range of guest memory, and reports whether it is one.
func (c *checker) rangeOf(i int, h Header, gpa, size uint64) bool {
	switch {
	case gpa%pageSize != 0 || size == 0 || size%pageSize != 0:
		c.fail(i, h, "found 0x%x bytes at 0x%x, expected whole pages", size, gpa)
	case gpa+size-1 < gpa:
		c.fail(i, h, "0x%x bytes at 0x%x run over the end of the address space", size, gpa)
	default:
		return true
	}
	return false
}

func (c *checker) page(i int, p *PageData) {
	size := p.Bytes()
	switch {
	case p.Flags&^(Page2MiB|PageUnmeasured|PageShared) != 0:
		c.fail(i, p, "found flags 0x%x, expected reserved bits to be zero", p.Flags)
	case p.Kind > DataCPUIDXF:
		c.fail(i, p, "found %s, expected 0 to %d", p.Kind, DataCPUIDXF)
	case p.Kind != DataNormal && p.Flags&Page2MiB != 0:
		c.fail(i, p, "found %s as a 2 MiB page", p.Kind)
	case p.GPA%size != 0:
		c.fail(i, p, "found address 0x%x, expected a multiple of 0x%x", p.GPA, size)
	case p.Data.Size != 0 && uint64(p.Data.Size) != size:
		c.fail(i, p, "found %d bytes of data, expected %d", p.Data.Size, size)
	case p.GPA+size-1 < p.GPA:
		c.fail(i, p, "0x%x bytes at 0x%x run over the end of the address space", size, p.GPA)
	}
	c.pages += size / pageSize
}

func (c *checker) area(i int, a *ParameterArea) {
	switch {
	case a.Bytes == 0 || a.Bytes%pageSize != 0 || a.Bytes > maxParameterArea:
		c.fail(i, a, "found %d bytes, expected a multiple of %d up to %d", a.Bytes, pageSize, maxParameterArea)
	case a.Data.Size != 0 && uint64(a.Data.Size) != a.Bytes:
		c.fail(i, a, "found %d bytes of data, expected %d", a.Data.Size, a.Bytes)
	case c.areas[a.Index] != nil:
		c.fail(i, a, "found index %d a second time", a.Index)
	}
	c.areas[a.Index] = &area{bytes: a.Bytes}
}

// parameterBytes is how much a loader writes at least.
func (t HeaderType) parameterBytes() uint64 {
	switch t {
	case TypeVPCount, TypeEnvironmentInfo:
		return 4
	case TypeMMIORanges:
		return 32
	case TypeMemoryMap:
		return 24
	}
	return 1
}

func (c *checker) parameter(i int, p *Parameter) {
	if !p.Kind.isParameter() {
		c.fail(i, p, "found a parameter of another type")
		return
	}
	switch a := c.areas[p.Index]; {
	case a == nil:
		c.fail(i, p, "found parameter area %d, which no PARAMETER_AREA before it declares", p.Index)
	case a.inserted:
		c.fail(i, p, "found parameter area %d, which has been inserted already", p.Index)
	case uint64(p.Offset)+p.Kind.parameterBytes() > a.bytes:
		// QEMU would write past its copy of the area.
		c.fail(i, p, "found offset 0x%x in parameter area %d of 0x%x bytes, expected at most 0x%x", p.Offset, p.Index, a.bytes, a.bytes-p.Kind.parameterBytes())
	}
}

func (c *checker) insert(i int, p *ParameterInsert) {
	a := c.areas[p.Index]
	switch {
	case a == nil:
		c.fail(i, p, "found parameter area %d, which no PARAMETER_AREA before it declares", p.Index)
		return
	case a.inserted:
		c.fail(i, p, "found parameter area %d, which has been inserted already", p.Index)
	}
	a.inserted = true
	c.rangeOf(i, p, p.GPA, a.bytes)
	c.pages += a.bytes / pageSize
}

// vmsaVMPL is the offset of VMPL in a VMSA (AMD APM volume 2, table B-4).
const vmsaVMPL = 0xca

func (c *checker) context(i int, v *VPContext) {
	var kinds []PlatformType
	for mask, p := range c.platforms {
		if v.Mask&mask == 0 {
			continue
		}
		kinds = append(kinds, p)
		if p == PlatformVSM {
			continue // has one context a VTL, all of vCPU 0
		}
		switch list := c.contexts[mask]; {
		case len(list) >= measure.MaxVCPUs:
			c.fail(i, v, "found more than %d of them", measure.MaxVCPUs)
			return
		case slices.Contains(list, v.VPIndex):
			c.fail(i, v, "found vCPU %d a second time", v.VPIndex)
		}
		c.contexts[mask] = append(c.contexts[mask], v.VPIndex)
	}
	slices.Sort(kinds)
	vmsa := func(p PlatformType) bool { return p == PlatformSNP || p == PlatformSEVES }
	for _, p := range kinds {
		if vmsa(p) != vmsa(kinds[0]) || (p == PlatformVSM) != (kinds[0] == PlatformVSM) {
			c.fail(i, v, "found one for %s and %s, whose contexts have different forms", kinds[0], p)
			return
		}
	}
	switch p := kinds[0]; {
	case p == PlatformTDX:
		c.fail(i, v, "found one for TDX, whose vCPUs start in the architecture's reset state")
	case p == PlatformVSM:
		if b := c.f.Bytes(v.Data); len(b) < vbsHeader || len(b) != vbsHeader+vbsRegister*int(le.Uint32(b)) {
			c.fail(i, v, "found %d bytes of data, expected a count and as many registers of %d bytes", len(b), vbsRegister)
		}
	case v.Data.Size != pageSize:
		c.fail(i, v, "found %d bytes of data, expected %d", v.Data.Size, pageSize)
	case !vmsa(p):
		if v.GPA != 0 {
			c.fail(i, v, "found address 0x%x for %s, expected 0", v.GPA, p)
		}
		if !isZero(c.f.Bytes(v.Data)[nativeContextSize:]) {
			c.fail(i, v, "found bytes after the registers that are not zero")
		}
	case v.GPA%pageSize != 0:
		c.fail(i, v, "found address 0x%x, expected a multiple of %d", v.GPA, pageSize)
	default:
		if vmpl := c.f.Bytes(v.Data)[vmsaVMPL]; vmpl > 3 {
			c.fail(i, v, "found a VMSA of VMPL %d, expected 0 to 3", vmpl)
		}
	}
	c.pages++
}

// checkContexts refuses vCPUs that are left out: loaders count them in different
// ways.
func (c *checker) checkContexts() {
	for mask, list := range c.contexts {
		slices.Sort(list)
		for i, index := range list {
			if int(index) != i {
				c.errs = append(c.errs, fmt.Errorf("IGVM file: %s: found a VP_CONTEXT for vCPU %d but none for vCPU %d", c.platforms[mask], index, i))
				break
			}
		}
	}
}

// A placement is a run of guest memory that a header fills.
type placement struct {
	gpa, size uint64
	header    int
}

// checkOverlap refuses memory that one platform is given twice: which contents it
// has would depend on the loader.
func (c *checker) checkOverlap() {
	list := make([]placement, 0, len(c.f.Headers))
	for mask, p := range c.platforms {
		list = list[:0]
		vmsas := make(map[uint64]bool)
		for i, h := range c.f.Headers {
			switch h := h.(type) {
			case *PageData:
				if h.Mask&mask == 0 {
					continue
				}
				if n := len(list); n > 0 && h.GPA != 0 && list[n-1].gpa+list[n-1].size == h.GPA && c.f.Headers[i-1].Type() == TypePageData {
					list[n-1].size += h.Bytes()
					continue
				}
				list = append(list, placement{h.GPA, h.Bytes(), i})
			case *ParameterInsert:
				if h.Mask&mask != 0 {
					list = append(list, placement{h.GPA, c.areas[h.Index].bytes, i})
				}
			case *VPContext:
				// VMSAs share an address where KVM places them.
				if h.Mask&mask != 0 && !vmsas[h.GPA] && (p == PlatformSNP || p == PlatformSEVES) {
					vmsas[h.GPA] = true
					list = append(list, placement{h.GPA, pageSize, i})
				}
			}
		}
		slices.SortFunc(list, func(a, b placement) int { return cmp.Compare(a.gpa, b.gpa) })
		for i := 1; i < len(list); i++ {
			if a, b := list[i-1], list[i]; b.gpa <= a.gpa+(a.size-1) {
				c.errs = append(c.errs, fmt.Errorf("IGVM file: %s: header %d (%s) places 0x%x bytes at 0x%x, which header %d (%s) at 0x%x overlaps",
					p, a.header, c.f.Headers[a.header].Type(), a.size, a.gpa, b.header, c.f.Headers[b.header].Type(), b.gpa))
				if len(c.errs) >= maxErrors {
					return
				}
			}
		}
	}
}
