package attest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
)

// ReportSize is the length of an ATTESTATION_REPORT in bytes.
const ReportSize = 1184

// Report versions that this package knows (SNP ABI 56860, ATTESTATION_REPORT).
const (
	minReportVersion = 2
	maxReportVersion = 5

	// cpuidVersion is the first version that names the processor;
	// mitigationVersion the first with mitigation vectors.
	cpuidVersion      = 3
	mitigationVersion = 5
)

// Offsets in an ATTESTATION_REPORT (SNP ABI 56860, ATTESTATION_REPORT
// structure). Integers are little-endian.
const (
	offVersion         = 0x000
	offGuestSVN        = 0x004
	offPolicy          = 0x008
	offFamilyID        = 0x010
	offImageID         = 0x020
	offVMPL            = 0x030
	offSignatureAlgo   = 0x034
	offCurrentTCB      = 0x038
	offPlatformInfo    = 0x040
	offSignerInfo      = 0x048
	offReserved4C      = 0x04C
	offReportData      = 0x050
	offMeasurement     = 0x090
	offHostData        = 0x0C0
	offIDKeyDigest     = 0x0E0
	offAuthorKeyDigest = 0x110
	offReportID        = 0x140
	offReportIDMA      = 0x160
	offReportedTCB     = 0x180
	offCPUID           = 0x188 // family, model, stepping from version 3
	offReserved18B     = 0x18B
	offChipID          = 0x1A0
	offCommittedTCB    = 0x1E0
	offCurrentVersion  = 0x1E8 // build, minor, major
	offReserved1EB     = 0x1EB
	offCommittedVer    = 0x1EC // build, minor, major
	offReserved1EF     = 0x1EF
	offLaunchTCB       = 0x1F0
	offLaunchMit       = 0x1F8 // version 5
	offCurrentMit      = 0x200 // version 5
	offReserved208     = 0x208
	offSignature       = 0x2A0 // end of the signed part
	offSignatureR      = 0x2A0 // 72 bytes, of which 48 are used
	offSignatureS      = 0x2E8 // 72 bytes, of which 48 are used
	offReserved330     = 0x330

	scalarSize      = 48 // a P-384 scalar
	scalarFieldSize = 72
)

// SignatureAlgoECDSA is SIGNATURE_ALGO for ECDSA P-384 with SHA-384, the only
// algorithm that the ABI defines.
const SignatureAlgoECDSA = 1

// Signing keys (SIGNER_INFO.SIGNING_KEY).
const (
	SigningKeyVCEK = 0
	SigningKeyVLEK = 1
	SigningKeyNone = 7
)

// VMPLHost is the VMPL field of a report that the host asked for.
const VMPLHost = 0xFFFFFFFF

// A FirmwareVersion is a version of the SNP firmware.
type FirmwareVersion struct{ Major, Minor, Build uint8 }

// String returns the version as AMD writes it: "1.55.29".
func (v FirmwareVersion) String() string {
	return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Build)
}

// below compares versions, major first.
func (v FirmwareVersion) below(w FirmwareVersion) bool {
	return uint32(v.Major)<<16|uint32(v.Minor)<<8|uint32(v.Build) < uint32(w.Major)<<16|uint32(w.Minor)<<8|uint32(w.Build)
}

// A Report is an ATTESTATION_REPORT taken apart. Nothing in it has been judged:
// see [VerifyReport].
type Report struct {
	// Raw are the bytes as received, ReportSize of them.
	Raw []byte

	Version         uint32
	GuestSVN        uint32
	Policy          GuestPolicy
	FamilyID        [16]byte
	ImageID         [16]byte
	VMPL            uint32
	SignatureAlgo   uint32
	PlatformInfo    PlatformInfo
	SignerInfo      SignerInfo
	ReportData      [64]byte
	Measurement     [48]byte
	HostData        [32]byte
	IDKeyDigest     [48]byte
	AuthorKeyDigest [48]byte
	ReportID        [32]byte
	ReportIDMA      [32]byte

	// CPUID names the processor; nil before version 3.
	CPUID *CPUID

	ChipID           [64]byte
	CurrentVersion   FirmwareVersion
	CommittedVersion FirmwareVersion

	// TCB versions as they lie in the report: their layout depends on the
	// product, see [TCBLayout].
	CurrentTCB, ReportedTCB, CommittedTCB, LaunchTCB RawTCB

	// Mitigation vectors; zero before version 5.
	LaunchMitigations, CurrentMitigations uint64
}

// SignerInfo is SIGNER_INFO.
type SignerInfo uint32

// AuthorKeyEnabled reports AUTHOR_KEY_EN.
func (s SignerInfo) AuthorKeyEnabled() bool { return s&1 != 0 }

// MaskChipKey reports MASK_CHIP_KEY: the firmware was told not to sign.
func (s SignerInfo) MaskChipKey() bool { return s>>1&1 != 0 }

// SigningKey is the key that signed the report: 0 VCEK, 1 VLEK, 7 none.
func (s SignerInfo) SigningKey() int { return int(s >> 2 & 7) }

// reserved are bits 31:5, zero by the ABI.
func (s SignerInfo) reserved() uint32 { return uint32(s >> 5) }

