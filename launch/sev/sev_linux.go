// Package sev asks the AMD-SP of this host through the kernel's /dev/sev: how it
// stands with SEV-SNP, and which chip it is
// (https://docs.kernel.org/virt/coco/sev-guest.html names the specifications: SNP
// ABI 56860, SEV API 55766). Not tried on hardware.
package sev

import (
	"encoding/binary"
	"fmt"
	"os"
	"reflect"

	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/attest"
)

// Device is where the kernel has the AMD-SP.
const Device = "/dev/sev"

// The request of the device (include/uapi/linux/psp-sev.h) is struct sev_issue_cmd,
// packed: u32 command, u64 address of its data, u32 error.
const (
	issueCommand   = 0xC0105300 // _IOWR('S', 0, struct sev_issue_cmd)
	requestCommand = 0
	requestData    = 4
	requestError   = 12
	requestSize    = 16

	commandGetID2 = 8 // SEV_GET_ID2
	commandStatus = 9 // SNP_PLATFORM_STATUS
)

// struct sev_user_data_snp_status, packed.
const (
	statusAPIMajor = 0
	statusAPIMinor = 1
	statusState    = 2 // 0 uninitialised, 1 initialised
	statusRMP      = 3 // bit 0: initialised
	statusBuild    = 4
	statusFlags    = 8 // bit 0: MASK_CHIP_ID
	statusGuests   = 12
	statusCurrent  = 16
	statusReported = 24
	statusSize     = 32
)

// struct sev_user_data_get_id2, packed. The ids of one or two sockets are written
// where the address says, and their length where its bound was.
const (
	getIDAddress = 0
	getIDLength  = 8
	getIDSize    = 12
	maxIDs       = 2 * 64
)

// A Status is what the AMD-SP says of itself (SNP ABI 56860, SNP_PLATFORM_STATUS).
type Status struct {
	APIMajor, APIMinor uint8
	Build              uint32
	// Initialized says that SNP_INIT was done.
	Initialized bool
	// RMP says that the reverse map table is initialised.
	RMP bool
	// MaskChipID says that reports carry no chip id.
	MaskChipID bool
	Guests     uint32
	// CurrentTCB is that of the running firmware, ReportedTCB what reports are
	// signed with.
	CurrentTCB, ReportedTCB attest.RawTCB
}

// PlatformStatus asks the AMD-SP behind the open device for its status.
func PlatformStatus(device *os.File) (Status, error) {
	var s Status
	err := issue(device, "SNP_PLATFORM_STATUS", commandStatus, func([]byte, uint64) {}, func(page []byte) error {
		s = parseStatus([statusSize]byte(page[requestSize:]))
		return nil
	})
	return s, err
}

// ChipID asks for the chip's id: 64 bytes, as CHIP_ID in its reports and in the
// address of its VCEK. Of two sockets it is the first's, whose AMD-SP signs.
func ChipID(device *os.File) ([]byte, error) {
	const ids = requestSize + getIDSize
	var id []byte
	err := issue(device, "GET_ID", commandGetID2,
		func(page []byte, address uint64) {
			binary.NativeEndian.PutUint64(page[requestSize+getIDAddress:], address+ids)
			binary.NativeEndian.PutUint32(page[requestSize+getIDLength:], maxIDs)
		},
		func(page []byte) (err error) {
			length := binary.NativeEndian.Uint32(page[requestSize+getIDLength:])
			id, err = parseID(page[ids:ids+maxIDs], length)
			return err
		})
	return id, err
}

// parseID takes the first socket's id. One that is shorter than CHIP_ID, as that of
// Turin, has zeros behind it there.
func parseID(b []byte, length uint32) ([]byte, error) {
	if length < 8 || length > maxIDs {
		return nil, fmt.Errorf("GET_ID: found an id of %d bytes, expected 8 to %d", length, maxIDs)
	}
	id := make([]byte, 64)
	copy(id, b[:length])
	for _, x := range id {
		if x != 0 {
			return id, nil
		}
	}
	return nil, fmt.Errorf("GET_ID: found an id of zeros, which names no chip")
}

// issue has the AMD-SP carry out a command, whose data fill writes, given the
// address of the page, and read reads.
func issue(device *os.File, name string, command uint32, fill func(page []byte, address uint64), read func(page []byte) error) error {
	// The request holds an address, so it lies in memory that Go does not move.
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	defer func() { _ = unix.Munmap(page) }()
	address := reflect.ValueOf(page).Pointer()
	binary.NativeEndian.PutUint32(page[requestCommand:], command)
	binary.NativeEndian.PutUint64(page[requestData:], uint64(address)+requestSize)
	fill(page, uint64(address))
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), issueCommand, address); errno != 0 {
		if code := binary.NativeEndian.Uint32(page[requestError:]); code != 0 {
			return fmt.Errorf("%s: %w, firmware error %#x", name, errno, code)
		}
		return fmt.Errorf("%s: %w", name, errno)
	}
	return read(page)
}

func parseStatus(b [statusSize]byte) Status {
	le := binary.LittleEndian
	return Status{
		APIMajor:    b[statusAPIMajor],
		APIMinor:    b[statusAPIMinor],
		Build:       le.Uint32(b[statusBuild:]),
		Initialized: b[statusState] == 1,
		RMP:         b[statusRMP]&1 != 0,
		MaskChipID:  le.Uint32(b[statusFlags:])&1 != 0,
		Guests:      le.Uint32(b[statusGuests:]),
		CurrentTCB:  attest.RawTCB(le.Uint64(b[statusCurrent:])),
		ReportedTCB: attest.RawTCB(le.Uint64(b[statusReported:])),
	}
}
