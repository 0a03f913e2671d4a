package snpsim

import (
	"crypto/rand"
	"errors"
	"fmt"
	"sync"

	"github.com/evtpm/evtpm/measure"
)

// A Status is how the firmware answers a command that it refuses (SNP ABI 56860,
// status codes), by the name that Linux and QEMU print.
type Status string

// Statuses.
const (
	StatusPolicyFailure     Status = "POLICY_FAILURE"
	StatusBadSignature      Status = "BAD_SIGNATURE"
	StatusBadMeasurement    Status = "BAD_MEASUREMENT"
	StatusInvalidParam      Status = "INVALID_PARAM"
	StatusInvalidGuestState Status = "INVALID_GUEST_STATE"
)

// A FirmwareError says that the AMD-SP refused a command.
type FirmwareError struct {
	Command string // "SNP_LAUNCH_FINISH"
	Status  Status
	Err     error // why
}

func (e *FirmwareError) Error() string {
	return fmt.Sprintf("simulated AMD-SP: %s: %s: %v", e.Command, e.Status, e.Err)
}

func (e *FirmwareError) Unwrap() error { return e.Err }

// Commands of the firmware and messages to it.
const (
	cmdLaunchStart  = "SNP_LAUNCH_START"
	cmdLaunchUpdate = "SNP_LAUNCH_UPDATE"
	cmdLaunchFinish = "SNP_LAUNCH_FINISH"
	msgReportReq    = "MSG_REPORT_REQ"
)

// Guest policy bits that the firmware judges (SNP ABI 56860, Guest Policy). Bits
// 7:0 are ABI_MINOR, 15:8 ABI_MAJOR.
const (
	policyReservedOne      = 1 << 17 // must be one
	policyMemAES256XTS     = 1 << 22
	policyRAPLDisable      = 1 << 23
	policyCiphertextHiding = 1 << 24
	policyReservedZero     = ^uint64(1<<26 - 1)
)

// Versions of reports that can be made.
const (
	defaultReportVersion = 5
	olderReportVersion   = 3
)

// SPOptions configures a simulated AMD-SP.
type SPOptions struct {
	// ReportVersion is the version of its reports: 3 or 5. Zero is 5.
	ReportVersion uint32
}

// LaunchParams are the parameters of a launch beside its pages.
type LaunchParams struct {
	// Policy is the guest policy of SNP_LAUNCH_START.
	Policy uint64
	// HostData is HOST_DATA of SNP_LAUNCH_FINISH.
	HostData [32]byte
	// IDBlock is the 96 bytes, IDAuth the 4096. Both or neither.
	IDBlock, IDAuth []byte
	// AuthorKey is AUTHOR_KEY_EN: the author key in IDAuth counts.
	AuthorKey bool
}

// An SP is a simulated AMD-SP with one guest. It is safe for concurrent use.
type SP struct {
	chip    *Chip
	version uint32

	mu    sync.Mutex
	guest *guest // nil before a launch
}

// NewSP makes the AMD-SP of a chip.
func NewSP(chip *Chip, o SPOptions) (*SP, error) {
	if o.ReportVersion == 0 {
		o.ReportVersion = defaultReportVersion
	}
	if o.ReportVersion != defaultReportVersion && o.ReportVersion != olderReportVersion {
		return nil, fmt.Errorf("simulated AMD-SP: found report version %d, expected %d or %d", o.ReportVersion, olderReportVersion, defaultReportVersion)
	}
	return &SP{chip: chip, version: o.ReportVersion}, nil
}

// Chip returns the chip that the AMD-SP is part of.
func (sp *SP) Chip() *Chip { return sp.chip }

// Launch launches a guest: it computes the launch digest of what it is given,
// judges policy and ID block as the firmware does, and gives the guest a new
// REPORT_ID. The guest before, if any, is gone, even when the launch is refused.
// A refusal is a *FirmwareError.
func (sp *SP) Launch(seq *measure.Sequence, p LaunchParams) error {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	sp.guest = nil
	if err := sp.chip.product.checkPolicy(p.Policy); err != nil {
		return err
	}
	g := &guest{policy: p.Policy, hostData: p.HostData}
	var err error
	if g.measurement, err = seq.LaunchDigest(); err != nil {
		return &FirmwareError{cmdLaunchUpdate, StatusInvalidParam, err}
	}
	if p.IDBlock != nil || p.IDAuth != nil {
		if err := g.identify(p); err != nil {
			return err
		}
	}
	rand.Read(g.reportID[:])
	sp.guest = g
	return nil
}

// Measurement returns the launch digest of the guest; false before a launch.
func (sp *SP) Measurement() (measure.Digest, bool) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.guest == nil {
		return measure.Digest{}, false
	}
	return sp.guest.measurement, true
}

