package launch

import (
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

// A Plan is a spec with everything resolved, once: what the VM is started from,
// and what it must therefore measure to. It holds open files: Close it.
type Plan struct {
	// Name of the machine.
	Name string
	// Spec has its defaults filled in and has been validated.
	Spec *Spec

	// Firmware, Kernel, Initrd and SVSM are the inputs; nil when absent.
	Firmware, Kernel, Initrd, SVSM *Input

	// IDBlock is the 96 bytes, IDAuth the 4096; nil when absent.
	IDBlock, IDAuth []byte
	// AuthorKey says that IDAuth holds an author key.
	AuthorKey bool

	// Image is the parsed firmware; nil when SVSM is not.
	Image *ovmf.Image
	// Hashes are the kernel hashes; nil when they are off.
	Hashes *measure.KernelHashes
	// Sequence is what the AMD-SP is to be given.
	Sequence *measure.Sequence
	// Golden holds the values that evidence is compared with.
	Golden *measure.Golden
}
