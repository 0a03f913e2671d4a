package doctor

import (
	"os"

	"golang.org/x/sys/unix"
)

// KVM_CHECK_EXTENSION and KVM_CAP_VM_TYPES (include/uapi/linux/kvm.h).
const (
	kvmCheckExtension = 0xAE03
	kvmCapVMTypes     = 235
)

// kvmVMTypes asks KVM which types of VMs it has: a bit each.
func kvmVMTypes(kvm *os.File) (uint32, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, kvm.Fd(), kvmCheckExtension, kvmCapVMTypes)
	if errno != 0 {
		return 0, errno
	}
	return uint32(n), nil
}
