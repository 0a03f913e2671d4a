package attest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
)

// Extensions of VCEK and VLEK certificates (AMD 57230, VCEK Certificate and
// KDS Interface Specification; AMD 58095 for VLEK), below 1.3.6.1.4.1.3704.1.
const (
	extStructVersion = "1.3.6.1.4.1.3704.1.1"
	extProductName   = "1.3.6.1.4.1.3704.1.2"
	extBootloaderSPL = "1.3.6.1.4.1.3704.1.3.1"
	extTEESPL        = "1.3.6.1.4.1.3704.1.3.2"
	extSNPSPL        = "1.3.6.1.4.1.3704.1.3.3"
	extSPL4          = "1.3.6.1.4.1.3704.1.3.4"
	extSPL5          = "1.3.6.1.4.1.3704.1.3.5"
	extSPL6          = "1.3.6.1.4.1.3704.1.3.6"
	extSPL7          = "1.3.6.1.4.1.3704.1.3.7"
	extMicrocodeSPL  = "1.3.6.1.4.1.3704.1.3.8"
	extFMCSPL        = "1.3.6.1.4.1.3704.1.3.9"
	extHWID          = "1.3.6.1.4.1.3704.1.4"
	extCSPID         = "1.3.6.1.4.1.3704.1.5"
)

// amdArc is the OID that those of AMD's extensions begin with.
var amdArc = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}

// amdExtension returns the one or two numbers behind AMD's arc, zeros for other
// extensions.
func amdExtension(id asn1.ObjectIdentifier) (tail [2]int) {
	if n := len(id) - len(amdArc); n >= 1 && n <= len(tail) && id[:len(amdArc)].Equal(amdArc) {
		copy(tail[:], id[len(amdArc):])
	}
	return tail
}

// Subject common names of leaf certificates.
const (
	cnVCEK = "SEV-VCEK"
	cnVLEK = "SEV-VLEK"
)

// A Leaf is what a VCEK or VLEK certificate says.
type Leaf struct {
	Certificate *x509.Certificate
	// Kind is "vcek" or "vlek".
	Kind string
	// ProductName is AMD's, with or without a stepping: "Milan-B0", "Genoa".
	ProductName string
	// HWID is the chip's id: 64 bytes, or 8 on Turin and later. Nil for VLEK.
	HWID []byte
	// CSPID names the cloud provider of a VLEK.
	CSPID string
	TCB   TCB

	key *ecdsa.PublicKey
}

// Line is the product's name without a stepping.
func (l *Leaf) Line() string {
	line, _, _ := strings.Cut(l.ProductName, "-")
	return line
}

// ParseLeaf reads a VCEK or VLEK certificate. It verifies no signature: see
// [VerifyReport].
func ParseLeaf(c *x509.Certificate) (*Leaf, error) { return parseLeaf(c) }

// URL is where the Key Distribution Service has a VCEK certificate; empty for a
// VLEK certificate, which only its provider has, and for an unknown product.
func (l *Leaf) URL() string {
	product, ok := productOfLine(l.Line())
	if !ok || l.Kind != "vcek" {
		return ""
	}
	var id [64]byte
	copy(id[:], l.HWID)
	return VCEKURL(product, id, l.TCB)
}

