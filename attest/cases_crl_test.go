package attest_test

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
)

// hardware is options for a machine whose root counts as AMD's.
func hardware(t *testing.T, m *attesttest.Machine) attest.Options {
	t.Helper()
	attest.PinRoot(t, m.Signer.ARK)
	return attest.Options{Now: attesttest.Now, Policy: attest.DefaultPolicy()}
}

// judgeCRL verifies a good report of hardware with CRLs.
func judgeCRL(t *testing.T, m *attesttest.Machine, o attest.Options, ders ...[]byte) *attest.Verdict {
	t.Helper()
	for _, der := range ders {
		l, err := attest.ParseCRL(der)
		if err != nil {
			t.Fatal(err)
		}
		o.CRLs = append(o.CRLs, l)
	}
	v, err := attest.VerifyReport(t.Context(), m.SignedReport([64]byte{1}), m.CertTable(), attest.Expect{}, o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// serial is a CA certificate's serial number in the tests' chain.
func serial(n int64) []*big.Int { return []*big.Int{big.NewInt(n)} }

func TestS37_Revoked(t *testing.T) {
	revoked := is(attest.CheckRevocation, attest.ReasonRevoked)
	m := genoa()
	o := hardware(t, m)
	want(t, judgeCRL(t, m, o, m.Signer.CRL(nil, nil)))
	want(t, judgeCRL(t, m, o, m.Signer.CRL(serial(99), nil)))
	want(t, judgeCRL(t, m, o, m.Signer.CRL(serial(1), nil)), revoked) // ARK
	want(t, judgeCRL(t, m, o, m.Signer.CRL(serial(2), nil)), revoked) // ASK
	want(t, judgeCRL(t, m, o, m.Signer.CRL(serial(3), nil)))          // ASVK, not in this chain
	// The leaf is not the root's: its serial number, which is 0, says nothing.
	want(t, judgeCRL(t, m, o, m.Signer.CRL(serial(0), nil)))

	v := vlek()
	o = hardware(t, v)
	want(t, judgeCRL(t, v, o, v.Signer.CRL(serial(3), nil)), revoked) // ASVK

	// A revocation on an expired CRL that the root signed stays one.
	o = hardware(t, m)
	expired := m.Signer.CRL(serial(2), func(l *x509.RevocationList) {
		l.ThisUpdate, l.NextUpdate = attesttest.Now.AddDate(-1, 0, 0), attesttest.Now.AddDate(0, -6, 0)
	})
	want(t, judgeCRL(t, m, o, expired, m.Signer.CRL(nil, nil)), revoked)
	// One that it did not sign says nothing.
	forged := attesttest.NewImpostor("Genoa").CRL(serial(2), nil)
	want(t, judgeCRL(t, m, o, forged, m.Signer.CRL(nil, nil)))

	// AMD's real list names an old ASK, not the one in use.
	for _, r := range realReports(t) {
		if len(r.certs) == 0 || r.facts.Product != "Bergamo-Siena" {
			continue
		}
		der := readFile(t, filepath.Join(dataDir(t), "crl", "ARK-Genoa_20241023.crl"))
		l, err := attest.ParseCRL(der)
		if err != nil {
			t.Fatal(err)
		}
		v, err := attest.VerifyReport(t.Context(), r.raw, nil, attest.Expect{}, attest.Options{Now: r.at(), Certificates: r.certs, CRLs: []*x509.RevocationList{l}})
		if err != nil {
			t.Fatal(err)
		}
		want(t, v, is(attest.CheckCRL, attest.ReasonCRLExpired)) // and not revoked
	}
}

func TestS38_CRLOutOfDate(t *testing.T) {
	m := genoa()
	o := hardware(t, m)
	day := 24 * time.Hour
	window := func(from, to time.Duration) []byte {
		return m.Signer.CRL(nil, func(l *x509.RevocationList) {
			l.ThisUpdate, l.NextUpdate = attesttest.Now.Add(from), attesttest.Now.Add(to)
		})
	}
	expired := is(attest.CheckCRL, attest.ReasonCRLExpired)
	want(t, judgeCRL(t, m, o, window(-day, 0)))
	want(t, judgeCRL(t, m, o, window(0, day)))
	want(t, judgeCRL(t, m, o, window(-day, -time.Second)), expired)
	want(t, judgeCRL(t, m, o, window(time.Second, day)), is(attest.CheckCRL, attest.ReasonCRLNotYetValid))
	want(t, judgeCRL(t, m, o, window(-day, -time.Second), window(-day, day))) // an old one beside a good one
	v := judgeCRL(t, m, o, window(-2*day, -day))
	if v.Class() != attest.ClassCRL {
		t.Errorf("class is %d", v.Class())
	}
	// So also when it has just been fetched.
	o.Getter = getter{attest.CRLURL("vcek", "Genoa"): window(-2*day, -day)}
	want(t, judgeCRL(t, m, o), expired)
	// And older than the policy allows.
	o = hardware(t, m)
	o.Policy.CRLMaxAgeDays = 10
	want(t, judgeCRL(t, m, o, window(-10*day, day)))
	want(t, judgeCRL(t, m, o, window(-10*day-time.Hour, day)), is(attest.CheckCRL, attest.ReasonCRLTooOld))
	// The table from the host may bring one; it is judged like any other.
	table := append([]attest.CertEntry(nil), entries(t, m.CertTable())...)
	table = append(table, attest.CertEntry{GUID: attest.GUIDCRL, Data: window(-2*day, -day)})
	o = hardware(t, m)
	report := m.SignedReport([64]byte{1})
	v, err := attest.VerifyReport(t.Context(), report, attest.EncodeCertTable(table), attest.Expect{}, o)
	if err != nil {
		t.Fatal(err)
	}
	want(t, v, expired)
}

// TestS38_CRLOfTheHost: a CRL that the host gives is no reason not to ask AMD: it may
// be the last one before a revocation.
func TestS38_CRLOfTheHost(t *testing.T) {
	m := genoa()
	o := hardware(t, m)
	table := attest.EncodeCertTable(append(entries(t, m.CertTable()), attest.CertEntry{GUID: attest.GUIDCRL, Data: m.Signer.CRL(nil, nil)}))
	judge := func(g attest.Getter) *attest.Verdict {
		t.Helper()
		o.Getter = g
		v, err := attest.VerifyReport(t.Context(), m.SignedReport([64]byte{1}), table, attest.Expect{}, o)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	const alone = "by the CRL of the host's certificate table alone"
	url := attest.CRLURL("vcek", "Genoa")
	for name, c := range map[string]struct {
		getter   attest.Getter
		failures []string
		warned   bool
	}{
		"revoked since": {getter{url: m.Signer.CRL(serial(2), nil)}, []string{is(attest.CheckRevocation, attest.ReasonRevoked)}, false},
		"none since":    {getter{url: m.Signer.CRL(nil, nil)}, nil, false},
		"no answer":     {getter{}, nil, true},
		"no CRL":        {getter{url: []byte("<html>")}, nil, true},
		"offline":       {nil, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			v := judge(c.getter)
			want(t, v, c.failures...)
			if got := strings.Contains(strings.Join(v.Warnings, "\n"), alone); got != c.warned {
				t.Errorf("warnings are %q", v.Warnings)
			}
		})
	}
	// The verifier's own is reason enough.
	own, err := attest.ParseCRL(m.Signer.CRL(nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	o.CRLs = []*x509.RevocationList{own}
	v := judge(getter{url: m.Signer.CRL(serial(2), nil)})
	want(t, v)
	if strings.Contains(strings.Join(v.Warnings, "\n"), alone) {
		t.Errorf("warnings are %q", v.Warnings)
	}
}

func entries(t *testing.T, table []byte) []attest.CertEntry {
	t.Helper()
	list, err := attest.ParseCertTable(table)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestS39_CRLNotFit(t *testing.T) {
	m := genoa()
	o := hardware(t, m)
	forged := attesttest.NewImpostor("Genoa").CRL(nil, nil)
	want(t, judgeCRL(t, m, o, forged), is(attest.CheckCRL, attest.ReasonCRLSignature))

	extension := func(id asn1.ObjectIdentifier, critical bool) []byte {
		return m.Signer.CRL(nil, func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: id, Critical: critical, Value: []byte{5, 0}}}
		})
	}
	good := m.Signer.CRL(nil, nil)
	for name, der := range map[string][]byte{
		"delta":                      extension(asn1.ObjectIdentifier{2, 5, 29, 27}, true),
		"part":                       extension(asn1.ObjectIdentifier{2, 5, 29, 28}, true),
		"unknown critical extension": extension(asn1.ObjectIdentifier{1, 2, 3}, true),
		"trailing byte":              append(append([]byte(nil), good...), 0),
		"cut short":                  good[:len(good)-1],
		"empty":                      nil,
		"100 MB":                     make([]byte, 100<<20),
		"no nextUpdate":              withTimes(t, good, attesttest.Now, time.Time{}),
		"nextUpdate before":          withTimes(t, good, attesttest.Now, attesttest.Now.Add(-time.Second)),
		"delta, not critical":        extension(asn1.ObjectIdentifier{2, 5, 29, 27}, false),
		"part, not critical":         extension(asn1.ObjectIdentifier{2, 5, 29, 28}, false),
		"entry with critical extension": m.Signer.CRL(nil, func(l *x509.RevocationList) {
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(7), RevocationTime: attesttest.NotBefore,
				ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}}}
		}),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := attest.ParseCRL(der); err == nil {
				t.Error("accepted")
			}
			o := hardware(t, m)
			o.Getter = getter{attest.CRLURL("vcek", "Genoa"): der}
			want(t, judgeCRL(t, m, o), is(attest.CheckCRL, attest.ReasonCRLMalformed))
		})
	}
	// The bound itself, and a byte more.
	sized := func(n int) []byte {
		return m.Signer.CRL(nil, func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, n)}}
		})
	}
	const most = 1 << 20
	filling := most - (len(sized(most-4096)) - (most - 4096))
	for n, ok := range map[int]bool{most: true, most + 1: false} {
		der := sized(filling + n - most)
		if len(der) != n {
			t.Fatalf("made %d bytes, expected %d", len(der), n)
		}
		if _, err := attest.ParseCRL(der); (err == nil) != ok {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if _, err := attest.ParseCRL(withTimes(t, good, attesttest.Now, attesttest.Now)); err != nil {
		t.Errorf("a CRL of a moment: %v", err)
	}
	reason := m.Signer.CRL(nil, func(l *x509.RevocationList) {
		l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(7), RevocationTime: attesttest.NotBefore, ReasonCode: 1}}
	})
	if _, err := attest.ParseCRL(reason); err != nil {
		t.Errorf("an entry with a reason: %v", err)
	}
	if _, err := attest.ParseCRL(extension(asn1.ObjectIdentifier{1, 2, 3}, false)); err != nil {
		t.Errorf("a CRL with an extension that is not critical: %v", err)
	}
}

