package svsmimg

import "fmt"

// A HeaderType is the type of a variable header (igvm_defs,
// IgvmVariableHeaderType), without the optional bit.
type HeaderType uint32

// Types of variable headers.
const (
	TypeSupportedPlatform   HeaderType = 0x001
	TypeGuestPolicy         HeaderType = 0x101
	TypeRelocatableRegion   HeaderType = 0x102
	TypePageTableRelocation HeaderType = 0x103
	TypeCoRIMDocument       HeaderType = 0x104
	TypeCoRIMSignature      HeaderType = 0x105
	TypeCCAPolicy           HeaderType = 0x106
	TypeParameterArea       HeaderType = 0x301
	TypePageData            HeaderType = 0x302
	TypeParameterInsert     HeaderType = 0x303
	TypeVPContext           HeaderType = 0x304
	TypeRequiredMemory      HeaderType = 0x305
	TypeVPCount             HeaderType = 0x307
	TypeSRAT                HeaderType = 0x308
	TypeMADT                HeaderType = 0x309
	TypeMMIORanges          HeaderType = 0x30a
	TypeSNPIDBlock          HeaderType = 0x30b
	TypeMemoryMap           HeaderType = 0x30c
	TypeErrorRange          HeaderType = 0x30d
	TypeCommandLine         HeaderType = 0x30e
	TypeSLIT                HeaderType = 0x30f
	TypePPTT                HeaderType = 0x310
	TypeVBSMeasurement      HeaderType = 0x311
	TypeDeviceTree          HeaderType = 0x312
	TypeEnvironmentInfo     HeaderType = 0x313
)

// typeOptional is the bit of a type that lets a loader ignore a header it does
// not know.
const typeOptional = 1 << 31

var typeNames = map[HeaderType]string{
	TypeSupportedPlatform:   "SUPPORTED_PLATFORM",
	TypeGuestPolicy:         "GUEST_POLICY",
	TypeRelocatableRegion:   "RELOCATABLE_REGION",
	TypePageTableRelocation: "PAGE_TABLE_RELOCATION",
	TypeCoRIMDocument:       "CORIM_DOCUMENT",
	TypeCoRIMSignature:      "CORIM_SIGNATURE",
	TypeCCAPolicy:           "CCA_POLICY",
	TypeParameterArea:       "PARAMETER_AREA",
	TypePageData:            "PAGE_DATA",
	TypeParameterInsert:     "PARAMETER_INSERT",
	TypeVPContext:           "VP_CONTEXT",
	TypeRequiredMemory:      "REQUIRED_MEMORY",
	TypeVPCount:             "VP_COUNT",
	TypeSRAT:                "SRAT",
	TypeMADT:                "MADT",
	TypeMMIORanges:          "MMIO_RANGES",
	TypeSNPIDBlock:          "SNP_ID_BLOCK",
	TypeMemoryMap:           "MEMORY_MAP",
	TypeErrorRange:          "ERROR_RANGE",
	TypeCommandLine:         "COMMAND_LINE",
	TypeSLIT:                "SLIT",
	TypePPTT:                "PPTT",
	TypeVBSMeasurement:      "VBS_MEASUREMENT",
	TypeDeviceTree:          "DEVICE_TREE",
	TypeEnvironmentInfo:     "ENVIRONMENT_INFO",
}

// String returns the name of the type in the specification.
func (t HeaderType) String() string {
	if name, ok := typeNames[t]; ok {
		return name
	}
	return fmt.Sprintf("type 0x%x", uint32(t))
}

// A section is one of the three parts of the variable headers, which follow each
// other (igvm_defs, IGVM_VHT_RANGE_*).
type section int

const (
	sectionNone section = iota
	sectionPlatform
	sectionInitialization
	sectionDirective
)

func (t HeaderType) section() section {
	switch {
	case t >= 0x001 && t <= 0x100:
		return sectionPlatform
	case t >= 0x101 && t <= 0x200:
		return sectionInitialization
	case t >= 0x301 && t <= 0x400:
		return sectionDirective
	}
	return sectionNone
}

func (s section) String() string {
	return [...]string{"no", "platform", "initialization", "directive"}[s]
}

// A Header is one variable header of a file: one of the pointer types of this
// package.
type Header interface {
	// Type is the header's type.
	Type() HeaderType
	header()
}

// A Blob is a piece of the file data. Zero means that there is none, as a file
// offset of zero does in the file.
type Blob struct {
	Offset uint32 // from the start of the file data
	Size   uint32
}

// A PlatformType is a kind of isolation (igvm_defs, IgvmPlatformType).
type PlatformType uint8

