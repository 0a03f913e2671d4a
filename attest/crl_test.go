package attest_test

import (
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
)

func warned(v *attest.Verdict) bool {
	return strings.Contains(strings.Join(v.Warnings, "\n"), "revocation was not checked")
}

// The service is asked for a CRL when none that is given is current, and only
// then.
func TestWhenCRLsAreFetched(t *testing.T) {
	m := genoa()
	url := attest.CRLURL("vcek", "Genoa")
	day := 24 * time.Hour
	window := func(from, to time.Duration) []byte {
		return m.Signer.CRL(nil, func(l *x509.RevocationList) {
			l.ThisUpdate, l.NextUpdate = attesttest.Now.Add(from), attesttest.Now.Add(to)
		})
	}
	for name, c := range map[string]struct {
		given [][]byte
		asked int
	}{
		"none":                  {nil, 1},
		"current":               {[][]byte{window(-day, day)}, 0},
		"from now on":           {[][]byte{window(0, day)}, 0},
		"until now":             {[][]byte{window(-day, 0)}, 0},
		"expired":               {[][]byte{window(-day, -time.Second)}, 1},
		"not yet valid":         {[][]byte{window(time.Second, day)}, 1},
		"current, then expired": {[][]byte{window(-day, day), window(-day, -time.Second)}, 0},
		"expired, then current": {[][]byte{window(-day, -time.Second), window(-day, day)}, 0},
		"another root's":        {[][]byte{attesttest.NewSigner("Milan").CRL(nil, nil)}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			o := hardware(t, m)
			asked := counter{getter: getter{url: m.Signer.CRL(nil, nil)}, n: map[string]int{}}
			o.Getter = asked
			want(t, judgeCRL(t, m, o, c.given...))
			if asked.n[url] != c.asked {
				t.Errorf("asked %d times, expected %d", asked.n[url], c.asked)
			}
		})
	}
	// A policy that takes what is given asks for nothing.
	o := hardware(t, m)
	asked := counter{getter: getter{}, n: map[string]int{}}
	o.Getter, o.Policy.Revocation = asked, attest.RevocationIfGiven
	v := judgeCRL(t, m, o)
	want(t, v)
	if len(asked.n) > 0 || warned(v) {
		t.Errorf("asked for %v, warnings %q", asked.n, v.Warnings)
	}
	// Nor does a simulated platform, which has none.
	sim := attesttest.NewMachine(attesttest.Turin) // its root counts as nobody's
	o = options(sim)
	o.Getter = asked
	v = judgeCRL(t, sim, o)
	want(t, v)
	if c := check(t, v, attest.CheckCRL); len(asked.n) > 0 || warned(v) || c.Note != "a simulated platform has no CRL" {
		t.Errorf("asked for %v, warnings %q, note %q", asked.n, v.Warnings, c.Note)
	}
	// What the service answered instead is said.
	o = hardware(t, m)
	o.Getter = asked
	if f := found(judgeCRL(t, m, o), attest.CheckCRL); f != errGetter.Error() {
		t.Errorf("found %q", f)
	}
	// Offline, its absence is said.
	o = hardware(t, m)
	v = judgeCRL(t, m, o)
	if c := check(t, v, attest.CheckCRL); !warned(v) || c.Note != "no CRL was given, and the policy does not ask for one" {
		t.Errorf("warnings %q, note %q", v.Warnings, c.Note)
	}
}

