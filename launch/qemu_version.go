package launch

import (
	"fmt"

	"github.com/evtpm/evtpm/qmp"
)

// CheckQEMU says why a QEMU of version v cannot start the spec, where neither its
// command line nor a property of it would: kernel hashes without SEV need a QEMU
// that gives the firmware the kernel as it is. QEMU before 10.0 does that for SEV
// guests alone, and else fills in the kernel's setup header (hw/i386/x86-common.c,
// x86_load_linux); the firmware would then refuse every kernel.
func (s *Spec) CheckQEMU(v qmp.Version) error {
	if s.Platform == PlatformSim && s.KernelHashes == On && v.Major < 10 {
		return fmt.Errorf("kernel_hashes: on needs QEMU 10.0 or later on platform sim, found %s: it changes the kernel, which the firmware then refuses", v)
	}
	return nil
}
