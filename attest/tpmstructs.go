package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"math/big"
)

// TPM 2.0 structures are read by hand: they come from the guest, and go-tpm's
// reader takes trailing bytes and allocates by counts in the input.

// Algorithm identifiers (TPM 2.0 Library, Part 2, TPM_ALG_ID).
const (
	algRSA    = 0x0001
	algSHA1   = 0x0004
	algAES    = 0x0006
	algSHA256 = 0x000B
	algSHA384 = 0x000C
	algSHA512 = 0x000D
	algNull   = 0x0010
	algRSASSA = 0x0014
	algRSAPSS = 0x0016
	algECDSA  = 0x0018
	algECC    = 0x0023
	algCFB    = 0x0043

	curveP256 = 0x0003
	curveP384 = 0x0004
)

// Object attributes (Part 2, TPMA_OBJECT).
const (
	attrFixedTPM            = 1 << 1
	attrSTClear             = 1 << 2
	attrFixedParent         = 1 << 4
	attrSensitiveDataOrigin = 1 << 5
	attrUserWithAuth        = 1 << 6
	attrAdminWithPolicy     = 1 << 7
	attrNoDA                = 1 << 10
	attrEncryptedDup        = 1 << 11
	attrRestricted          = 1 << 16
	attrDecrypt             = 1 << 17
	attrSign                = 1 << 18
	attrX509Sign            = 1 << 19

	attrDefined = attrFixedTPM | attrSTClear | attrFixedParent | attrSensitiveDataOrigin | attrUserWithAuth |
		attrAdminWithPolicy | attrNoDA | attrEncryptedDup | attrRestricted | attrDecrypt | attrSign | attrX509Sign
)

// errTrailing says that a structure is followed by bytes that are not part of it.
var errTrailing = errors.New("trailing bytes")

// tpmReader reads big-endian fields; the first fault sticks.
type tpmReader struct {
	b   []byte
	err error
}

