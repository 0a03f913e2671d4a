package measure

// PageSize is the unit of every launch step: 4 KiB.
const PageSize = 4096

// VMSAGPA is the guest-physical address that KVM gives every VMSA it measures
// at SNP_LAUNCH_FINISH, whatever the CPU's address width (INITIAL_VMSA_GPA in
// arch/x86/kvm/svm/sev.c).
const VMSAGPA = 0xFFFFFFFFF000

// A PageType is the PAGE_TYPE of one SNP_LAUNCH_UPDATE (SNP ABI 56860,
// SNP_LAUNCH_UPDATE, table of page types).
type PageType uint8

// Page types of the SNP ABI.
const (
	PageNormal     PageType = 1 // contents measured
	PageVMSA       PageType = 2 // contents measured
	PageZero       PageType = 3 // zeroed by the AMD-SP; type and address measured
	PageUnmeasured PageType = 4 // type and address measured
	PageSecrets    PageType = 5 // type and address measured
	PageCPUID      PageType = 6 // type and address measured
)

// String returns the ABI's name of the type, in lower case.
func (t PageType) String() string {
	switch t {
	case PageNormal:
		return "normal"
	case PageVMSA:
		return "vmsa"
	case PageZero:
		return "zero"
	case PageUnmeasured:
		return "unmeasured"
	case PageSecrets:
		return "secrets"
	case PageCPUID:
		return "cpuid"
	}
	return "invalid"
}

// A Mode is the generation of SEV that a launch uses. Its text form is
// sev-snp-measure's.
type Mode string

// Modes of a launch.
const (
	ModeSNP   Mode = "snp"   // SHA-384 chain over page type, address and contents
	ModeSEVES Mode = "seves" // SHA-256 over the contents, then the VMSAs
	ModeSEV   Mode = "sev"   // SHA-256 over the contents
)

// A Step is one run of pages of one type given to the AMD-SP: Size bytes at
// GPA. A run of n pages is folded as n LAUNCH_UPDATEs in ascending order.
type Step struct {
	Type PageType

	// GPA is the guest-physical address of the first page, 4 KiB aligned.
	GPA uint64

	// Size in bytes, a multiple of PageSize, not zero. (In a sequence of SEV or
	// SEV-ES a multiple of 16, as LAUNCH_UPDATE_DATA takes it.)
	Size uint64

	// Data holds the contents of PageNormal and PageVMSA steps: exactly Size
	// bytes, or nil for pages of zeros. It must be nil for other types, whose
	// contents are not measured. Data is shared, never modified.
	Data []byte

	// VMPLPerms are the VMPL1, VMPL2 and VMPL3 permission masks of the pages.
	// Zero on every upstream host.
	VMPLPerms [3]uint8

	// Source says in the user's words who brings the pages: "firmware",
	// "SNP_CPUID section", "kernel hashes", "vCPU 0". It is not measured.
	Source string
}

// A Sequence is everything that the AMD-SP is given at launch, in order. It is
// the one way to a digest: ovmf and svsmimg make one from an image, the fold,
// the memory map, the trace, the diff and the simulated AMD-SP read it.
type Sequence struct {
	// Mode says whose rules fold the sequence; empty is [ModeSNP].
	Mode Mode

	// Start is the digest that the fold starts from. Zero for a whole launch;
	// otherwise a digest of steps that are not listed (a precomputed firmware
	// hash).
	Start Digest

	// Steps are the LAUNCH_UPDATEs before LAUNCH_FINISH.
	Steps []Step

	// VMSAs are measured last, in order, one page each. Entries may share Data.
	VMSAs []Step
}