// withTimes changes the times of a CRL; its signature no longer fits. A zero
// nextUpdate is left out.
func withTimes(t *testing.T, der []byte, this, next time.Time) []byte {
	t.Helper()
	var list struct {
		TBS struct {
			Version    int
			Algorithm  pkix.AlgorithmIdentifier
			Issuer     asn1.RawValue
			ThisUpdate time.Time
			NextUpdate time.Time        `asn1:"optional"`
			Revoked    []asn1.RawValue  `asn1:"optional"`
			Extensions []pkix.Extension `asn1:"tag:0,optional,explicit"`
		}
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &list); err != nil {
		t.Fatal(err)
	}
	list.TBS.ThisUpdate, list.TBS.NextUpdate = this, next
	out, err := asn1.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// getter answers from a map; what is not there is unavailable.
type getter map[string][]byte

var errGetter = errors.New("the service does not answer")

func (g getter) Get(_ context.Context, url string) ([]byte, error) {
	if data, ok := g[url]; ok {
		return data, nil
	}
	return nil, errGetter
}

func TestS40_ServiceUnavailable(t *testing.T) {
	m := genoa()
	o := hardware(t, m)
	o.Certificates = []*x509.Certificate{m.Signer.ASK, m.Signer.ARK}
	o.Policy.Revocation = attest.RevocationIfGiven
	report := m.SignedReport([64]byte{1})
	judge := func(g attest.Getter) *attest.Verdict {
		o.Getter = g
		v, err := attest.VerifyReport(t.Context(), report, nil, attest.Expect{}, o)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	unavailable := is(attest.CheckCertificates, attest.ReasonCertificatesUnavailable)
	parsed, err := attest.ParseReport(report)
	if err != nil {
		t.Fatal(err)
	}
	url, err := attest.ReportURL(parsed)
	if err != nil {
		t.Fatal(err)
	}
	want(t, judge(getter{url: m.LeafCertificate().Raw}))
	for name, g := range map[string]attest.Getter{
		"offline":   nil,
		"no answer": getter{},
		"HTML":      getter{url: []byte("<html>log in</html>")},
		"cut short": getter{url: m.LeafCertificate().Raw[:200]},
		"a CA":      getter{url: m.Signer.ASK.Raw},
	} {
		t.Run(name, func(t *testing.T) {
			v := judge(g)
			want(t, v, unavailable)
			if v.Class() != attest.ClassCertificates {
				t.Errorf("class is %d", v.Class())
			}
		})
	}
	// No URL can be made for these.
	for name, edit := range map[string]func(attesttest.Report){
		"VLEK":            func(r attesttest.Report) { r.PutU32(attesttest.OffSignerInfo, 1<<2) },
		"masked chip":     func(r attesttest.Report) { r.Put(attesttest.OffChipID, make([]byte, 64)) },
		"version 2":       version2,
		"unknown product": func(r attesttest.Report) { r.Put(attesttest.OffCPUID, []byte{1, 1, 1}) },
		"TCB reserved":    func(r attesttest.Report) { r[attesttest.OffReportedTCB+3] = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			m := withReport(edit)
			report = m.SignedReport([64]byte{1})
			wantAny(t, judge(getter{}), unavailable)
		})
	}
	// A CRL that is asked for and does not come.
	o = hardware(t, m)
	missing := is(attest.CheckCRL, attest.ReasonCRLUnavailable)
	want(t, judgeCRL(t, m, o)) // offline: warned of, not refused
	if v := judgeCRL(t, m, o); len(v.Warnings) == 0 || !strings.Contains(strings.Join(v.Warnings, " "), "revocation was not checked") {
		t.Errorf("warnings are %q", v.Warnings)
	}
	o.Getter = getter{}
	v := judgeCRL(t, m, o)
	want(t, v, missing)
	if v.Class() != attest.ClassCRL {
		t.Errorf("class is %d", v.Class())
	}
	o.Getter = getter{attest.CRLURL("vcek", "Genoa"): m.Signer.CRL(nil, nil)}
	want(t, judgeCRL(t, m, o))
	o.Getter = getter{attest.CRLURL("vcek", "Genoa"): m.Signer.CRL(serial(2), nil)}
	want(t, judgeCRL(t, m, o), is(attest.CheckRevocation, attest.ReasonRevoked))
	o.Getter = getter{attest.CRLURL("vcek", "Genoa"): attesttest.NewSigner("Milan").CRL(nil, nil)}
	want(t, judgeCRL(t, m, o), missing) // another root's
	o.Getter, o.Policy.Revocation = getter{}, attest.RevocationIfGiven
	want(t, judgeCRL(t, m, o))
	o.Getter, o.Policy.Revocation = nil, attest.RevocationRequired
	want(t, judgeCRL(t, m, o), missing)
	// A VLEK's CRL lies under its own URL.
	k := vlek()
	o = hardware(t, k)
	o.Getter = getter{attest.CRLURL("vlek", "Genoa"): k.Signer.CRL(nil, nil)}
	want(t, judgeCRL(t, k, o))
}

func TestKDSURLs(t *testing.T) {
	m := attesttest.NewMachine(attesttest.Turin)
	r, err := attest.ParseReport(m.SignedReport([64]byte{1}))
	if err != nil {
		t.Fatal(err)
	}
	url, err := attest.ReportURL(r)
	const turin = "https://kdsintf.amd.com/vcek/v1/Turin/a0a1a2a3a4a5a6a7?blSPL=01&fmcSPL=01&snpSPL=04&teeSPL=01&ucodeSPL=81"
	if err != nil || url != turin {
		t.Errorf("found %s (%v), expected %s", url, err, turin)
	}
	leaf, err := attest.ParseLeaf(m.LeafCertificate())
	if err != nil || leaf.URL() != turin {
		t.Errorf("found %s (%v), expected %s", leaf.URL(), err, turin)
	}
	siena := attesttest.NewMachine(attesttest.Siena)
	if r, err = attest.ParseReport(siena.SignedReport([64]byte{1})); err != nil {
		t.Fatal(err)
	}
	url, err = attest.ReportURL(r)
	if err != nil || !strings.HasPrefix(url, "https://kdsintf.amd.com/vcek/v1/Genoa/a0a1a2") || !strings.HasSuffix(url, "?blSPL=10&snpSPL=27&teeSPL=00&ucodeSPL=27") {
		t.Errorf("found %s (%v)", url, err)
	}
	if leaf, err = attest.ParseLeaf(vlek().LeafCertificate()); err != nil || leaf.URL() != "" {
		t.Errorf("a VLEK has URL %q (%v)", leaf.URL(), err)
	}
}