func (r *tpmReader) take(n int) []byte {
	if r.err != nil || n > len(r.b) {
		if r.err == nil {
			r.err = fmt.Errorf("%d bytes are missing", n-len(r.b))
		}
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *tpmReader) u8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *tpmReader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *tpmReader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *tpmReader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// sized reads a TPM2B: a 16-bit length and as many bytes.
func (r *tpmReader) sized() []byte { return r.take(int(r.u16())) }

// fault records an error about a field.
func (r *tpmReader) fault(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

// end returns the first fault, or that bytes are left.
func (r *tpmReader) end() error {
	if r.err == nil && len(r.b) > 0 {
		return fmt.Errorf("%w: %d", errTrailing, len(r.b))
	}
	return r.err
}

// A tpmPublic is a TPMT_PUBLIC of an asymmetric key (Part 2, 12.2.4).
type tpmPublic struct {
	raw []byte // the TPMT_PUBLIC, without a size

	kind       uint16 // algRSA or algECC
	nameAlg    uint16
	attributes uint32
	authPolicy []byte

	symmetric, symBits, symMode uint16 // symBits and symMode only for a cipher
	scheme, schemeHash          uint16 // schemeHash only with a scheme

	bits     uint16 // RSA
	exponent uint32 // RSA; zero means 65537
	modulus  []byte // RSA

	curve uint16 // ECC
	x, y  []byte // ECC
}

// parsePublic reads exactly one TPMT_PUBLIC of an RSA or ECC key. All of its
// fields have one encoding only, so what parses is canonical.
func parsePublic(b []byte) (*tpmPublic, error) {
	r := &tpmReader{b: b}
	p := &tpmPublic{raw: b}
	p.kind, p.nameAlg, p.attributes, p.authPolicy = r.u16(), r.u16(), r.u32(), r.sized()
	if p.attributes&^attrDefined != 0 {
		r.fault("attributes %#08x have reserved bits", p.attributes)
	}
	if p.kind != algRSA && p.kind != algECC {
		r.fault("key type is %#04x, expected RSA or ECC", p.kind)
		return nil, r.err
	}
	if p.symmetric = r.u16(); p.symmetric != algNull {
		p.symBits, p.symMode = r.u16(), r.u16()
	}
	switch p.scheme = r.u16(); p.scheme {
	case algNull:
	case algRSASSA, algRSAPSS, algECDSA:
		p.schemeHash = r.u16()
	default:
		r.fault("scheme is %#04x, expected none or a signing scheme", p.scheme)
	}
	if p.kind == algRSA {
		p.bits, p.exponent, p.modulus = r.u16(), r.u32(), r.sized()
	} else {
		p.curve = r.u16()
		if kdf := r.u16(); kdf != algNull {
			r.fault("key derivation scheme is %#04x, expected none", kdf)
		}
		p.x, p.y = r.sized(), r.sized()
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	return p, nil
}

// parsePublic2B reads exactly one TPM2B_PUBLIC.
func parsePublic2B(b []byte) (*tpmPublic, error) {
	r := &tpmReader{b: b}
	inner := r.sized()
	if err := r.end(); err != nil {
		return nil, err
	}
	return parsePublic(inner)
}

// name is the key's Name: its name algorithm and the digest of its public area
// (Part 1, 16). Nil for an algorithm that is not known.
func (p *tpmPublic) name() []byte {
	h, ok := tpmHash(p.nameAlg)
	if !ok {
		return nil
	}
	w := h.New()
	w.Write(p.raw)
	return w.Sum(binary.BigEndian.AppendUint16(nil, p.nameAlg))
}

// key returns the Go form of the key: RSA of 2048 to 4096 bits, or P-256 or
// P-384.
func (p *tpmPublic) key() (crypto.PublicKey, error) {
	if p.kind == algRSA {
		n := new(big.Int).SetBytes(p.modulus)
		switch {
		case p.exponent != 0 && p.exponent != 65537:
			return nil, fmt.Errorf("RSA exponent is %d, expected 65537", p.exponent)
		case p.bits < 2048 || p.bits > 4096:
			return nil, fmt.Errorf("RSA key of %d bits, expected 2048 to 4096", p.bits)
		case len(p.modulus) != int(p.bits)/8 || n.BitLen() != int(p.bits) || n.Bit(0) == 0:
			return nil, fmt.Errorf("RSA modulus is not an odd number of %d bits", p.bits)
		}
		return &rsa.PublicKey{N: n, E: 65537}, nil
	}
	var curve elliptic.Curve
	switch p.curve {
	case curveP256:
		curve = elliptic.P256()
	case curveP384:
		curve = elliptic.P384()
	default:
		return nil, fmt.Errorf("curve is %#04x, expected P-256 or P-384", p.curve)
	}
	size := (curve.Params().BitSize + 7) / 8
	// That both together have the right length, ParseUncompressedPublicKey sees to.
	if len(p.x) != size {
		return nil, fmt.Errorf("point of %d and %d bytes, expected %d each", len(p.x), len(p.y), size)
	}
	point := bytes.Join([][]byte{{4}, p.x, p.y}, nil)
	return ecdsa.ParseUncompressedPublicKey(curve, point)
}

// tpmHash returns a hash algorithm; SHA-1 is not among them.
func tpmHash(alg uint16) (crypto.Hash, bool) {
	switch alg {
	case algSHA256:
		return crypto.SHA256, true
	case algSHA384:
		return crypto.SHA384, true
	case algSHA512:
		return crypto.SHA512, true
	}
	return 0, false
}

// bankHash returns the hash of a PCR bank by its TCG name.
func bankHash(bank string) (alg uint16, new func() hash.Hash, size int, ok bool) {
	switch bank {
	case "sha256":
		return algSHA256, sha256.New, sha256.Size, true
	case "sha384":
		return algSHA384, sha512.New384, sha512.Size384, true
	}
	return 0, nil, 0, false
}

// A tpmSignature is a TPMT_SIGNATURE (Part 2, 11.3.4).
type tpmSignature struct {
	scheme, hash uint16
	rsa          []byte
	r, s         []byte
}

// parseSignature reads exactly one TPMT_SIGNATURE by RSASSA, RSAPSS or ECDSA.
func parseSignature(b []byte) (*tpmSignature, error) {
	r := &tpmReader{b: b}
	sig := &tpmSignature{scheme: r.u16(), hash: r.u16()}
	switch sig.scheme {
	case algRSASSA, algRSAPSS:
		sig.rsa = r.sized()
	case algECDSA:
		sig.r, sig.s = r.sized(), r.sized()
	default:
		r.fault("scheme is %#04x, expected RSASSA, RSAPSS or ECDSA", sig.scheme)
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	return sig, nil
}

// verify verifies a signature over a message.
func (s *tpmSignature) verify(key crypto.PublicKey, message []byte) error {
	h, ok := tpmHash(s.hash)
	if !ok {
		return fmt.Errorf("hash is %#04x, expected SHA-256, SHA-384 or SHA-512", s.hash)
	}
	w := h.New()
	w.Write(message)
	digest := w.Sum(nil)
	switch key := key.(type) {
	case *rsa.PublicKey:
		if s.scheme == algRSAPSS {
			return rsa.VerifyPSS(key, h, digest, s.rsa, nil)
		}
		return rsa.VerifyPKCS1v15(key, h, digest, s.rsa)
	case *ecdsa.PublicKey:
		r, ss := new(big.Int).SetBytes(s.r), new(big.Int).SetBytes(s.s)
		if !ecdsa.Verify(key, digest, r, ss) {
			return errors.New("the signature does not verify")
		}
		return nil
	}
	return errors.New("no such key")
}

// Fields of a TPMS_ATTEST (Part 2, 10.12.12).
const (
	tpmGeneratedValue = 0xFF544347
	stAttestQuote     = 0x8018

	// maxPCRSelections bounds the banks in a quote; a TPM has a handful.
	maxPCRSelections = 16
)

// A tpmQuote is a TPMS_ATTEST of type quote.
type tpmQuote struct {
	magic           uint32
	kind            uint16
	qualifiedSigner []byte
	extraData       []byte
	clock           uint64
	resetCount      uint32
	restartCount    uint32
	safe            bool
	firmware        uint64
	selections      []pcrSelection
	pcrDigest       []byte
}

// A pcrSelection is a bank and a set of PCRs.
type pcrSelection struct {
	alg  uint16
	pcrs []int
}

// errNotQuote says that a TPMS_ATTEST attests something else.
var errNotQuote = errors.New("not a quote")

// parseQuote reads exactly one TPMS_ATTEST. Magic and type are left for the
// caller to judge; the rest is read only if the type is a quote.
func parseQuote(b []byte) (*tpmQuote, error) {
	r := &tpmReader{b: b}
	q := &tpmQuote{magic: r.u32(), kind: r.u16()}
	if r.err != nil {
		return nil, r.err
	}
	if q.magic != tpmGeneratedValue || q.kind != stAttestQuote {
		return q, errNotQuote
	}
	q.qualifiedSigner, q.extraData = r.sized(), r.sized()
	q.clock, q.resetCount, q.restartCount = r.u64(), r.u32(), r.u32()
	switch safe := r.u8(); safe {
	case 0, 1:
		q.safe = safe == 1
	default:
		r.fault("safe is %d, expected 0 or 1", safe)
	}
	q.firmware = r.u64()
	n := r.u32()
	if n > maxPCRSelections {
		r.fault("%d PCR selections, expected at most %d", n, maxPCRSelections)
		return nil, r.err
	}
	for range n {
		sel := pcrSelection{alg: r.u16()}
		for i, bits := range r.take(int(r.u8())) {
			for bit := range 8 {
				if bits>>bit&1 != 0 {
					sel.pcrs = append(sel.pcrs, i*8+bit)
				}
			}
		}
		q.selections = append(q.selections, sel)
	}
	q.pcrDigest = r.sized()
	if err := r.end(); err != nil {
		return nil, err
	}
	return q, nil
}
