package attest

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/evtpm/evtpm/strictjson"
)

// Bounds of a bundle.
const (
	// MaxBundle bounds a bundle in bytes.
	MaxBundle       = 4 << 20
	maxBundleBlocks = 1024
)

// PEM block types of a bundle.
const (
	pemCertificate = "CERTIFICATE"
	pemCRL         = "X509 CRL"
)

// A Bundle is what a verifier without a network needs besides the evidence:
// certificates and CRLs. Nothing in it is trusted by being there. Its form is
// PEM.
type Bundle struct {
	Certificates []*x509.Certificate
	CRLs         []*x509.RevocationList
}

// ParseBundle reads certificates and CRLs: PEM with any number of either, one
// certificate or CRL in DER, or Azure's JSON of a host's certificates.
func ParseBundle(data []byte) (*Bundle, error) {
	if len(data) > MaxBundle {
		return nil, fmt.Errorf("certificates: found %d bytes, expected at most %d", len(data), MaxBundle)
	}
	b := new(Bundle)
	if text := bytes.TrimSpace(data); bytes.HasPrefix(text, []byte("{")) {
		var err error
		if data, err = azureCertificates(text); err != nil {
			return nil, err
		}
	}
	if !bytes.Contains(data, []byte("-----BEGIN ")) {
		return b, b.addDER(data)
	}
	rest := data
	for n := 1; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if n > maxBundleBlocks {
			return nil, fmt.Errorf("certificates: more than %d PEM blocks", maxBundleBlocks)
		}
		var err error
		switch block.Type {
		case pemCertificate:
			err = b.addCertificate(block.Bytes)
		case pemCRL:
			err = b.addCRL(block.Bytes)
		default:
			err = fmt.Errorf("type is %q, expected %s or %s", block.Type, pemCertificate, pemCRL)
		}
		if err != nil {
			return nil, fmt.Errorf("certificates: PEM block %d: %w", n, err)
		}
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("certificates: %d bytes that are no PEM at the end", len(rest))
	}
	return b, nil
}

// azureCertificates is the PEM in what Azure's hosts give of a VM's processor: by
// the metadata service (THIM), and by a file to container groups.
func azureCertificates(data []byte) ([]byte, error) {
	var doc struct {
		VCEK         string `json:"vcekCert"`
		Chain        string `json:"certificateChain"`
		TCB          string `json:"tcbm"` // claims, which the certificates hold too
		CacheControl string `json:"cacheControl"`
	}
	if err := strictjson.Unmarshal(data, &doc, MaxBundle, "certificates"); err != nil {
		return nil, err
	}
	if doc.VCEK == "" {
		return nil, errors.New("certificates: found JSON without vcekCert, expected PEM, DER, or Azure's JSON")
	}
	return []byte(doc.VCEK + "\n" + doc.Chain), nil
}

func (b *Bundle) addCertificate(der []byte) error {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	b.Certificates = append(b.Certificates, c)
	return nil
}

func (b *Bundle) addCRL(der []byte) error {
	l, err := ParseCRL(der)
	if err != nil {
		return err
	}
	b.CRLs = append(b.CRLs, l)
	return nil
}

// addDER adds a certificate, or else a CRL.
func (b *Bundle) addDER(der []byte) error {
	certErr := b.addCertificate(der)
	if certErr == nil {
		return nil
	}
	if crlErr := b.addCRL(der); crlErr != nil {
		return fmt.Errorf("certificates: neither PEM, nor a certificate (%w), nor a CRL (%w)", certErr, crlErr)
	}
	return nil
}

// Add joins another bundle's contents, without repetitions.
func (b *Bundle) Add(other *Bundle) {
	seen := map[[32]byte]bool{}
	for _, c := range b.Certificates {
		seen[sha256.Sum256(c.Raw)] = true
	}
	for _, l := range b.CRLs {
		seen[sha256.Sum256(l.Raw)] = true
	}
	fresh := func(raw []byte) bool {
		sum := sha256.Sum256(raw)
		old := seen[sum]
		seen[sum] = true
		return !old
	}
	for _, c := range other.Certificates {
		if fresh(c.Raw) {
			b.Certificates = append(b.Certificates, c)
		}
	}
	for _, l := range other.CRLs {
		if fresh(l.Raw) {
			b.CRLs = append(b.CRLs, l)
		}
	}
}

// Encode writes a bundle as PEM. [ParseBundle] reads it back.
func (b *Bundle) Encode() []byte {
	var out bytes.Buffer
	for _, c := range b.Certificates {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: c.Raw}))
	}
	for _, l := range b.CRLs {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: pemCRL, Bytes: l.Raw}))
	}
	return out.Bytes()
}

// tableCertificate reads a certificate of a certificate table. It is DER by the
// specification; some hosts put PEM there.
func tableCertificate(data []byte) (*x509.Certificate, error) {
	if block, rest := pem.Decode(data); block != nil && block.Type == pemCertificate && len(bytes.Trim(rest, "\x00\r\n")) == 0 {
		data = block.Bytes
	}
	return x509.ParseCertificate(data)
}

// TableBundle takes the certificates and CRLs out of a certificate table.
func TableBundle(table []byte) (*Bundle, error) {
	entries, err := ParseCertTable(table)
	if err != nil {
		return nil, err
	}
	b := new(Bundle)
	for _, e := range entries {
		switch e.GUID {
		case GUIDVCEK, GUIDVLEK, GUIDASK, GUIDARK:
			var c *x509.Certificate
			c, err = tableCertificate(e.Data)
			b.Certificates = append(b.Certificates, c)
		case GUIDCRL:
			err = b.addCRL(e.Data)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: entry %s: %w", ErrCertTable, e.GUID, err)
		}
	}
	return b, nil
}
