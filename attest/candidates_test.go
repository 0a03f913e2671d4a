package attest_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"maps"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-sev-guest/abi"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
)

// verifyWith judges a machine's report with certificates from a bundle alone.
func verifyWith(t *testing.T, m *attesttest.Machine, certs []*x509.Certificate, change func(*attest.Options)) *attest.Verdict {
	t.Helper()
	o := options(m)
	o.Certificates = append([]*x509.Certificate{m.Signer.ASK, m.Signer.ASVK}, certs...)
	if change != nil {
		change(&o)
	}
	v, err := attest.VerifyReport(t.Context(), m.SignedReport([64]byte{1}), nil, attest.Expect{}, o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// decoy is a leaf certificate of the same chip and TCB with another key, which
// nobody signed.
func decoy(t *testing.T, m *attesttest.Machine, serial int64) *x509.Certificate {
	t.Helper()
	return decoyOf(t, m, func(c *x509.Certificate) { c.SerialNumber = big.NewInt(serial) })
}

func decoyOf(t *testing.T, m *attesttest.Machine, edit func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := *m.LeafCertificate()
	template.ExtraExtensions = slices.Clone(template.Extensions)
	edit(&template)
	template.SignatureAlgorithm = 0
	parent := *m.Signer.ASK
	parent.PublicKey = nil
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &parent, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A verifier's bundle holds the certificates of all its machines, at all their
// levels: the one that is the report's is found wherever it stands.
func TestLeafAmongMany(t *testing.T) {
	for _, m := range []*attesttest.Machine{genoa(), attesttest.NewMachine(attesttest.Turin)} {
		var fleet []*x509.Certificate
		for i := range 24 {
			l := attesttest.Leaf{ChipID: m.ChipID, Levels: m.Processor.Levels}
			switch i % 3 {
			case 0:
				l.ChipID[0] = byte(i)
			case 1:
				l.Levels[4] -= byte(i)
			case 2:
				l.VLEK = true
			}
			fleet = append(fleet, m.Signer.Leaf(l))
		}
		want(t, verifyWith(t, m, append(fleet, m.LeafCertificate()), nil))
		// Without it, the certificate is missing: the report may be in order.
		var strangers []*x509.Certificate
		for i := range 3 {
			other := attesttest.NewMachine(m.Processor)
			other.ChipID[0] = byte(i)
			strangers = append(strangers, decoy(t, other, int64(i)))
		}
		v := verifyWith(t, m, strangers, nil)
		want(t, v, is(attest.CheckCertificates, attest.ReasonCertificatesUnavailable))
		if f := found(v, attest.CheckCertificates); f != "no VCEK or VLEK of this chip and TCB among 3" {
			t.Errorf("found %q", f)
		}
		if f := found(verifyWith(t, m, nil, nil), attest.CheckCertificates); f != "no VCEK or VLEK" {
			t.Errorf("found %q", f)
		}
		// The only one that is given is held against the report.
		v = verifyWith(t, m, strangers[:1], nil)
		wantAny(t, v, is(attest.CheckReportSignature, attest.ReasonSignatureInvalid))
		wantAny(t, v, is(attest.CheckChipBinding, attest.ReasonChipIDMismatch))
		// So it is when one of them cannot be read.
		for name, edit := range map[string]func(*x509.Certificate){
			"hwID":     func(c *x509.Certificate) { attesttest.SetExtension(c, attesttest.OIDHWID, []byte{1}) },
			"no hwID":  func(c *x509.Certificate) { attesttest.SetExtension(c, attesttest.OIDHWID, []byte{}) },
			"no level": func(c *x509.Certificate) { attesttest.SetExtension(c, attesttest.OIDMicrocode, []byte{}) },
			"other arc": func(c *x509.Certificate) {
				moveExtension(c, attesttest.OIDMicrocode, asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 2, 3, 8})
			},
			"longer OID": func(c *x509.Certificate) {
				moveExtension(c, attesttest.OIDMicrocode, append(slices.Clone(attesttest.OIDMicrocode), 1))
			},
		} {
			v = verifyWith(t, m, append(strangers[:2:2], decoyOf(t, m, edit)), nil)
			if f := failures(v); !slices.Contains(f, is(attest.CheckCertificates, attest.ReasonCertificatesUnavailable)) {
				t.Errorf("%s: %q", name, f)
			}
		}
		// One of another form is passed over.
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		rsaLeaf := withKey(t, strangers[0], &key.PublicKey)
		v = verifyWith(t, m, append(strangers, rsaLeaf), nil)
		want(t, v, is(attest.CheckCertificates, attest.ReasonCertificatesUnavailable))
		// So is one of several that is this machine's, expired or not.
		for _, own := range []*x509.Certificate{
			decoy(t, m, 9),
			decoyOf(t, m, func(c *x509.Certificate) { c.NotAfter = attesttest.Now.AddDate(0, 0, -1) }),
		} {
			wantAny(t, verifyWith(t, m, append(strangers, own), nil), is(attest.CheckReportSignature, attest.ReasonSignatureInvalid))
		}
	}
}

// What looks like the report's own certificate and is not only costs time.
func TestLeafAmongDecoys(t *testing.T) {
	m := genoa()
	var decoys []*x509.Certificate
	for i := range int64(15) {
		decoys = append(decoys, decoy(t, m, i+1))
	}
	want(t, verifyWith(t, m, append(decoys, m.LeafCertificate()), nil))
	// However often it is there.
	many := slices.Repeat(decoys[:1], 20)
	want(t, verifyWith(t, m, append(many, m.LeafCertificate()), nil))
	want(t, verifyWith(t, m, []*x509.Certificate{decoys[0], m.LeafCertificate()}, nil))
	// What is for this chip is judged, not what another chip's key signed.
	other := genoa()
	other.ChipID[3]++
	v := verifyWith(t, m, []*x509.Certificate{other.LeafCertificate(), decoys[0]}, nil)
	wantAny(t, v, is(attest.CheckReportSignature, attest.ReasonSignatureInvalid))
	// A report that does not name its chip is known by its signature.
	masked := genoa()
	masked.EditReport = func(r attesttest.Report) { r.Put(attesttest.OffChipID, make([]byte, 64)) }
	allow := func(o *attest.Options) {
		o.Policy = attest.DefaultPolicy()
		o.Policy.AllowMaskedChipID = true
	}
	want(t, verifyWith(t, masked, append(decoys[:9:9], m.LeafCertificate()), allow))
	// And their number is bounded: a signature verification each.
	v = verifyWith(t, m, append(append(decoys, decoy(t, m, 99)), m.LeafCertificate()), nil)
	wantAny(t, v, is(attest.CheckReportSignature, attest.ReasonSignatureInvalid))
}

// moveExtension gives an extension of a template another OID.
func moveExtension(c *x509.Certificate, from, to asn1.ObjectIdentifier) {
	for i := range c.ExtraExtensions {
		if c.ExtraExtensions[i].Id.Equal(from) {
			c.ExtraExtensions = slices.Clone(c.ExtraExtensions)
			c.ExtraExtensions[i].Id = to
		}
	}
}

// A VLEK certificate names no chip: kind and TCB make it the report's.
func TestVLEKAmongOthers(t *testing.T) {
	m := vlek()
	own := decoyOf(t, m, func(*x509.Certificate) {})
	for name, c := range map[string]struct {
		leafs []*x509.Certificate
		want  string
	}{
		"its own":        {[]*x509.Certificate{decoy(t, genoa(), 1), own}, is(attest.CheckReportSignature, attest.ReasonSignatureInvalid)},
		"another's TCB":  {[]*x509.Certificate{decoy(t, genoa(), 1), decoyOf(t, m, func(c *x509.Certificate) { attesttest.SetExtension(c, attesttest.OIDSNP, attesttest.Int(1)) })}, is(attest.CheckCertificates, attest.ReasonCertificatesUnavailable)},
		"two of a chip":  {[]*x509.Certificate{decoy(t, genoa(), 1), decoy(t, genoa(), 2)}, is(attest.CheckCertificates, attest.ReasonCertificatesUnavailable)},
		"neither's kind": {[]*x509.Certificate{decoyOf(t, m, func(c *x509.Certificate) { attesttest.SetExtension(c, attesttest.OIDCSPID, nil) }), decoy(t, genoa(), 2)}, is(attest.CheckCertificates, attest.ReasonCertificatesUnavailable)},
	} {
		t.Run(name, func(t *testing.T) { wantAny(t, verifyWith(t, m, c.leafs, nil), c.want) })
	}
}

// A chip's certificate is made anew from time to time, with the same key.
func TestCertificatesOfSeveralDates(t *testing.T) {
	m := genoa()
	old := func(c *x509.Certificate) {
		c.NotAfter, c.SerialNumber = attesttest.Now.AddDate(0, 0, -1), big.NewInt(7)
	}
	young := func(c *x509.Certificate) {
		c.NotBefore, c.SerialNumber = attesttest.Now.AddDate(0, 0, 1), big.NewInt(8)
	}
	expired := withLeaf(old).LeafCertificate()
	future := withLeaf(young).LeafCertificate()
	want(t, verifyWith(t, m, []*x509.Certificate{expired, future, m.LeafCertificate()}, nil))
	want(t, verifyWith(t, m, []*x509.Certificate{m.LeafCertificate(), expired, future}, nil))
	want(t, verifyWith(t, m, []*x509.Certificate{expired, expired}, nil), is(attest.CheckCertificateTime, attest.ReasonCertificateExpired))

	// So is an intermediate's.
	ask := *m.Signer.ASK
	old(&ask)
	oldASK := m.Signer.CertifyByRoot(&ask)
	ask = *m.Signer.ASK
	young(&ask)
	youngASK := m.Signer.CertifyByRoot(&ask)
	for _, list := range [][]*x509.Certificate{{oldASK, youngASK, m.Signer.ASK}, {m.Signer.ASK, oldASK, youngASK}} {
		want(t, verifyWith(t, m, nil, func(o *attest.Options) {
			o.Certificates = append(list, m.LeafCertificate())
		}))
	}
	want(t, verifyWith(t, m, nil, func(o *attest.Options) {
		o.Certificates = append(slices.Repeat([]*x509.Certificate{oldASK}, 20), m.Signer.ASK, m.LeafCertificate())
	}))
}

// Intermediates of the right name and another key only cost time, up to a bound.
func TestIntermediateAmongDecoys(t *testing.T) {
	m := genoa()
	var decoys []*x509.Certificate
	for range 15 {
		decoys = append(decoys, withKey(t, m.Signer.ASK, &attesttest.RSAKey(6).PublicKey))
	}
	verdict := func(askAt int, list []*x509.Certificate) *attest.Verdict {
		list = slices.Insert(slices.Clone(list), askAt, m.Signer.ASK)
		return verifyWith(t, m, nil, func(o *attest.Options) { o.Certificates = append(list, m.LeafCertificate()) })
	}
	want(t, verdict(0, decoys))
	want(t, verdict(15, decoys))
	more := append(decoys, withKey(t, m.Signer.ASK, &attesttest.RSAKey(6).PublicKey))
	want(t, verdict(15, more))
	want(t, verdict(16, more), is(attest.CheckChain, attest.ReasonChainBroken))
}

// Certificates of other machines do not keep this one's from being fetched; one
// that is this machine's does, whatever the signature says.
func TestFetchBesideOtherCertificates(t *testing.T) {
	m := genoa()
	other := genoa()
	other.ChipID[0]++
	report := m.SignedReport([64]byte{1})
	parsed, err := attest.ParseReport(report)
	if err != nil {
		t.Fatal(err)
	}
	url, err := attest.ReportURL(parsed)
	if err != nil {
		t.Fatal(err)
	}
	crl := attest.CRLURL("vcek", "Genoa")
	judge := func(report []byte, g attest.Getter, leaf *x509.Certificate) *attest.Verdict {
		o := hardware(t, m)
		o.Getter, o.Certificates = g, []*x509.Certificate{m.Signer.ASK, m.Signer.ARK, leaf}
		v, err := attest.VerifyReport(t.Context(), report, nil, attest.Expect{}, o)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	good := getter{crl: m.Signer.CRL(nil, nil), url: m.LeafCertificate().Raw}
	want(t, judge(report, good, other.LeafCertificate()))
	older := genoa()
	older.Processor.Levels[3]--
	want(t, judge(report, good, older.LeafCertificate()))
	// When it cannot be had, the one that is there is judged.
	none := getter{crl: m.Signer.CRL(nil, nil)}
	want(t, judge(report, none, other.LeafCertificate()), is(attest.CheckChipBinding, attest.ReasonChipIDMismatch))
	// Nothing is asked about a machine whose certificate is there.
	tampered := bytes.Clone(report)
	tampered[attesttest.OffReportData] ^= 1
	asked := counter{getter: good, n: map[string]int{}}
	want(t, judge(tampered, asked, m.LeafCertificate()), is(attest.CheckReportSignature, attest.ReasonSignatureInvalid))
	if asked.n[url] > 0 {
		t.Error("the certificate was fetched although it was there")
	}
	// Expiry is no reason to ask: the answer would be of the same date.
	expired := withLeaf(func(c *x509.Certificate) { c.NotAfter = attesttest.Now.AddDate(0, 0, -1) })
	want(t, judge(report, asked, expired.LeafCertificate()), is(attest.CheckCertificateTime, attest.ReasonCertificateExpired))
	if asked.n[url] > 0 {
		t.Error("the certificate was fetched although it was there")
	}
}

// counter is a getter that counts what it is asked for.
type counter struct {
	getter
	n map[string]int
}

func (c counter) Get(ctx context.Context, url string) ([]byte, error) {
	c.n[url]++
	return c.getter.Get(ctx, url)
}

// Some hosts put PEM into the certificate table.
func TestCertificateTableInPEM(t *testing.T) {
	m := genoa()
	text := func(der []byte, tail string) []byte {
		return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), tail...)
	}
	table := func(leaf []byte) []byte {
		return attest.EncodeCertTable([]attest.CertEntry{
			{GUID: attest.GUIDVCEK, Data: leaf},
			{GUID: attest.GUIDASK, Data: m.Signer.ASK.Raw},
			{GUID: attest.GUIDARK, Data: m.Signer.ARK.Raw},
		})
	}
	verdict := func(table []byte) *attest.Verdict {
		v, err := attest.VerifyReport(t.Context(), m.SignedReport([64]byte{1}), table, attest.Expect{}, options(m))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	leaf := m.LeafCertificate().Raw
	for _, tail := range []string{"", "\x00", "\r\n\x00\x00"} {
		in := table(text(leaf, tail))
		want(t, verdict(in))
		if b, err := attest.TableBundle(in); err != nil || len(b.Certificates) != 3 {
			t.Errorf("%+v, %v", b, err)
		}
	}
	malformed := is(attest.CheckCertificates, attest.ReasonCertificateTable)
	for name, data := range map[string][]byte{
		"two":         append(text(leaf, ""), text(leaf, "")...),
		"a key":       pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: leaf}),
		"text behind": text(leaf, "more"),
		"zeros":       append(bytes.Clone(leaf), 0),
	} {
		t.Run(name, func(t *testing.T) { want(t, verdict(table(data)), malformed) })
	}
}

