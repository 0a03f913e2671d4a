package doctor

import (
	"encoding/binary"
	"fmt"
	"os"
	"reflect"

	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/attest"
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

// The AMD-SP's device (include/uapi/linux/psp-sev.h). The request is struct
// sev_issue_cmd, packed: u32 command, u64 address of its data, u32 error.
const (
	sevIssueCommand   = 0xC0105300 // _IOWR('S', 0, struct sev_issue_cmd)
	sevCommandStatus  = 9          // SNP_PLATFORM_STATUS
	sevRequestCommand = 0
	sevRequestData    = 4
	sevRequestError   = 12
	sevRequestSize    = 16

	// struct sev_user_data_snp_status, packed.
	snpStatusAPIMajor = 0
	snpStatusAPIMinor = 1
	snpStatusState    = 2 // 0 uninitialised, 1 initialised
	snpStatusRMP      = 3 // bit 0: initialised
	snpStatusBuild    = 4
	snpStatusFlags    = 8 // bit 0: MASK_CHIP_ID
	snpStatusGuests   = 12
	snpStatusCurrent  = 16
	snpStatusReported = 24
	snpStatusSize     = 32
)

// snpPlatformStatus asks the AMD-SP for its status.
func snpPlatformStatus(sev *os.File) (SNPStatus, error) {
	// The request holds an address, so it lies in memory that Go does not move.
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return SNPStatus{}, fmt.Errorf("memory: %w", err)
	}
	defer func() { _ = unix.Munmap(page) }()
	address := reflect.ValueOf(page).Pointer()
	binary.NativeEndian.PutUint32(page[sevRequestCommand:], sevCommandStatus)
	binary.NativeEndian.PutUint64(page[sevRequestData:], uint64(address)+sevRequestSize)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, sev.Fd(), sevIssueCommand, address); errno != 0 {
		if code := binary.NativeEndian.Uint32(page[sevRequestError:]); code != 0 {
			return SNPStatus{}, fmt.Errorf("SNP_PLATFORM_STATUS: %w, firmware error %#x", errno, code)
		}
		return SNPStatus{}, fmt.Errorf("SNP_PLATFORM_STATUS: %w", errno)
	}
	return parseSNPStatus([snpStatusSize]byte(page[sevRequestSize:])), nil
}

func parseSNPStatus(b [snpStatusSize]byte) SNPStatus {
	le := binary.LittleEndian
	return SNPStatus{
		APIMajor:    b[snpStatusAPIMajor],
		APIMinor:    b[snpStatusAPIMinor],
		Build:       le.Uint32(b[snpStatusBuild:]),
		Initialized: b[snpStatusState] == 1,
		RMP:         b[snpStatusRMP]&1 != 0,
		MaskChipID:  le.Uint32(b[snpStatusFlags:])&1 != 0,
		Guests:      le.Uint32(b[snpStatusGuests:]),
		CurrentTCB:  attest.RawTCB(le.Uint64(b[snpStatusCurrent:])),
		ReportedTCB: attest.RawTCB(le.Uint64(b[snpStatusReported:])),
	}
}
