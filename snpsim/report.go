package snpsim

import (
	"crypto/ecdsa"
	"crypto/sha512"
	"encoding/binary"
	"math/big"

	"github.com/evtpm/evtpm/measure"
)

// ReportSize is the length of an ATTESTATION_REPORT in bytes.
const ReportSize = 1184

// ATTESTATION_REPORT (SNP ABI 56860, ATTESTATION_REPORT structure).
// Little-endian; what is not named is zero.
const (
	reportVersion          = 0x000 // u32
	reportGuestSVN         = 0x004 // u32
	reportPolicy           = 0x008 // u64
	reportFamilyID         = 0x010 // 16 bytes
	reportImageID          = 0x020 // 16 bytes
	reportVMPL             = 0x030 // u32
	reportSignatureAlgo    = 0x034 // u32
	reportCurrentTCB       = 0x038 // u64
	reportPlatformInfo     = 0x040 // u64
	reportSignerInfo       = 0x048 // u32
	reportData             = 0x050 // 64 bytes
	reportMeasurement      = 0x090 // 48 bytes
	reportHostData         = 0x0C0 // 32 bytes
	reportIDKeyDigest      = 0x0E0 // 48 bytes
	reportAuthorKeyDigest  = 0x110 // 48 bytes
	reportReportID         = 0x140 // 32 bytes
	reportReportIDMA       = 0x160 // 32 bytes
	reportReportedTCB      = 0x180 // u64
	reportFamily           = 0x188 // u8, from version 3; then model and stepping
	reportChipID           = 0x1A0 // 64 bytes
	reportCommittedTCB     = 0x1E0 // u64
	reportCurrentVersion   = 0x1E8 // build, minor, major: u8 each
	reportCommittedVersion = 0x1EC // likewise
	reportLaunchTCB        = 0x1F0 // u64
	reportLaunchMit        = 0x1F8 // u64, from version 5
	reportCurrentMit       = 0x200 // u64, from version 5
	reportSignature        = 0x2A0 // R, then S; the end of what is signed
	reportSignatureS       = 0x2E8

	signatureNumber = 48 // bytes of R and S that are used, little-endian

	algoECDSAP384SHA384 = 1
	signerAuthorKey     = 1 << 0 // AUTHOR_KEY_EN; SIGNING_KEY 0 is the VCEK
	mitigationVersion   = 5
)

// guest is what the AMD-SP keeps of a guest from its launch on.
type guest struct {
	measurement measure.Digest
	policy      uint64
	hostData    [32]byte
	reportID    [32]byte

	// Of the ID block; zero without one.
	guestSVN        uint32
	familyID        [16]byte
	imageID         [16]byte
	idKeyDigest     measure.Digest
	authorKeyDigest measure.Digest
	authorKey       bool
}

// report writes and signs a report.
func (c *Chip) report(g *guest, version, vmpl uint32, data [64]byte) ([]byte, error) {
	p := &c.product
	b := make([]byte, ReportSize)
	le := binary.LittleEndian
	le.PutUint32(b[reportVersion:], version)
	le.PutUint32(b[reportGuestSVN:], g.guestSVN)
	le.PutUint64(b[reportPolicy:], g.policy)
	copy(b[reportFamilyID:], g.familyID[:])
	copy(b[reportImageID:], g.imageID[:])
	le.PutUint32(b[reportVMPL:], vmpl)
	le.PutUint32(b[reportSignatureAlgo:], algoECDSAP384SHA384)
	le.PutUint64(b[reportPlatformInfo:], p.platformInfo)
	if g.authorKey {
		le.PutUint32(b[reportSignerInfo:], signerAuthorKey)
	}
	copy(b[reportData:], data[:])
	copy(b[reportMeasurement:], g.measurement[:])
	copy(b[reportHostData:], g.hostData[:])
	copy(b[reportIDKeyDigest:], g.idKeyDigest[:])
	copy(b[reportAuthorKeyDigest:], g.authorKeyDigest[:])
	copy(b[reportReportID:], g.reportID[:])
	for i := range len(g.reportID) {
		b[reportReportIDMA+i] = 0xFF // no migration agent
	}
	b[reportFamily], b[reportFamily+1], b[reportFamily+2] = p.family, p.model, p.stepping
	copy(b[reportChipID:], c.ID[:])
	for _, at := range []int{reportCurrentTCB, reportReportedTCB, reportCommittedTCB, reportLaunchTCB} {
		le.PutUint64(b[at:], p.version())
	}
	for _, at := range []int{reportCurrentVersion, reportCommittedVersion} {
		b[at], b[at+1], b[at+2] = p.build, p.minor, p.major
	}
	if version >= mitigationVersion {
		le.PutUint64(b[reportLaunchMit:], p.mitigations)
		le.PutUint64(b[reportCurrentMit:], p.mitigations)
	}
	sum := sha512.Sum384(b[:reportSignature])
	r, s, err := ecdsa.Sign(nil, c.key, sum[:])
	if err != nil {
		return nil, err
	}
	putNumber(b[reportSignature:], r)
	putNumber(b[reportSignatureS:], s)
	return b, nil
}

// putNumber writes a number of P-384 as the ABI has it.
func putNumber(out []byte, n *big.Int) {
	var be [signatureNumber]byte
	n.FillBytes(be[:])
	for i, b := range be {
		out[signatureNumber-1-i] = b
	}
}