// A CRL of another root says nothing, and the verdict says so.
func TestCRLOfAnotherRoot(t *testing.T) {
	m := genoa()
	o := hardware(t, m)
	milan, turin := attesttest.NewSigner("Milan").CRL(nil, nil), attesttest.NewSigner("Turin").CRL(nil, nil)
	note := func(v *attest.Verdict) string {
		for _, c := range v.Checks {
			if c.Name == string(attest.CheckCRL) {
				return c.Note
			}
		}
		return ""
	}
	v := judgeCRL(t, m, o, turin, milan, milan)
	want(t, v)
	if n := note(v); !strings.HasSuffix(n, "those given are of ARK-Milan, ARK-Turin") {
		t.Errorf("note is %q", n)
	}
	o.Policy.Revocation = attest.RevocationRequired
	v = judgeCRL(t, m, o, milan)
	want(t, v, is(attest.CheckCRL, attest.ReasonCRLUnavailable))
	if n := note(v); n != "those given are of ARK-Milan" {
		t.Errorf("note is %q", n)
	}
	if n := note(judgeCRL(t, m, o)); n != "" {
		t.Errorf("note is %q", n)
	}
}

// TestBundleOfAzure: the certificates as Azure's hosts give them.
func TestBundleOfAzure(t *testing.T) {
	m := genoa()
	text := func(certs ...*x509.Certificate) string {
		return string((&attest.Bundle{Certificates: certs}).Encode())
	}
	leaf := m.LeafCertificate()
	doc := map[string]any{"vcekCert": text(leaf), "certificateChain": text(m.Signer.ASK, m.Signer.ARK), "tcbm": "DB18000000000004", "cacheControl": "86400"}
	b, err := attest.ParseBundle(append([]byte("\n"), document(t, doc)...))
	if err != nil || len(b.Certificates) != 3 || !b.Certificates[0].Equal(leaf) {
		t.Fatalf("%v, %v", b, err)
	}
	want(t, verifyWith(t, m, b.Certificates, nil))
	for wanted, change := range map[string]func(map[string]any){
		"certificates: found JSON without vcekCert": func(d map[string]any) { delete(d, "vcekCert") },
		`certificates: field "vlekCert": not known`: func(d map[string]any) { d["vlekCert"] = "" },
		"certificates: PEM block 2: type is \"PRIVATE KEY\"": func(d map[string]any) {
			d["certificateChain"] = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"
		},
		"certificates: 5 bytes that are no PEM at the end": func(d map[string]any) { d["certificateChain"] = "more" },
	} {
		bad := maps.Clone(doc)
		change(bad)
		if _, err := attest.ParseBundle(document(t, bad)); err == nil || !strings.HasPrefix(err.Error(), wanted) {
			t.Errorf("%s: error is %v", wanted, err)
		}
	}
	if _, err := attest.ParseBundle([]byte(`{"vcekCert":"","vcekCert":""}`)); err == nil {
		t.Error("a repeated member was accepted")
	}
}

