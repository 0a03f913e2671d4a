package svsmimg

import (
	"fmt"
	"strings"
)

// A Profile names the rules by which a host measures the launch of an image:
// which VMSAs enter the digest, with which contents, at which place.
type Profile string

// Host profiles.
const (
	// ProfileFile measures what the file says, in the order of the file, every
	// VMSA included: what COCONUT's igvmmeasure computes. It is that of a real host
	// where the host does the same.
	ProfileFile Profile = "file"

	// ProfileKVM is upstream KVM and QEMU: the file's VP_CONTEXTs set registers,
	// and KVM builds and measures one VMSA for every vCPU at the end of the launch,
	// at 0xFFFFFFFFF000. The digest depends on the number of vCPUs.
	ProfileKVM Profile = "kvm"

	// ProfileKVMBSP is an SVSM host of before 2026 (COCONUT's and AMD's kernels
	// with an SVSM flag at initialization): as kvm, but the boot vCPU's VMSA alone
	// is measured.
	ProfileKVMBSP Profile = "kvm-bsp"

	// ProfileKVMDirect is a host that takes the boot vCPU's VMSA from the file, in
	// guest memory (KVM_SEV_SNP_LAUNCH_UPDATE with page type VMSA; COCONUT's kernel
	// and QEMU since September 2026). The digest does not depend on the number of
	// vCPUs.
	ProfileKVMDirect Profile = "kvm-direct"
)

// Profiles lists the host profiles.
func Profiles() []Profile {
	return []Profile{ProfileFile, ProfileKVM, ProfileKVMBSP, ProfileKVMDirect}
}

// ParseProfile reads the name of a host profile.
func ParseProfile(name string) (Profile, error) {
	for _, p := range Profiles() {
		if name == string(p) {
			return p, nil
		}
	}
	return "", fmt.Errorf("host profile %q: expected %s", clip(name), joinProfiles())
}

func joinProfiles() string {
	var names []string
	for _, p := range Profiles() {
		names = append(names, string(p))
	}
	return strings.Join(names, ", ")
}

// An Order says in which order headers become launch steps.
type Order string

// Orders.
const (
	// OrderFile is the order of the file: what the format's specification says.
	OrderFile Order = "file"

	// OrderQEMU is QEMU's: neighbouring pages are given to the AMD-SP together,
	// when the first page arrives that does not belong to them. A PARAMETER_INSERT
	// acts at once and so overtakes the pages before it (QEMU backends/igvm.c,
	// qigvm_process_mem_page and qigvm_directive_parameter_insert).
	OrderQEMU Order = "qemu"
)

// clip shortens text from outside before it is shown.
func clip(s string) string {
	const enough = 64
	if len(s) > enough {
		return s[:enough] + "..."
	}
	return s
}
