// Package attesttest makes attestation reports, certificates, vTPMs and event
// logs for tests, signed by keys of its own: nothing here is trusted by anything
// but a test that says so. Each part of a good case can be changed before it is
// signed, so that a bad case is a good one with a single change.
//
// The package is for tests. It panics where it fails.
package attesttest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"slices"
	"sync"
	"time"
)

// Validity of the certificates made here, when nothing else is asked for.
var (
	NotBefore = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	NotAfter  = time.Date(2035, 1, 1, 0, 0, 0, 0, time.UTC)
	// Now is a time in the middle of it.
	Now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
)

// keysText are RSA-2048 keys that everybody knows: making keys takes longer than
// most tests. What they sign proves nothing.
//
//go:embed keys.pem
var keysText []byte

// RSAKey returns one of eight RSA-2048 keys.
func RSAKey(n int) *rsa.PrivateKey { return rsaKeys[n]() }

var rsaKeys = func() (out [8]func() *rsa.PrivateKey) {
	rest := keysText
	for i := range out {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		out[i] = sync.OnceValue(func() *rsa.PrivateKey {
			return must(x509.ParsePKCS1PrivateKey(block.Bytes))
		})
	}
	return out
}()

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A Signer is a root and an intermediate of a product line.
type Signer struct {
	Line           string
	ARK, ASK, ASVK *x509.Certificate
	arkKey, askKey *rsa.PrivateKey
}

// NewSigner returns the chain of a product line: "Milan", "Genoa", "Turin". It is
// made once a process.
func NewSigner(line string) *Signer { return signers[line]() }

// NewImpostor returns a chain of the same names with keys of its own.
func NewImpostor(line string) *Signer { return impostors[line]() }

var signers, impostors = everyLine(0, 1), everyLine(4, 5)

func everyLine(ark, ask int) map[string]func() *Signer {
	m := map[string]func() *Signer{}
	for _, line := range []string{"Milan", "Genoa", "Turin"} {
		m[line] = sync.OnceValue(func() *Signer { return newSigner(line, ark, ask) })
	}
	return m
}

func newSigner(line string, ark, ask int) *Signer {
	s := &Signer{Line: line, arkKey: RSAKey(ark), askKey: RSAKey(ask)}
	ca := func(cn string, serial int64) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: Name(cn), NotBefore: NotBefore, NotAfter: NotAfter,
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
			SignatureAlgorithm: x509.SHA384WithRSAPSS,
		}
	}
	root := ca("ARK-"+line, 1)
	s.ARK = Certify(root, root, &s.arkKey.PublicKey, s.arkKey)
	s.ASK = Certify(ca("SEV-"+line, 2), s.ARK, &s.askKey.PublicKey, s.arkKey)
	s.ASVK = Certify(ca("SEV-VLEK-"+line, 3), s.ARK, &s.askKey.PublicKey, s.arkKey)
	return s
}

// Name is a subject in AMD's manner, that nobody takes for AMD's.
func Name(cn string) pkix.Name {
	return pkix.Name{
		OrganizationalUnit: []string{"Engineering"}, Country: []string{"US"}, Locality: []string{"Santa Clara"},
		Province: []string{"CA"}, Organization: []string{"tests - SIMULATED"}, CommonName: cn,
	}
}

// CertifyByRoot makes an intermediate with the signer's own key, from a template.
func (s *Signer) CertifyByRoot(template *x509.Certificate) *x509.Certificate {
	return Certify(template, s.ARK, &s.askKey.PublicKey, s.arkKey)
}

// Certify makes a certificate.
func Certify(template, parent *x509.Certificate, public any, signer crypto.Signer) *x509.Certificate {
	der := must(x509.CreateCertificate(rand.Reader, template, parent, public, signer))
	return must(x509.ParseCertificate(der))
}

// AMD's extensions of leaf certificates, below 1.3.6.1.4.1.3704.1.
var (
	OIDStructVersion = oid(1)
	OIDProductName   = oid(2)
	OIDBootloader    = oid(3, 1)
	OIDTEE           = oid(3, 2)
	OIDSNP           = oid(3, 3)
	OIDSPL4          = oid(3, 4)
	OIDSPL5          = oid(3, 5)
	OIDSPL6          = oid(3, 6)
	OIDSPL7          = oid(3, 7)
	OIDMicrocode     = oid(3, 8)
	OIDFMC           = oid(3, 9)
	OIDHWID          = oid(4)
	OIDCSPID         = oid(5)
)

func oid(tail ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, tail...)
}