// TestCertTableGUIDOrder holds the order of the bytes in a table's GUIDs against
// the one of go-sev-guest, which is the one that hosts write, and reads UEFI's
// order too.
func TestCertTableGUIDOrder(t *testing.T) {
	m := genoa()
	in := m.CertTable()
	var peer abi.CertTable
	if err := peer.Unmarshal(in); err != nil {
		t.Fatal(err)
	}
	ark, err := peer.GetByGUIDString(abi.ArkGUID)
	if err != nil || !bytes.Equal(ark, m.Signer.ARK.Raw) {
		t.Errorf("go-sev-guest finds no ARK: %v", err)
	}
	entries, err := attest.ParseCertTable(in)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(attest.EncodeCertTable(entries), in) {
		t.Error("the table is written in another form")
	}
	if s := attest.GUIDVCEK.String(); entries[0].GUID != attest.GUIDVCEK || s != abi.VcekGUID {
		t.Errorf("the first entry is %s, VCEK's GUID %s", entries[0].GUID, s)
	}
	swapped := bytes.Clone(in)
	for i := range entries {
		g := swapped[i*24:]
		slices.Reverse(g[:4])
		slices.Reverse(g[4:6])
		slices.Reverse(g[6:8])
	}
	again, err := attest.ParseCertTable(swapped)
	if err != nil || !slices.EqualFunc(again, entries, func(a, b attest.CertEntry) bool { return a.GUID == b.GUID && bytes.Equal(a.Data, b.Data) }) {
		t.Errorf("in UEFI's order: %v, %v", again, err)
	}
	copy(swapped[24:40], attest.GUIDVCEK[:])
	if _, err := attest.ParseCertTable(swapped); !errors.Is(err, attest.ErrCertTable) {
		t.Errorf("one GUID in both orders: %v", err)
	}
}

