package measure

import (
	"fmt"
	"strings"
)

// A VMM is the virtual machine monitor whose way of setting up vCPUs is
// measured. Its text form is sev-snp-measure's.
type VMM string

// VMMs whose VMSAs are known.
const (
	VMMQEMU VMM = "QEMU" // and every VMM that leaves the vCPUs as KVM resets them for QEMU
	VMMEC2  VMM = "ec2"  // Amazon EC2
	VMMGCE  VMM = "gce"  // Google Compute Engine
)

// ParseVMM reads a VMM's name; case does not matter.
func ParseVMM(name string) (VMM, error) {
	for _, v := range []VMM{VMMQEMU, VMMEC2, VMMGCE} {
		if strings.EqualFold(name, string(v)) {
			return v, nil
		}
	}
	if strings.EqualFold(name, "krun") {
		return "", fmt.Errorf("VMM %q: not verified: published values of libkrun contradict each other, so no digest is given", name)
	}
	return "", fmt.Errorf("VMM %q: expected QEMU, ec2 or gce", clip(name))
}