// Leaf describes a VCEK or VLEK certificate.
type Leaf struct {
	VLEK    bool
	Product string // productName; empty means the line
	ChipID  [64]byte
	// Levels in the order fmc, boot loader, TEE, SNP, microcode; fmc counts on
	// Turin alone.
	Levels [5]uint8
	// WrongIntermediate makes a VCEK under the VLEK's intermediate, and the
	// reverse.
	WrongIntermediate bool
	// Edit changes the template before it is signed.
	Edit func(*x509.Certificate)
}

// leafKind is a Leaf without its hook.
type leafKind struct {
	line    string
	vlek    bool
	product string
	chip    [64]byte
	levels  [5]uint8
	wrong   bool
	signer  *Signer
}

// leafs keeps the certificates that were made without a hook.
var leafs sync.Map

// LeafKey is the key of every leaf made here.
var LeafKey = sync.OnceValue(func() *ecdsa.PrivateKey {
	return must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
})

// Leaf makes a leaf certificate, one of a kind once a process.
func (s *Signer) Leaf(l Leaf) *x509.Certificate {
	if l.Edit != nil {
		return s.makeLeaf(l)
	}
	kind := leafKind{s.Line, l.VLEK, l.Product, l.ChipID, l.Levels, l.WrongIntermediate, s}
	if c, ok := leafs.Load(kind); ok {
		return c.(*x509.Certificate)
	}
	c, _ := leafs.LoadOrStore(kind, s.makeLeaf(l))
	return c.(*x509.Certificate)
}

func (s *Signer) makeLeaf(l Leaf) *x509.Certificate {
	turin := s.Line == "Turin"
	structVersion := 0
	if turin {
		structVersion = 1
	}
	product := l.Product
	if product == "" {
		product = s.Line
	}
	ext := []pkix.Extension{
		integer(OIDStructVersion, structVersion),
		{Id: OIDProductName, Value: IA5(product)},
		integer(OIDBootloader, int(l.Levels[1])), integer(OIDTEE, int(l.Levels[2])),
		integer(OIDSNP, int(l.Levels[3])), integer(OIDMicrocode, int(l.Levels[4])),
		integer(OIDSPL5, 0), integer(OIDSPL6, 0), integer(OIDSPL7, 0),
	}
	if turin {
		ext = append(ext, integer(OIDFMC, int(l.Levels[0])))
	} else {
		ext = append(ext, integer(OIDSPL4, 0))
	}
	cn := "SEV-VCEK"
	switch {
	case l.VLEK:
		cn = "SEV-VLEK"
		ext = append(ext, pkix.Extension{Id: OIDCSPID, Value: IA5("CN=cloud.example")})
	case turin:
		ext = append(ext, pkix.Extension{Id: OIDHWID, Value: l.ChipID[:8]})
	default:
		ext = append(ext, pkix.Extension{Id: OIDHWID, Value: l.ChipID[:]})
	}
	t := &x509.Certificate{
		SerialNumber: new(big.Int), Subject: Name(cn), NotBefore: NotBefore, NotAfter: NotAfter,
		SignatureAlgorithm: x509.SHA384WithRSAPSS, ExtraExtensions: ext,
	}
	if l.Edit != nil {
		l.Edit(t)
	}
	parent := s.ASK
	if l.VLEK != l.WrongIntermediate {
		parent = s.ASVK
	}
	return Certify(t, parent, &LeafKey().PublicKey, s.askKey)
}

// SetExtension replaces an extension of a template, or removes it when value is
// nil.
func SetExtension(t *x509.Certificate, id asn1.ObjectIdentifier, value []byte) {
	t.ExtraExtensions = slices.DeleteFunc(t.ExtraExtensions, func(e pkix.Extension) bool { return e.Id.Equal(id) })
	if value != nil {
		t.ExtraExtensions = append(t.ExtraExtensions, pkix.Extension{Id: id, Value: value})
	}
}

// Int is a DER INTEGER.
func Int(v int) []byte { return must(asn1.Marshal(v)) }

// IA5 is a DER IA5String.
func IA5(s string) []byte { return must(asn1.MarshalWithParams(s, "ia5")) }

func integer(id asn1.ObjectIdentifier, v int) pkix.Extension {
	return pkix.Extension{Id: id, Value: Int(v)}
}

// CRL makes a CRL of the root. Edit changes the template before it is signed.
func (s *Signer) CRL(revoked []*big.Int, edit func(*x509.RevocationList)) []byte {
	t := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: Now.AddDate(0, 0, -7), NextUpdate: Now.AddDate(0, 6, 0), SignatureAlgorithm: x509.SHA384WithRSAPSS}
	for _, n := range revoked {
		t.RevokedCertificateEntries = append(t.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: NotBefore})
	}
	if edit != nil {
		edit(t)
	}
	return must(x509.CreateRevocationList(rand.Reader, t, s.ARK, s.arkKey))
}