// More forms in which tools save a report.
// TestCertTableGUIDs: every GUID is known in both orders.
func TestCertTableGUIDs(t *testing.T) {
	for _, known := range []attest.GUID{attest.GUIDVCEK, attest.GUIDVLEK, attest.GUIDASK, attest.GUIDARK, attest.GUIDCRL} {
		other := known
		slices.Reverse(other[:4])
		slices.Reverse(other[4:6])
		slices.Reverse(other[6:8])
		for _, g := range []attest.GUID{known, other} {
			entries, err := attest.ParseCertTable(attesttest.CertTable(attesttest.TableEntry{GUID: g, Data: []byte{1}}))
			if err != nil || len(entries) != 1 || entries[0].GUID != known {
				t.Errorf("%x: %v, %v, expected %s", g, entries, err, known)
			}
		}
	}
}

// More forms in which tools save a report.
func TestSplitReportInOtherForms(t *testing.T) {
	raw := []byte(genoa().SignedReport([64]byte{1}))
	r, table, err := attest.SplitReport([]byte("0x" + hex.EncodeToString(raw) + "\n"))
	if err != nil || table != nil || !bytes.Equal(r, raw) {
		t.Errorf("0x: %v", err)
	}
	for name, text := range map[string]string{
		"two prefixes": "0x0x" + hex.EncodeToString(raw),
		"JSON":         `{"report": "` + hex.EncodeToString(raw) + `"}`,
	} {
		if _, _, err := attest.SplitReport([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// Azure's HCL report has it inside.
	hcl := readFile(t, filepath.Join(dataDir(t), "azure-vtpm", "trustee__hcl-report.bin"))
	for name, data := range map[string][]byte{"raw": hcl, "hex": []byte(hex.EncodeToString(hcl))} {
		r, table, err := attest.SplitReport(data)
		if err != nil || table != nil || !bytes.Equal(r, hcl[32:32+1184]) {
			t.Errorf("HCL report, %s: %v", name, err)
		}
	}
	if _, _, err := attest.SplitReport(hcl[:1300]); err == nil {
		t.Error("half an HCL report was accepted")
	}
}

// What a cache remembers is the whole chain: the same leaf under another
// intermediate or root is verified anew.
func TestChainCacheKnowsTheWholeChain(t *testing.T) {
	m := genoa()
	broken := is(attest.CheckChain, attest.ReasonChainBroken)
	other := &attesttest.RSAKey(6).PublicKey
	ask, ark := withKey(t, m.Signer.ASK, other), withKey(t, m.Signer.ARK, other)
	cache := new(attest.ChainCache)
	verdict := func(ask, ark *x509.Certificate) *attest.Verdict {
		return verifyWith(t, m, nil, func(o *attest.Options) {
			o.Cache, o.SimRoots = cache, []*x509.Certificate{ark}
			o.Certificates = []*x509.Certificate{ask, m.LeafCertificate()}
		})
	}
	for range 2 {
		want(t, verdict(m.Signer.ASK, m.Signer.ARK))
		want(t, verdict(ask, m.Signer.ARK), broken)
		want(t, verdict(m.Signer.ASK, ark), broken)
	}
	// A chain of the same bytes is not verified again: this one would not pass.
	same := *m.LeafCertificate()
	same.Signature = []byte{1}
	again := func(c *attest.ChainCache) *attest.Verdict {
		return verifyWith(t, m, []*x509.Certificate{&same}, func(o *attest.Options) { o.Cache = c })
	}
	want(t, again(cache))
	want(t, again(nil), broken)
	want(t, again(new(attest.ChainCache)), broken)
	// The leaf's own signature counts, too.
	forged := verifyWith(t, m, []*x509.Certificate{decoy(t, m, 1)}, func(o *attest.Options) { o.Cache = cache })
	wantAny(t, forged, broken)
}

// Each part of a chain can be missing.
func TestMissingCertificates(t *testing.T) {
	m := genoa()
	for want, certs := range map[string][]*x509.Certificate{
		"no VCEK or VLEK":                   {m.Signer.ASK},
		"no intermediate (ASK) of SEV-VCEK": {m.LeafCertificate()},
		"no root (ARK) of SEV-Genoa":        {m.Signer.ASK, m.LeafCertificate()},
	} {
		v := verifyWith(t, m, nil, func(o *attest.Options) {
			o.Certificates, o.SimRoots = certs, []*x509.Certificate{attesttest.NewSigner("Milan").ARK}
		})
		wantAny(t, v, is(attest.CheckCertificates, attest.ReasonCertificatesUnavailable))
		if f := found(v, attest.CheckCertificates); f != want {
			t.Errorf("found %q, expected %q", f, want)
		}
	}
}

// ownChain is a machine's chain with a root and an intermediate of other keys,
// whose templates are changed.
func ownChain(m *attesttest.Machine, edit func(root, ask *x509.Certificate)) (root, ask, leaf *x509.Certificate) {
	rootKey, askKey := attesttest.RSAKey(6), attesttest.RSAKey(7)
	template := func(c *x509.Certificate) *x509.Certificate {
		t := *c
		t.RawSubject, t.SubjectKeyId, t.AuthorityKeyId, t.PublicKey = nil, nil, nil, nil
		t.ExtraExtensions = nil
		return &t
	}
	rootTemplate, askTemplate, leafTemplate := template(m.Signer.ARK), template(m.Signer.ASK), template(m.LeafCertificate())
	leafTemplate.ExtraExtensions = slices.Clone(leafTemplate.Extensions)
	edit(rootTemplate, askTemplate)
	root = attesttest.Certify(rootTemplate, rootTemplate, &rootKey.PublicKey, rootKey)
	ask = attesttest.Certify(askTemplate, root, &askKey.PublicKey, rootKey)
	return root, ask, attesttest.Certify(leafTemplate, ask, &attesttest.LeafKey().PublicKey, askKey)
}

func verifyOwnChain(t *testing.T, edit func(root, ask *x509.Certificate)) *attest.Verdict {
	t.Helper()
	m := genoa()
	root, ask, leaf := ownChain(m, edit)
	return verifyWith(t, m, nil, func(o *attest.Options) {
		o.Certificates, o.SimRoots = []*x509.Certificate{ask, leaf}, []*x509.Certificate{root}
	})
}

// A root that is not named like one of AMD's stands for no product.
func TestRootOfAnotherName(t *testing.T) {
	want(t, verifyOwnChain(t, func(_, _ *x509.Certificate) {}))
	for _, names := range [][2]string{{"Genoa", "SEV-Genoa"}, {"ARK-", "SEV-"}, {"ark-Genoa", "SEV-ark-Genoa"}} {
		v := verifyOwnChain(t, func(root, ask *x509.Certificate) {
			root.Subject, ask.Subject = attesttest.Name(names[0]), attesttest.Name(names[1])
		})
		wantAny(t, v, is(attest.CheckChain, attest.ReasonChainRole))
	}
}

// Every certificate of a chain must be valid, not the leaf alone.
func TestChainOutOfDate(t *testing.T) {
	past, future := attesttest.Now.AddDate(0, 0, -1), attesttest.Now.AddDate(0, 0, 1)
	expired := is(attest.CheckCertificateTime, attest.ReasonCertificateExpired)
	early := is(attest.CheckCertificateTime, attest.ReasonCertificateNotYetValid)
	for name, c := range map[string]struct {
		edit func(root, ask *x509.Certificate)
		want string
	}{
		"root expired":               {func(root, _ *x509.Certificate) { root.NotAfter = past }, expired},
		"root not yet valid":         {func(root, _ *x509.Certificate) { root.NotBefore = future }, early},
		"intermediate expired":       {func(_, ask *x509.Certificate) { ask.NotAfter = past }, expired},
		"intermediate not yet valid": {func(_, ask *x509.Certificate) { ask.NotBefore = future }, early},
	} {
		t.Run(name, func(t *testing.T) { want(t, verifyOwnChain(t, c.edit), c.want) })
	}
}

// The note says which roots were trusted.
func TestNoteOfUntrustedRoot(t *testing.T) {
	m := genoa()
	for want, roots := range map[string][]*x509.Certificate{
		"AMD's roots are pinned": nil,
		"AMD's are not":          {attesttest.NewImpostor("Genoa").ARK},
	} {
		v := verifyWith(t, m, []*x509.Certificate{m.LeafCertificate(), m.Signer.ARK}, func(o *attest.Options) { o.SimRoots = roots })
		wantAny(t, v, arkUntrusted)
		if c := check(t, v, attest.CheckPlatform); !strings.Contains(c.Note, "chain failed: ark-untrusted") {
			t.Errorf("%+v", c)
		}
		for _, c := range v.Checks {
			if c.Name == string(attest.CheckChain) && !strings.Contains(c.Note, want) {
				t.Errorf("note is %q", c.Note)
			}
		}
	}
}