// parseLeaf reads a leaf certificate's key and extensions. All faults are
// reported at once.
func parseLeaf(c *x509.Certificate) (*Leaf, error) {
	l := &Leaf{Certificate: c}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P384() {
		bad("the key is not ECDSA P-384")
	}
	l.key = key
	if c.IsCA {
		bad("it is a CA certificate")
	}
	ext := map[string][]byte{}
	for _, e := range c.Extensions {
		id := e.Id.String()
		if _, dup := ext[id]; dup {
			bad("extension %s is repeated", id)
		}
		ext[id] = e.Value
		if !strings.HasPrefix(id, "1.3.6.1.4.1.3704.1.") && !isHandled(c, e.Id) {
			bad("critical extension %s is unknown", id)
		}
	}
	level := func(id, name string) uint8 {
		v, err := extByte(ext, id)
		if err != nil {
			bad("%s: %w", name, err)
		}
		return v
	}
	version := level(extStructVersion, "structVersion")
	if version > 1 {
		bad("structVersion is %d, expected 0 or 1", version)
	}
	name, err := extIA5(ext, extProductName)
	if err != nil {
		bad("productName: %w", err)
	}
	l.ProductName = name
	l.TCB = TCB{
		Bootloader: level(extBootloaderSPL, "blSPL"),
		TEE:        level(extTEESPL, "teeSPL"),
		SNP:        level(extSNPSPL, "snpSPL"),
		Microcode:  level(extMicrocodeSPL, "ucodeSPL"),
	}
	switch version {
	case 0:
		// The reserved levels exist in this version only, and are zero.
		for _, id := range []string{extSPL4, extSPL5, extSPL6, extSPL7} {
			if v, _ := extByte(ext, id); v != 0 {
				bad("reserved level %s is %d, expected 0", id, v)
			}
		}
		if _, has := ext[extFMCSPL]; has {
			bad("fmcSPL in a certificate of structVersion 0")
		}
	default:
		fmc := level(extFMCSPL, "fmcSPL")
		l.TCB.FMC = &fmc
	}
	l.readOwner(ext, bad)
	return l, errors.Join(errs...)
}

// readOwner reads what tells VCEK from VLEK: a chip's id, or a provider's.
func (l *Leaf) readOwner(ext map[string][]byte, bad func(string, ...any)) {
	hwid, hasHWID := ext[extHWID]
	_, hasCSP := ext[extCSPID]
	switch {
	case hasHWID && hasCSP:
		bad("both hwID and cspID are present")
	case hasHWID:
		l.Kind = "vcek"
		id, err := parseHWID(hwid)
		if err != nil {
			bad("hwID: %w", err)
		}
		l.HWID = id
	case hasCSP:
		l.Kind = "vlek"
		id, err := extIA5(ext, extCSPID)
		if err != nil {
			bad("cspID: %w", err)
		}
		l.CSPID = id
	default:
		bad("neither hwID nor cspID is present")
	}
}

// isHandled reports whether an extension is not critical, or x509 understood it.
func isHandled(c *x509.Certificate, id asn1.ObjectIdentifier) bool {
	for _, u := range c.UnhandledCriticalExtensions {
		if u.Equal(id) {
			return false
		}
	}
	return true
}

// extByte reads an INTEGER of 0 to 255.
func extByte(ext map[string][]byte, id string) (uint8, error) {
	der, ok := ext[id]
	if !ok {
		return 0, errors.New("the extension is missing")
	}
	var v int
	rest, err := asn1.Unmarshal(der, &v)
	switch {
	case err != nil:
		return 0, fmt.Errorf("not an INTEGER: %w", err)
	case len(rest) > 0:
		return 0, errors.New("trailing bytes")
	case v < 0 || v > 255:
		return 0, fmt.Errorf("found %d, expected 0 to 255", v)
	}
	return uint8(v), nil
}

// extIA5 reads an IA5String.
func extIA5(ext map[string][]byte, id string) (string, error) {
	der, ok := ext[id]
	if !ok {
		return "", errors.New("the extension is missing")
	}
	var s string
	rest, err := asn1.UnmarshalWithParams(der, &s, "ia5")
	switch {
	case err != nil:
		return "", fmt.Errorf("not an IA5String: %w", err)
	case len(rest) > 0:
		return "", errors.New("trailing bytes")
	case s == "" || len(s) > 256:
		return "", fmt.Errorf("found %d characters, expected 1 to 256", len(s))
	}
	return s, nil
}

// hwID lengths: Milan and Genoa have 64 bytes, Turin and later 8.
const (
	hwidSize      = 64
	hwidSizeTurin = 8
)

// parseHWID reads a hwID, which AMD writes as bare bytes or as an OCTET STRING.
func parseHWID(v []byte) ([]byte, error) {
	switch len(v) {
	case hwidSize, hwidSizeTurin:
		return v, nil
	case hwidSize + 2, hwidSizeTurin + 2:
		var id []byte
		// Whatever else it is, or has behind it, gives another length.
		if _, _ = asn1.Unmarshal(v, &id); len(id) != len(v)-2 {
			return nil, errors.New("not an OCTET STRING")
		}
		return id, nil
	}
	return nil, fmt.Errorf("found %d bytes, expected %d or %d", len(v), hwidSize, hwidSizeTurin)
}
