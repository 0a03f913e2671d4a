package svsmimg

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/evtpm/evtpm/measure"
)

// SNP_ID_BLOCK (igvm_defs, IGVM_VHS_SNP_ID_BLOCK): the ID block and its
// authentication without the policy, which GUEST_POLICY has. Numbers of keys and
// signatures are little-endian in 72 bytes, as in the SNP ABI.
const (
	idBlockMask          = 0   // u32
	idBlockAuthorEnabled = 4   // u8, then 3 reserved bytes
	idBlockDigest        = 8   // 48 bytes
	idBlockFamilyID      = 56  // 16 bytes
	idBlockImageID       = 72  // 16 bytes
	idBlockVersion       = 88  // u32
	idBlockGuestSVN      = 92  // u32
	idBlockIDAlgo        = 96  // u32
	idBlockAuthorAlgo    = 100 // u32
	idBlockIDSig         = 104 // r[72], s[72]
	idBlockIDKey         = 248 // u32 curve, u32 reserved, qx[72], qy[72]
	idBlockAuthorSig     = 400
	idBlockAuthorKey     = 544
	idBlockSize          = 696
	idSigSize            = 144
	idKeySize            = 152
	idKeyReserved        = 4 // offset in a key; the SNP ABI's form lacks it
)

// SNPIDBlock is SNP_ID_BLOCK.
type SNPIDBlock struct {
	Mask             uint32
	AuthorKeyEnabled bool
	LaunchDigest     measure.Digest
	FamilyID         [16]byte
	ImageID          [16]byte
	Version          uint32 // 1
	GuestSVN         uint32

	IDKeyAlgorithm, AuthorKeyAlgorithm uint32
	IDSignature, AuthorSignature       [idSigSize]byte
	IDKey, AuthorKey                   [idKeySize]byte
}

func decodeIDBlock(c []byte) (*SNPIDBlock, error) {
	if c[idBlockAuthorEnabled] > 1 {
		return nil, fmt.Errorf("found AUTHOR_KEY_ENABLED %d, expected 0 or 1", c[idBlockAuthorEnabled])
	}
	b := &SNPIDBlock{
		Mask:               le.Uint32(c[idBlockMask:]),
		AuthorKeyEnabled:   c[idBlockAuthorEnabled] == 1,
		LaunchDigest:       measure.Digest(c[idBlockDigest:idBlockFamilyID]),
		FamilyID:           [16]byte(c[idBlockFamilyID:]),
		ImageID:            [16]byte(c[idBlockImageID:]),
		Version:            le.Uint32(c[idBlockVersion:]),
		GuestSVN:           le.Uint32(c[idBlockGuestSVN:]),
		IDKeyAlgorithm:     le.Uint32(c[idBlockIDAlgo:]),
		AuthorKeyAlgorithm: le.Uint32(c[idBlockAuthorAlgo:]),
		IDSignature:        [idSigSize]byte(c[idBlockIDSig:]),
		IDKey:              [idKeySize]byte(c[idBlockIDKey:]),
		AuthorSignature:    [idSigSize]byte(c[idBlockAuthorSig:]),
		AuthorKey:          [idKeySize]byte(c[idBlockAuthorKey:]),
	}
	return b, zero(c[idBlockAuthorEnabled+1:idBlockDigest], b.IDKey[idKeyReserved:8], b.AuthorKey[idKeyReserved:8])
}

func (b *SNPIDBlock) encode(c []byte) {
	le.PutUint32(c[idBlockMask:], b.Mask)
	if b.AuthorKeyEnabled {
		c[idBlockAuthorEnabled] = 1
	}
	copy(c[idBlockDigest:], b.LaunchDigest[:])
	copy(c[idBlockFamilyID:], b.FamilyID[:])
	copy(c[idBlockImageID:], b.ImageID[:])
	le.PutUint32(c[idBlockVersion:], b.Version)
	le.PutUint32(c[idBlockGuestSVN:], b.GuestSVN)
	le.PutUint32(c[idBlockIDAlgo:], b.IDKeyAlgorithm)
	le.PutUint32(c[idBlockAuthorAlgo:], b.AuthorKeyAlgorithm)
	copy(c[idBlockIDSig:], b.IDSignature[:])
	copy(c[idBlockIDKey:], b.IDKey[:])
	copy(c[idBlockAuthorSig:], b.AuthorSignature[:])
	copy(c[idBlockAuthorKey:], b.AuthorKey[:])
}

