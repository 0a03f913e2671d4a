package attest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"math/big"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/attest"
)

// withKey is a CA certificate's like with another key, which nobody signed.
func withKey(t *testing.T, ca *x509.Certificate, public any) *x509.Certificate {
	t.Helper()
	template := *ca
	template.SignatureAlgorithm = 0
	template.SubjectKeyId, template.AuthorityKeyId = nil, nil
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &x509.Certificate{RawSubject: ca.RawIssuer}, public, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// hugeKey is a key that one verification with takes seconds, and that fits into
// an entry of a certificate table.
func hugeKey(t *testing.T, bits int) *rsa.PublicKey {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits)))
	if err != nil {
		t.Fatal(err)
	}
	n.SetBit(n, bits-1, 1).SetBit(n, 0, 1)
	return &rsa.PublicKey{N: n, E: 1<<31 - 1}
}

// found is what a check saw.
func found(v *attest.Verdict, name attest.CheckName) string {
	for _, c := range v.Checks {
		if c.Name == string(name) {
			return c.Found
		}
	}
	return ""
}

// A certificate table comes from the host. Signatures are not verified with keys
// that take long, wherever in the chain they are.
func TestHostileKeys(t *testing.T) {
	m := genoa()
	report := m.SignedReport([64]byte{1})
	leaf := m.LeafCertificate()
	broken, untrusted := is(attest.CheckChain, attest.ReasonChainBroken), is(attest.CheckChain, attest.ReasonARKUntrusted)
	verdict := func(o attest.Options, table ...attest.CertEntry) *attest.Verdict {
		t.Helper()
		v, err := attest.VerifyReport(t.Context(), report, attest.EncodeCertTable(append(table, attest.CertEntry{GUID: attest.GUIDVCEK, Data: leaf.Raw})), attest.Expect{}, o)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	ask := withKey(t, m.Signer.ASK, hugeKey(t, 400_000))
	ark := withKey(t, m.Signer.ARK, hugeKey(t, 400_000))
	entry := func(g attest.GUID, c *x509.Certificate) attest.CertEntry {
		return attest.CertEntry{GUID: g, Data: c.Raw}
	}
	v := verdict(options(m), entry(attest.GUIDASK, ask))
	want(t, v, broken)
	if f := found(v, attest.CheckChain); !strings.Contains(f, "has 400000 bits, expected at most 8192") {
		t.Errorf("found %q", f)
	}
	// It does not stand in the way of the real one.
	o := options(m)
	o.Certificates = []*x509.Certificate{m.Signer.ASK}
	want(t, verdict(o, entry(attest.GUIDASK, ask)))
	// Nor do other keys.
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	want(t, verdict(options(m), entry(attest.GUIDASK, withKey(t, m.Signer.ASK, &other.PublicKey))), broken)
	// A root of such a key, whose CRL came along.
	o = options(m)
	o.SimRoots = nil
	v = verdict(o, entry(attest.GUIDASK, m.Signer.ASK), entry(attest.GUIDARK, ark), attest.CertEntry{GUID: attest.GUIDCRL, Data: m.Signer.CRL(nil, nil)})
	want(t, v, untrusted, is(attest.CheckCRL, attest.ReasonCRLSignature))
	if f := found(v, attest.CheckCRL); !strings.Contains(f, "has 400000 bits, expected at most 8192") {
		t.Errorf("found %q", f)
	}
	// The bound itself, and the bit above.
	for bits, reason := range map[int]string{8192: "verification error", 8193: "expected at most 8192"} {
		key := hugeKey(t, bits)
		key.E = 65537
		v = verdict(options(m), entry(attest.GUIDASK, withKey(t, m.Signer.ASK, key)))
		want(t, v, broken)
		if f := found(v, attest.CheckChain); !strings.Contains(f, reason) {
			t.Errorf("%d bits: found %q, expected %q", bits, f, reason)
		}
	}
}
