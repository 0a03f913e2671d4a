package attesttest

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"math/big"
)

// ReportSize is the length of an ATTESTATION_REPORT.
const ReportSize = 1184

// Offsets in an ATTESTATION_REPORT, written down here a second time so that a
// slip in package attest does not hide in its own tests.
const (
	OffVersion          = 0x00
	OffGuestSVN         = 0x04
	OffPolicy           = 0x08
	OffFamilyID         = 0x10
	OffImageID          = 0x20
	OffVMPL             = 0x30
	OffSignatureAlgo    = 0x34
	OffCurrentTCB       = 0x38
	OffPlatformInfo     = 0x40
	OffSignerInfo       = 0x48
	OffReportData       = 0x50
	OffMeasurement      = 0x90
	OffHostData         = 0xC0
	OffIDKeyDigest      = 0xE0
	OffAuthorKeyDigest  = 0x110
	OffReportID         = 0x140
	OffReportIDMA       = 0x160
	OffReportedTCB      = 0x180
	OffCPUID            = 0x188
	OffChipID           = 0x1A0
	OffCommittedTCB     = 0x1E0
	OffCurrentVersion   = 0x1E8
	OffCommittedVersion = 0x1EC
	OffLaunchTCB        = 0x1F0
	OffLaunchMit        = 0x1F8
	OffCurrentMit       = 0x200
	OffSignature        = 0x2A0
	OffSignatureS       = 0x2E8
)

// A Report is a report being made.
type Report []byte

// Put copies bytes to an offset.
func (r Report) Put(off int, b []byte) { copy(r[off:], b) }

// PutU32 writes a little-endian integer.
func (r Report) PutU32(off int, v uint32) { binary.LittleEndian.PutUint32(r[off:], v) }

// PutU64 writes a little-endian integer.
func (r Report) PutU64(off int, v uint64) { binary.LittleEndian.PutUint64(r[off:], v) }

// PutTCBs writes the same value to the four TCB versions.
func (r Report) PutTCBs(raw uint64) {
	for _, off := range []int{OffCurrentTCB, OffReportedTCB, OffCommittedTCB, OffLaunchTCB} {
		r.PutU64(off, raw)
	}
}

// Sign signs a report with a leaf's key, as the AMD-SP does: R and S in
// little-endian fields of 72 bytes.
func (r Report) Sign(key *ecdsa.PrivateKey) {
	digest := sha512.Sum384(r[:OffSignature])
	rr, ss, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		panic(err)
	}
	clear(r[OffSignature:])
	r.PutSignature(rr, ss)
}

// PutSignature writes R and S.
func (r Report) PutSignature(rr, ss *big.Int) {
	put := func(off int, v *big.Int) {
		be := v.FillBytes(make([]byte, 72))
		for i, b := range be {
			r[off+len(be)-1-i] = b
		}
	}
	put(OffSignature, rr)
	put(OffSignatureS, ss)
}