// checkPolicy is what SNP_LAUNCH_START makes of a guest policy on this platform.
func (p *product) checkPolicy(policy uint64) error {
	refuse := func(status Status, format string, args ...any) error {
		return &FirmwareError{cmdLaunchStart, status, fmt.Errorf("guest policy %#x: "+format, append([]any{policy}, args...)...)}
	}
	major, minor := uint8(policy>>8), uint8(policy)
	switch {
	case policy&policyReservedOne == 0:
		return refuse(StatusInvalidParam, "bit 17 is 0, which is reserved and must be 1")
	case policy&policyReservedZero != 0:
		return refuse(StatusInvalidParam, "bits 63:26 are reserved and must be 0")
	case major > p.major || major == p.major && minor > p.minor:
		return refuse(StatusPolicyFailure, "ABI %d.%d is asked for, the firmware has %d.%d", major, minor, p.major, p.minor)
	case policy&policyMemAES256XTS != 0:
		return refuse(StatusPolicyFailure, "AES-256-XTS is asked for, this platform encrypts with AES-128")
	case policy&policyRAPLDisable != 0:
		return refuse(StatusPolicyFailure, "RAPL is to be disabled, it is enabled on this platform")
	case policy&policyCiphertextHiding != 0:
		return refuse(StatusPolicyFailure, "ciphertext hiding is asked for, it is off on this platform")
	}
	return nil
}

// identify judges the ID block and takes over what it says of the guest.
func (g *guest) identify(p LaunchParams) error {
	refuse := func(status Status, err error) error {
		return &FirmwareError{cmdLaunchFinish, status, err}
	}
	if p.IDBlock == nil || p.IDAuth == nil {
		return refuse(StatusInvalidParam, errors.New("an ID block and its authentication information go together: found one of them"))
	}
	block, err := measure.ParseIDBlock(p.IDBlock)
	if err != nil {
		return refuse(StatusInvalidParam, err)
	}
	auth, err := measure.ParseIDAuth(p.IDAuth)
	if err != nil {
		return refuse(StatusInvalidParam, err)
	}
	if p.AuthorKey && auth.AuthorKey == nil {
		return refuse(StatusInvalidParam, errors.New("the author key is enabled, but there is none"))
	}
	if !p.AuthorKey {
		// As the firmware, without a look at them.
		auth.AuthorKey, auth.IDKeySig = nil, nil
	}
	if err := auth.Verify(block); err != nil {
		return refuse(StatusBadSignature, err)
	}
	if block.LaunchDigest != g.measurement {
		return refuse(StatusBadMeasurement, fmt.Errorf("launch digest is %s, the ID block expects %s", g.measurement, block.LaunchDigest))
	}
	if block.Policy != g.policy {
		return refuse(StatusPolicyFailure, fmt.Errorf("guest policy is %#x, the ID block expects %#x", g.policy, block.Policy))
	}
	g.guestSVN, g.familyID, g.imageID = block.GuestSVN, block.FamilyID, block.ImageID
	if g.idKeyDigest, err = measure.IDKeyDigest(auth.IDKey); err != nil {
		return refuse(StatusInvalidParam, err)
	}
	if auth.AuthorKey != nil {
		g.authorKey = true
		if g.authorKeyDigest, err = measure.IDKeyDigest(auth.AuthorKey); err != nil {
			return refuse(StatusInvalidParam, err)
		}
	}
	return nil
}

// VMPLs.
const (
	// VMPLSVSM is the SVSM's, the most privileged.
	VMPLSVSM = 0
	// VMPLGuest is that of the firmware and the kernel below the SVSM.
	VMPLGuest = 1

	lowestVMPL = 3
)

// Report returns a signed report for vmpl, as software at VMPL0 gets it.
func (sp *SP) Report(vmpl uint32, data [64]byte) ([]byte, error) {
	return sp.ReportFrom(VMPLSVSM, vmpl, data)
}

// ReportFrom returns a signed report for vmpl, as software at the VMPL requester
// gets it: the firmware knows it by the key that the request is encrypted with.
// A request for a VMPL of more privilege is refused, with a *FirmwareError.
func (sp *SP) ReportFrom(requester, vmpl uint32, data [64]byte) ([]byte, error) {
	sp.mu.Lock()
	g := sp.guest
	sp.mu.Unlock()
	refuse := func(status Status, format string, args ...any) ([]byte, error) {
		return nil, &FirmwareError{msgReportReq, status, fmt.Errorf(format, args...)}
	}
	switch {
	case g == nil:
		return refuse(StatusInvalidGuestState, "no guest has been launched")
	case requester > lowestVMPL || vmpl > lowestVMPL:
		return refuse(StatusInvalidParam, "VMPL %d asks for a report of VMPL %d, expected 0 to %d", requester, vmpl, lowestVMPL)
	case vmpl < requester:
		return refuse(StatusInvalidParam, "VMPL %d asks for a report of VMPL %d, expected %d or more", requester, vmpl, requester)
	}
	return sp.chip.report(g, sp.version, vmpl, data)
}
