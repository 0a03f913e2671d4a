// Package hostcpu says what processor this machine has, in the form in which it
// is measured when a VM is given it with QEMU's CPU model "host".
package hostcpu

import "errors"

// ErrNotAMD says that this machine's processor cannot run SEV VMs, so that its
// signature is no VM's.
var ErrNotAMD = errors.New("this machine's processor is not from AMD or Hygon: its signature is no SEV VM's")

// Signature returns CPUID 1.EAX of the processor that this program runs on. In a
// VM that is the VM's CPU model, not the machine's.
func Signature() (uint32, error) { return signature(cpuid) }

func signature(cpuid func(leaf uint32) (eax, ebx, ecx, edx uint32)) (uint32, error) {
	_, b, c, d := cpuid(0)
	vendor := [3]uint32{b, d, c}
	amd := [3]uint32{0x68747541, 0x69746e65, 0x444d4163}   // "AuthenticAMD"
	hygon := [3]uint32{0x6f677948, 0x6e65476e, 0x656e6975} // "HygonGenuine"
	if vendor != amd && vendor != hygon {
		return 0, ErrNotAMD
	}
	eax, _, _, _ := cpuid(1)
	return eax, nil
}