// The places of the same things in the SNP ABI's ID authentication information.
const (
	authIDAlgo     = 0x000
	authAuthorAlgo = 0x004
	authBlockSig   = 0x040
	authIDKey      = 0x240
	authIDKeySig   = 0x680
	authAuthorKey  = 0x880
	abiQX          = 4 // in a key
)

// NewSNPIDBlock makes the header of a signed ID block, for the platforms of mask.
func NewSNPIDBlock(mask uint32, block *measure.IDBlock, auth *measure.IDAuth) (*SNPIDBlock, error) {
	raw, err := auth.Encode()
	if err != nil {
		return nil, err
	}
	b := &SNPIDBlock{
		Mask: mask, AuthorKeyEnabled: auth.AuthorKey != nil,
		LaunchDigest: block.LaunchDigest, FamilyID: block.FamilyID, ImageID: block.ImageID,
		Version: 1, GuestSVN: block.GuestSVN,
		IDKeyAlgorithm: le.Uint32(raw[authIDAlgo:]), AuthorKeyAlgorithm: le.Uint32(raw[authAuthorAlgo:]),
		IDSignature: [idSigSize]byte(raw[authBlockSig:]), AuthorSignature: [idSigSize]byte(raw[authIDKeySig:]),
	}
	for _, k := range []struct {
		to *[idKeySize]byte
		at int
	}{{&b.IDKey, authIDKey}, {&b.AuthorKey, authAuthorKey}} {
		copy(k.to[:idKeyReserved], raw[k.at:])
		copy(k.to[8:], raw[k.at+abiQX:k.at+abiQX+idSigSize])
	}
	return b, nil
}

// Block returns the ID block that the AMD-SP is given: the header's fields and
// the policy that the file has elsewhere.
func (b *SNPIDBlock) Block(policy uint64) *measure.IDBlock {
	return &measure.IDBlock{LaunchDigest: b.LaunchDigest, FamilyID: b.FamilyID, ImageID: b.ImageID, GuestSVN: b.GuestSVN, Policy: policy}
}

// Auth returns the ID authentication information. It checks no signature: see
// [measure.IDAuth.Verify].
func (b *SNPIDBlock) Auth() (*measure.IDAuth, error) {
	raw := make([]byte, measure.IDAuthSize)
	put := func(algoAt, keyAt, sigAt int, algo uint32, key *[idKeySize]byte, sig *[idSigSize]byte) {
		le.PutUint32(raw[algoAt:], algo)
		copy(raw[keyAt:], key[:idKeyReserved])
		copy(raw[keyAt+abiQX:], key[8:])
		copy(raw[sigAt:], sig[:])
	}
	put(authIDAlgo, authIDKey, authBlockSig, b.IDKeyAlgorithm, &b.IDKey, &b.IDSignature)
	// igvmmeasure names an algorithm for an author key that is not there.
	author := b.AuthorKeyAlgorithm
	if !b.AuthorKeyEnabled && isZero(b.AuthorKey[:]) && isZero(b.AuthorSignature[:]) {
		author = 0
	}
	put(authAuthorAlgo, authAuthorKey, authIDKeySig, author, &b.AuthorKey, &b.AuthorSignature)
	auth, err := measure.ParseIDAuth(raw)
	if err != nil {
		return nil, err
	}
	if b.AuthorKeyEnabled != (auth.AuthorKey != nil) {
		return nil, errors.New("AUTHOR_KEY_ENABLED does not say whether there is an author key")
	}
	return auth, nil
}

func isZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }
