package measure

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
)

// The ID block (SNP ABI 56860, SNP_LAUNCH_FINISH, "ID Block structure").
// Little-endian.
const (
	idBlockLaunchDigest = 0x00 // 48 bytes
	idBlockFamilyID     = 0x30 // 16 bytes
	idBlockImageID      = 0x40 // 16 bytes
	idBlockVersion      = 0x50 // u32: 1
	idBlockGuestSVN     = 0x54 // u32
	idBlockPolicy       = 0x58 // u64
	IDBlockSize         = 0x60
	idBlockVersionOne   = 1
)

// The ID authentication information (SNP ABI 56860, SNP_LAUNCH_FINISH, "ID
// Authentication Information structure"). Little-endian; what is not named is
// zero.
const (
	idAuthIDKeyAlgo     = 0x000 // u32
	idAuthAuthorKeyAlgo = 0x004 // u32: zero without author key
	idAuthBlockSig      = 0x040 // 512 bytes: by the ID key, over the ID block
	idAuthIDKey         = 0x240 // 0x404 bytes
	idAuthIDKeySig      = 0x680 // 512 bytes: by the author key, over the ID key
	idAuthAuthorKey     = 0x880 // 0x404 bytes
	IDAuthSize          = 0x1000
)

// Keys and signatures (SNP ABI 56860, "Digital signatures": ECDSA P-384 with
// SHA-384). Numbers are little-endian in 72 bytes.
const (
	algoECDSAP384SHA384 = 1
	curveP384           = 2
	componentSize       = 72
	numberSize          = 48 // of P-384, the rest of a component is zero
	keyQX               = 0x04
	keyQY               = keyQX + componentSize
	IDKeySize           = 0x404
	signatureS          = componentSize
	signatureSize       = 0x200
)

// An IDBlock says what a launch must be for the AMD-SP to let it start, and what
// reports then say of it.
type IDBlock struct {
	LaunchDigest Digest
	FamilyID     [16]byte
	ImageID      [16]byte
	GuestSVN     uint32
	Policy       uint64 // must be the policy that the launch starts with
}

// Encode returns the 96 bytes of the block, which are also what the ID key
// signs.
func (b *IDBlock) Encode() []byte {
	out := make([]byte, IDBlockSize)
	copy(out[idBlockLaunchDigest:], b.LaunchDigest[:])
	copy(out[idBlockFamilyID:], b.FamilyID[:])
	copy(out[idBlockImageID:], b.ImageID[:])
	binary.LittleEndian.PutUint32(out[idBlockVersion:], idBlockVersionOne)
	binary.LittleEndian.PutUint32(out[idBlockGuestSVN:], b.GuestSVN)
	binary.LittleEndian.PutUint64(out[idBlockPolicy:], b.Policy)
	return out
}

// ParseIDBlock reads the 96 bytes of a block.
func ParseIDBlock(data []byte) (*IDBlock, error) {
	if len(data) != IDBlockSize {
		return nil, fmt.Errorf("ID block: found %d bytes, expected %d", len(data), IDBlockSize)
	}
	if v := binary.LittleEndian.Uint32(data[idBlockVersion:]); v != idBlockVersionOne {
		return nil, fmt.Errorf("ID block: found version %d, expected %d", v, idBlockVersionOne)
	}
	return &IDBlock{
		LaunchDigest: Digest(data[idBlockLaunchDigest:idBlockFamilyID]),
		FamilyID:     [16]byte(data[idBlockFamilyID:idBlockImageID]),
		ImageID:      [16]byte(data[idBlockImageID:idBlockVersion]),
		GuestSVN:     binary.LittleEndian.Uint32(data[idBlockGuestSVN:]),
		Policy:       binary.LittleEndian.Uint64(data[idBlockPolicy:]),
	}, nil
}

// A Signature is an ECDSA P-384 signature.
type Signature struct{ R, S *big.Int }

// ParseSignatureDER reads a signature in ASN.1 DER, as OpenSSL, PKCS#11 tools
// and key services give it.
func ParseSignatureDER(der []byte) (*Signature, error) {
	sig := new(Signature)
	rest, err := asn1.Unmarshal(der, sig)
	switch {
	case err != nil:
		return nil, fmt.Errorf("signature: not ECDSA in DER: %w", err)
	case len(rest) != 0:
		return nil, fmt.Errorf("signature: found %d bytes after the DER structure", len(rest))
	}
	return sig, sig.check()
}

func (s *Signature) check() error {
	n := elliptic.P384().Params().N
	for _, c := range []*big.Int{s.R, s.S} {
		if c.Sign() <= 0 || c.Cmp(n) >= 0 {
			return errors.New("signature: found a number outside of 1 to the order of P-384")
		}
	}
	return nil
}

func (s *Signature) encode() []byte {
	out := make([]byte, signatureSize)
	putNumber(out, s.R)
	putNumber(out[signatureS:], s.S)
	return out
}

func parseSignature(data []byte) (*Signature, error) {
	sig := new(Signature)
	var err error
	if sig.R, err = number(data[:componentSize]); err != nil {
		return nil, fmt.Errorf("signature: R: %w", err)
	}
	if sig.S, err = number(data[signatureS : signatureS+componentSize]); err != nil {
		return nil, fmt.Errorf("signature: S: %w", err)
	}
	if !isZero(data[signatureS+componentSize:]) {
		return nil, errors.New("signature: found bytes after S that are not zero")
	}
	return sig, sig.check()
}

// putNumber writes a number of P-384 in the ABI's form.
func putNumber(out []byte, n *big.Int) {
	var be [numberSize]byte
	n.FillBytes(be[:])
	for i, b := range be {
		out[numberSize-1-i] = b
	}
}

func number(component []byte) (*big.Int, error) {
	if !isZero(component[numberSize:]) {
		return nil, errors.New("found more than 384 bits")
	}
	var be [numberSize]byte
	for i := range be {
		be[i] = component[numberSize-1-i]
	}
	return new(big.Int).SetBytes(be[:]), nil
}

func isZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

// EncodeIDKey returns a public key in the ABI's form: 0x404 bytes, which are
// also what the author key signs, and whose SHA-384 reports carry.
func EncodeIDKey(key *ecdsa.PublicKey) ([]byte, error) {
	if key.Curve != elliptic.P384() {
		return nil, fmt.Errorf("key: found curve %s, expected P-384", key.Curve.Params().Name)
	}
	point, err := key.Bytes() // 4, X, Y
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	out := make([]byte, IDKeySize)
	binary.LittleEndian.PutUint32(out, curveP384)
	putNumber(out[keyQX:], new(big.Int).SetBytes(point[1:1+numberSize]))
	putNumber(out[keyQY:], new(big.Int).SetBytes(point[1+numberSize:]))
	return out, nil
}

// ParseIDKey reads a public key in the ABI's form.
func ParseIDKey(data []byte) (*ecdsa.PublicKey, error) {
	if len(data) != IDKeySize {
		return nil, fmt.Errorf("key: found %d bytes, expected %d", len(data), IDKeySize)
	}
	if c := binary.LittleEndian.Uint32(data); c != curveP384 {
		return nil, fmt.Errorf("key: found curve %d, expected %d (P-384)", c, curveP384)
	}
	if !isZero(data[keyQY+componentSize:]) {
		return nil, errors.New("key: found bytes after QY that are not zero")
	}
	point := []byte{4}
	for _, at := range []int{keyQX, keyQY} {
		n, err := number(data[at : at+componentSize])
		if err != nil {
			return nil, fmt.Errorf("key: %w", err)
		}
		point = append(point, n.FillBytes(make([]byte, numberSize))...)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P384(), point)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	return key, nil
}

// IDKeyDigest is what a report says of a key: the SHA-384 of its 0x404 bytes.
func IDKeyDigest(key *ecdsa.PublicKey) (Digest, error) {
	data, err := EncodeIDKey(key)
	if err != nil {
		return Digest{}, err
	}
	return sha512.Sum384(data), nil
}

// An IDAuth proves an ID block: the ID key's signature over it and, if there is
// an author key, that key's signature over the ID key.
type IDAuth struct {
	IDKey    *ecdsa.PublicKey
	BlockSig *Signature

	// AuthorKey and IDKeySig are both nil without author key. QEMU ignores them
	// unless author-key-enabled is on. Early SNP firmware refused a launch
	// without author key.
	AuthorKey *ecdsa.PublicKey
	IDKeySig  *Signature
}

// Encode returns the 4096 bytes of the structure.
func (a *IDAuth) Encode() ([]byte, error) {
	if a.IDKey == nil || a.BlockSig == nil {
		return nil, errors.New("ID auth: found no ID key or no signature by it")
	}
	if (a.AuthorKey == nil) != (a.IDKeySig == nil) {
		return nil, errors.New("ID auth: an author key and its signature over the ID key go together: found one of them")
	}
	out := make([]byte, IDAuthSize)
	put := func(algoAt, keyAt, sigAt int, key *ecdsa.PublicKey, sig *Signature) error {
		if err := sig.check(); err != nil {
			return fmt.Errorf("ID auth: %w", err)
		}
		data, err := EncodeIDKey(key)
		if err != nil {
			return fmt.Errorf("ID auth: %w", err)
		}
		binary.LittleEndian.PutUint32(out[algoAt:], algoECDSAP384SHA384)
		copy(out[keyAt:], data)
		copy(out[sigAt:], sig.encode())
		return nil
	}
	if err := put(idAuthIDKeyAlgo, idAuthIDKey, idAuthBlockSig, a.IDKey, a.BlockSig); err != nil {
		return nil, err
	}
	if a.AuthorKey != nil {
		if err := put(idAuthAuthorKeyAlgo, idAuthAuthorKey, idAuthIDKeySig, a.AuthorKey, a.IDKeySig); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// ParseIDAuth reads the 4096 bytes of the structure. It checks no signature: see
// [IDAuth.Verify].
func ParseIDAuth(data []byte) (*IDAuth, error) {
	if len(data) != IDAuthSize {
		return nil, fmt.Errorf("ID auth: found %d bytes, expected %d", len(data), IDAuthSize)
	}
	for _, gap := range [][2]int{
		{idAuthAuthorKeyAlgo + 4, idAuthBlockSig},
		{idAuthIDKey + IDKeySize, idAuthIDKeySig},
		{idAuthAuthorKey + IDKeySize, IDAuthSize},
	} {
		if !isZero(data[gap[0]:gap[1]]) {
			return nil, fmt.Errorf("ID auth: found reserved bytes 0x%x to 0x%x that are not zero", gap[0], gap[1]-1)
		}
	}
	a := new(IDAuth)
	if algo := binary.LittleEndian.Uint32(data[idAuthIDKeyAlgo:]); algo != algoECDSAP384SHA384 {
		return nil, fmt.Errorf("ID auth: ID key: found algorithm %d, expected %d (ECDSA P-384 with SHA-384)", algo, algoECDSAP384SHA384)
	}
	get := func(what string, keyAt, sigAt int) (*ecdsa.PublicKey, *Signature, error) {
		key, err := ParseIDKey(data[keyAt : keyAt+IDKeySize])
		if err != nil {
			return nil, nil, fmt.Errorf("ID auth: %s: %w", what, err)
		}
		sig, err := parseSignature(data[sigAt : sigAt+signatureSize])
		if err != nil {
			return nil, nil, fmt.Errorf("ID auth: %s: %w", what, err)
		}
		return key, sig, nil
	}
	var err error
	if a.IDKey, a.BlockSig, err = get("ID key", idAuthIDKey, idAuthBlockSig); err != nil {
		return nil, err
	}
	switch algo := binary.LittleEndian.Uint32(data[idAuthAuthorKeyAlgo:]); algo {
	case algoECDSAP384SHA384:
		if a.AuthorKey, a.IDKeySig, err = get("author key", idAuthAuthorKey, idAuthIDKeySig); err != nil {
			return nil, err
		}
	case 0:
		if !isZero(data[idAuthIDKeySig:]) {
			return nil, errors.New("ID auth: found an author key or its signature, but its algorithm is 0")
		}
	default:
		return nil, fmt.Errorf("ID auth: author key: found algorithm %d, expected %d, or 0 for no author key", algo, algoECDSAP384SHA384)
	}
	return a, nil
}

// Verify checks the signatures over block and, with an author key, over the ID
// key, as the AMD-SP does.
func (a *IDAuth) Verify(block *IDBlock) error {
	var errs []error
	sum := sha512.Sum384(block.Encode())
	if !ecdsa.Verify(a.IDKey, sum[:], a.BlockSig.R, a.BlockSig.S) {
		errs = append(errs, errors.New("ID auth: the ID key's signature over the ID block is wrong (AMD-SP: BAD_SIGNATURE)"))
	}
	if a.AuthorKey != nil {
		digest, err := IDKeyDigest(a.IDKey)
		if err != nil {
			return err
		}
		if !ecdsa.Verify(a.AuthorKey, digest[:], a.IDKeySig.R, a.IDKeySig.S) {
			errs = append(errs, errors.New("ID auth: the author key's signature over the ID key is wrong (AMD-SP: BAD_SIGNATURE)"))
		}
	}
	return errors.Join(errs...)
}

// Golden returns what a report must say of a launch with this block.
func (a *IDAuth) Golden(block *IDBlock) (*GoldenIDBlock, error) {
	g := &GoldenIDBlock{FamilyID: block.FamilyID[:], ImageID: block.ImageID[:], GuestSVN: block.GuestSVN}
	var err error
	if g.IDKeyDigest, err = IDKeyDigest(a.IDKey); err != nil {
		return nil, err
	}
	if a.AuthorKey != nil {
		digest, err := IDKeyDigest(a.AuthorKey)
		if err != nil {
			return nil, err
		}
		g.AuthorKeyDigest = &digest
	}
	return g, nil
}

// SignOptions say how an ID block is signed.
type SignOptions struct {
	// IDKey signs the ID block. Its public key must be ECDSA P-384.
	IDKey crypto.Signer

	// AuthorKey signs the ID key; nil is no author key.
	AuthorKey crypto.Signer

	// Rand is the source of the signatures' nonces. Nil makes them deterministic
	// (RFC 6979), which keys of crypto/ecdsa support.
	Rand io.Reader
}

// SignIDBlock signs a block.
func SignIDBlock(block *IDBlock, o SignOptions) (*IDAuth, error) {
	a := new(IDAuth)
	var err error
	if a.IDKey, a.BlockSig, err = sign(o.IDKey, o.Rand, block.Encode()); err != nil {
		return nil, fmt.Errorf("ID key: %w", err)
	}
	if o.AuthorKey != nil {
		if err := a.SignKey(o.AuthorKey, o.Rand); err != nil {
			return nil, err
		}
	}
	return a, a.Verify(block)
}

// SignKey signs the ID key with an author key. Rand is as in [SignOptions].
func (a *IDAuth) SignKey(author crypto.Signer, rand io.Reader) error {
	key, err := EncodeIDKey(a.IDKey)
	if err != nil {
		return err
	}
	if a.AuthorKey, a.IDKeySig, err = sign(author, rand, key); err != nil {
		return fmt.Errorf("author key: %w", err)
	}
	return nil
}

func sign(signer crypto.Signer, rand io.Reader, message []byte) (*ecdsa.PublicKey, *Signature, error) {
	key, ok := signer.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, nil, fmt.Errorf("found a key of type %T, expected ECDSA P-384", signer.Public())
	}
	if _, err := EncodeIDKey(key); err != nil {
		return nil, nil, err
	}
	sum := sha512.Sum384(message)
	der, err := signer.Sign(rand, sum[:], crypto.SHA384)
	if err != nil {
		return nil, nil, err
	}
	sig, err := ParseSignatureDER(der)
	return key, sig, err
}