// signingKeyName names a SIGNING_KEY value.
func signingKeyName(k int) string {
	switch k {
	case SigningKeyVCEK:
		return "vcek"
	case SigningKeyVLEK:
		return "vlek"
	case SigningKeyNone:
		return "none"
	}
	return fmt.Sprintf("reserved(%d)", k)
}

// Errors of [ParseReport].
var (
	ErrReportLength  = errors.New("attestation report has the wrong length")
	ErrReportVersion = errors.New("attestation report has an unsupported version")
)

// ParseReport takes an ATTESTATION_REPORT apart. It fails on a wrong length
// (ErrReportLength) and on versions other than 2 to 5 (ErrReportVersion), whose
// layout is not known; everything else is left to [VerifyReport].
func ParseReport(raw []byte) (*Report, error) {
	if len(raw) != ReportSize {
		return nil, fmt.Errorf("%w: found %d bytes, expected %d", ErrReportLength, len(raw), ReportSize)
	}
	le := binary.LittleEndian
	r := &Report{
		Raw:              raw,
		Version:          le.Uint32(raw[offVersion:]),
		GuestSVN:         le.Uint32(raw[offGuestSVN:]),
		Policy:           GuestPolicy(le.Uint64(raw[offPolicy:])),
		VMPL:             le.Uint32(raw[offVMPL:]),
		SignatureAlgo:    le.Uint32(raw[offSignatureAlgo:]),
		PlatformInfo:     PlatformInfo(le.Uint64(raw[offPlatformInfo:])),
		SignerInfo:       SignerInfo(le.Uint32(raw[offSignerInfo:])),
		CurrentVersion:   parseFirmwareVersion(raw[offCurrentVersion:]),
		CommittedVersion: parseFirmwareVersion(raw[offCommittedVer:]),
		CurrentTCB:       RawTCB(le.Uint64(raw[offCurrentTCB:])),
		ReportedTCB:      RawTCB(le.Uint64(raw[offReportedTCB:])),
		CommittedTCB:     RawTCB(le.Uint64(raw[offCommittedTCB:])),
		LaunchTCB:        RawTCB(le.Uint64(raw[offLaunchTCB:])),
	}
	if r.Version < minReportVersion || r.Version > maxReportVersion {
		return nil, fmt.Errorf("%w: found version %d, expected %d to %d", ErrReportVersion, r.Version, minReportVersion, maxReportVersion)
	}
	copy(r.FamilyID[:], raw[offFamilyID:])
	copy(r.ImageID[:], raw[offImageID:])
	copy(r.ReportData[:], raw[offReportData:])
	copy(r.Measurement[:], raw[offMeasurement:])
	copy(r.HostData[:], raw[offHostData:])
	copy(r.IDKeyDigest[:], raw[offIDKeyDigest:])
	copy(r.AuthorKeyDigest[:], raw[offAuthorKeyDigest:])
	copy(r.ReportID[:], raw[offReportID:])
	copy(r.ReportIDMA[:], raw[offReportIDMA:])
	copy(r.ChipID[:], raw[offChipID:])
	if r.Version >= cpuidVersion {
		r.CPUID = &CPUID{Family: raw[offCPUID], Model: raw[offCPUID+1], Stepping: raw[offCPUID+2]}
	}
	if r.Version >= mitigationVersion {
		r.LaunchMitigations = le.Uint64(raw[offLaunchMit:])
		r.CurrentMitigations = le.Uint64(raw[offCurrentMit:])
	}
	return r, nil
}

func parseFirmwareVersion(b []byte) FirmwareVersion {
	return FirmwareVersion{Build: b[0], Minor: b[1], Major: b[2]}
}

// A byteRange is bytes [from, to) of a report.
type byteRange struct{ from, to int }

// reservedRanges lists what the ABI requires to be zero in a report of a
// version, the unused part of the signature included.
func reservedRanges(version uint32) []byteRange {
	cpuid := byteRange{offCPUID, offChipID}
	if version >= cpuidVersion {
		cpuid.from = offReserved18B
	}
	tail := byteRange{offLaunchMit, offSignature}
	if version >= mitigationVersion {
		tail.from = offReserved208
	}
	return []byteRange{
		{offReserved4C, offReportData},
		cpuid,
		{offReserved1EB, offReserved1EB + 1},
		{offReserved1EF, offReserved1EF + 1},
		tail,
		{offSignatureR + scalarSize, offSignatureR + scalarFieldSize},
		{offSignatureS + scalarSize, offSignatureS + scalarFieldSize},
		{offReserved330, ReportSize},
	}
}

// nonZero lists the reserved ranges of a report that are not zero.
func (r *Report) nonZero() []byteRange {
	var out []byteRange
	for _, b := range reservedRanges(r.Version) {
		if !allZero(r.Raw[b.from:b.to]) {
			out = append(out, b)
		}
	}
	return out
}

// signed returns the part that the signature covers.
func (r *Report) signed() []byte { return r.Raw[:offSignature] }

// signature returns the two scalars, which lie in little-endian order.
func (r *Report) signature() (rr, ss *big.Int) {
	return littleEndianInt(r.Raw[offSignatureR : offSignatureR+scalarSize]),
		littleEndianInt(r.Raw[offSignatureS : offSignatureS+scalarSize])
}

func littleEndianInt(b []byte) *big.Int {
	be := make([]byte, len(b))
	for i, c := range b {
		be[len(b)-1-i] = c
	}
	return new(big.Int).SetBytes(be)
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