// Platform types.
const (
	PlatformNative PlatformType = 0
	PlatformVSM    PlatformType = 1
	PlatformSNP    PlatformType = 2
	PlatformTDX    PlatformType = 3
	PlatformSEV    PlatformType = 4
	PlatformSEVES  PlatformType = 5
	PlatformCCA    PlatformType = 6
)

// String returns the name of the type in the specification.
func (t PlatformType) String() string {
	switch t {
	case PlatformNative:
		return "NATIVE"
	case PlatformVSM:
		return "VSM_ISOLATION"
	case PlatformSNP:
		return "SEV_SNP"
	case PlatformTDX:
		return "TDX"
	case PlatformSEV:
		return "SEV"
	case PlatformSEVES:
		return "SEV_ES"
	case PlatformCCA:
		return "CCA"
	}
	return fmt.Sprintf("platform type %d", uint8(t))
}

// Platform is SUPPORTED_PLATFORM: a platform that the file is for, and the bit
// by which the other headers name it.
type Platform struct {
	Mask              uint32 // exactly one bit
	HighestVTL        uint8  // 0 or 2
	Platform          PlatformType
	Version           uint16 // 1
	SharedGPABoundary uint64 // vTOM; zero where all memory is private
}

// GuestPolicy is GUEST_POLICY: for SEV-SNP the guest policy of SNP_LAUNCH_START.
type GuestPolicy struct {
	Policy uint64
	Mask   uint32
}

// RelocatableRegion is RELOCATABLE_REGION.
type RelocatableRegion struct {
	Mask                 uint32
	VPIndex              uint16
	VTL, Flags           uint8
	Alignment, GPA, Size uint64
	MinGPA, MaxGPA       uint64
}

// PageTableRelocation is PAGE_TABLE_RELOCATION.
type PageTableRelocation struct {
	Mask                uint32
	VPIndex             uint16
	VTL                 uint8
	GPA, Size, UsedSize uint64
}

// CoRIM is CORIM_DOCUMENT or CORIM_SIGNATURE.
type CoRIM struct {
	Kind HeaderType
	Mask uint32
	Data Blob
}

// CCAPolicy is CCA_POLICY, for Arm.
type CCAPolicy struct {
	Mask                         uint32
	RequiredZeroes, RequiredOnes uint64
	HashAlgorithm, LFAPolicy     uint8
}

// ParameterArea is PARAMETER_AREA: memory that the loader fills with parameters
// and that a PARAMETER_INSERT places. It is never measured.
type ParameterArea struct {
	Bytes uint64 // a multiple of 4096
	Index uint32
	Data  Blob // initial contents; QEMU ignores them
}

// PageFlags are the flags of a PAGE_DATA.
type PageFlags uint32

// Flags of a PAGE_DATA.
const (
	Page2MiB       PageFlags = 1 << 0
	PageUnmeasured PageFlags = 1 << 1
	PageShared     PageFlags = 1 << 2
)

// A PageDataType says what a PAGE_DATA holds.
type PageDataType uint16

// Kinds of PAGE_DATA.
const (
	DataNormal  PageDataType = 0
	DataSecrets PageDataType = 1
	DataCPUID   PageDataType = 2
	DataCPUIDXF PageDataType = 3
)

// String returns the name of the type in the specification.
func (t PageDataType) String() string {
	switch t {
	case DataNormal:
		return "NORMAL"
	case DataSecrets:
		return "SECRETS"
	case DataCPUID:
		return "CPUID_DATA"
	case DataCPUIDXF:
		return "CPUID_XF"
	}
	return fmt.Sprintf("page data type %d", uint16(t))
}

// PageData is PAGE_DATA: one page of guest memory.
type PageData struct {
	GPA   uint64
	Mask  uint32
	Flags PageFlags
	Kind  PageDataType
	Data  Blob // zero: a page of zeros
}

// Bytes is the size of the page: 4 KiB or 2 MiB.
func (p *PageData) Bytes() uint64 {
	if p.Flags&Page2MiB != 0 {
		return largePage
	}
	return pageSize
}

// ParameterInsert is PARAMETER_INSERT: the place of a parameter area.
type ParameterInsert struct {
	GPA   uint64
	Mask  uint32
	Index uint32
}

// VPContext is VP_CONTEXT: the registers that a vCPU starts with. For SEV-SNP and
// SEV-ES the data is a VMSA page, for NATIVE and SEV an
// [NativeContext] in a page.
type VPContext struct {
	GPA     uint64
	Mask    uint32
	VPIndex uint16
	Data    Blob
}

// RequiredMemory is REQUIRED_MEMORY: memory that the guest cannot do without.
type RequiredMemory struct {
	GPA   uint64
	Mask  uint32
	Bytes uint32
	Flags uint32 // bit 0: VTL2 protectable
}

// Parameter is one of the headers that let the loader write something into a
// parameter area: VP_COUNT, MEMORY_MAP, MADT and so on.
type Parameter struct {
	Kind     HeaderType
	Optional bool // a loader that does not know Kind may ignore it
	Index    uint32
	Offset   uint32 // in the area
}

// ErrorRange is ERROR_RANGE: shared memory for error reports.
type ErrorRange struct {
	GPA   uint64
	Mask  uint32
	Bytes uint32
}

// VBSMeasurement is VBS_MEASUREMENT, for Hyper-V; kept as it is after the mask.
type VBSMeasurement struct {
	Mask uint32
	Rest [860]byte
}

// Unknown is an optional header of a type that this package does not know: kept
// as it is.
type Unknown struct {
	Kind    HeaderType // without the optional bit
	Content []byte
}

// Type implements [Header].
func (*Platform) Type() HeaderType { return TypeSupportedPlatform }

// Type implements [Header].
func (*GuestPolicy) Type() HeaderType { return TypeGuestPolicy }

// Type implements [Header].
func (*RelocatableRegion) Type() HeaderType { return TypeRelocatableRegion }

// Type implements [Header].
func (*PageTableRelocation) Type() HeaderType { return TypePageTableRelocation }

// Type implements [Header].
func (h *CoRIM) Type() HeaderType { return h.Kind }

// Type implements [Header].
func (*CCAPolicy) Type() HeaderType { return TypeCCAPolicy }

// Type implements [Header].
func (*ParameterArea) Type() HeaderType { return TypeParameterArea }

// Type implements [Header].
func (*PageData) Type() HeaderType { return TypePageData }

// Type implements [Header].
func (*ParameterInsert) Type() HeaderType { return TypeParameterInsert }

// Type implements [Header].
func (*VPContext) Type() HeaderType { return TypeVPContext }

// Type implements [Header].
func (*RequiredMemory) Type() HeaderType { return TypeRequiredMemory }

// Type implements [Header].
func (h *Parameter) Type() HeaderType { return h.Kind }

// Type implements [Header].
func (*SNPIDBlock) Type() HeaderType { return TypeSNPIDBlock }

// Type implements [Header].
func (*ErrorRange) Type() HeaderType { return TypeErrorRange }

// Type implements [Header].
func (*VBSMeasurement) Type() HeaderType { return TypeVBSMeasurement }

// Type implements [Header].
func (h *Unknown) Type() HeaderType { return h.Kind }

func (*Platform) header()            {}
func (*GuestPolicy) header()         {}
func (*RelocatableRegion) header()   {}
func (*PageTableRelocation) header() {}
func (*CoRIM) header()               {}
func (*CCAPolicy) header()           {}
func (*ParameterArea) header()       {}
func (*PageData) header()            {}
func (*ParameterInsert) header()     {}
func (*VPContext) header()           {}
func (*RequiredMemory) header()      {}
func (*Parameter) header()           {}
func (*SNPIDBlock) header()          {}
func (*ErrorRange) header()          {}
func (*VBSMeasurement) header()      {}
func (*Unknown) header()             {}

// maskOf is a header's compatibility mask: the platforms that it is for. Headers
// without one are for all.
func maskOf(h Header) (mask uint32, ok bool) {
	switch h := h.(type) {
	case *Platform:
		return h.Mask, true
	case *GuestPolicy:
		return h.Mask, true
	case *RelocatableRegion:
		return h.Mask, true
	case *PageTableRelocation:
		return h.Mask, true
	case *CoRIM:
		return h.Mask, true
	case *CCAPolicy:
		return h.Mask, true
	case *PageData:
		return h.Mask, true
	case *ParameterInsert:
		return h.Mask, true
	case *VPContext:
		return h.Mask, true
	case *RequiredMemory:
		return h.Mask, true
	case *SNPIDBlock:
		return h.Mask, true
	case *ErrorRange:
		return h.Mask, true
	case *VBSMeasurement:
		return h.Mask, true
	}
	return 0, false
}

// blobOf is a header's part of the file data; nil for headers that have none.
func blobOf(h Header) *Blob {
	switch h := h.(type) {
	case *CoRIM:
		return &h.Data
	case *ParameterArea:
		return &h.Data
	case *PageData:
		return &h.Data
	case *VPContext:
		return &h.Data
	}
	return nil
}