// Of several good CRLs the youngest is the one that counts.
func TestYoungestCRL(t *testing.T) {
	m := genoa()
	o := hardware(t, m)
	crl := func(days int, revoked ...*big.Int) []byte {
		return m.Signer.CRL(revoked, func(l *x509.RevocationList) { l.ThisUpdate = attesttest.Now.AddDate(0, 0, -days) })
	}
	old, young := crl(20, big.NewInt(77), big.NewInt(78)), crl(10, big.NewInt(79))
	expired := m.Signer.CRL(nil, func(l *x509.RevocationList) {
		l.ThisUpdate, l.NextUpdate = attesttest.Now.AddDate(-1, 0, 0), attesttest.Now.AddDate(0, 0, -1)
	})
	for _, list := range [][][]byte{{old, young}, {young, old}, {expired, old, young}, {young, old, expired}} {
		v := judgeCRL(t, m, o, list...)
		want(t, v)
		if f := found(v, attest.CheckRevocation); f != "1 certificates revoked, none of the chain" {
			t.Errorf("found %q", f)
		}
		if f := found(v, attest.CheckCRL); !strings.HasPrefix(f, attesttest.Now.AddDate(0, 0, -10).Format(time.RFC3339)) {
			t.Errorf("found %q", f)
		}
	}
	// A revocation does not hide that the CRL itself is in order, or is not.
	v := judgeCRL(t, m, o, m.Signer.CRL(serial(2), nil))
	if c := check(t, v, attest.CheckCRL); c.Status != attest.Passed {
		t.Errorf("the CRL: %s, %s", c.Status, c.Reason)
	}
}

// A CRL in the host's table that cannot be read is a fault, whatever the policy:
// it may be the one that revokes.
func TestMalformedCRLInTheTable(t *testing.T) {
	m := genoa()
	for _, revocation := range []string{attest.RevocationIfGiven, attest.RevocationWhenOnline, attest.RevocationRequired} {
		o := hardware(t, m)
		o.Policy.Revocation = revocation
		table := append(entries(t, m.CertTable()), attest.CertEntry{GUID: attest.GUIDCRL, Data: []byte("garbage")})
		v, err := attest.VerifyReport(t.Context(), m.SignedReport([64]byte{1}), attest.EncodeCertTable(table), attest.Expect{}, o)
		if err != nil {
			t.Fatal(err)
		}
		want(t, v, is(attest.CheckCRL, attest.ReasonCRLMalformed))
	}
}

// There is no URL for some reports, and the reason is said.
func TestNoURLForReport(t *testing.T) {
	for part, edit := range map[string]func(attesttest.Report){
		"a VLEK certificate": func(r attesttest.Report) { r.PutU32(attesttest.OffSignerInfo, 1<<2) },
		"CHIP_ID is masked":  func(r attesttest.Report) { r.Put(attesttest.OffChipID, make([]byte, 64)) },
		"version 2 does not": version2,
		"no known product":   func(r attesttest.Report) { r.Put(attesttest.OffCPUID, []byte{1, 1, 1}) },
		"reserved byte 3 is": func(r attesttest.Report) { r[attesttest.OffReportedTCB+3] = 1 },
	} {
		m := withReport(edit)
		r, err := attest.ParseReport(m.SignedReport([64]byte{1}))
		if err != nil {
			t.Fatal(err)
		}
		url, err := attest.ReportURL(r)
		if url != "" || err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %q, %v", part, url, err)
		}
		// The verdict says it, too.
		o := hardware(t, m)
		o.Getter, o.Certificates = getter{}, []*x509.Certificate{m.Signer.ASK, m.Signer.ARK}
		v, err := attest.VerifyReport(t.Context(), m.SignedReport([64]byte{1}), nil, attest.Expect{}, o)
		if err != nil {
			t.Fatal(err)
		}
		if f := found(v, attest.CheckCertificates); !strings.Contains(f, part) {
			t.Errorf("found %q, expected %q", f, part)
		}
	}
	// And what the service said.
	m := genoa()
	o := hardware(t, m)
	o.Getter = getter{}
	v, err := attest.VerifyReport(t.Context(), m.SignedReport([64]byte{1}), nil, attest.Expect{}, o)
	if err != nil {
		t.Fatal(err)
	}
	if f := found(v, attest.CheckCertificates); f != errGetter.Error() {
		t.Errorf("found %q", f)
	}
}
