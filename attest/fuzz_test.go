package attest

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/evtpm/evtpm/attest/attesttest"
	"github.com/evtpm/evtpm/attest/evidence"
)

// seed adds inputs to a fuzz target. With EVTPM_WRITE_CORPUS set they are also
// written to testdata/fuzz, which is how the corpus there was made.
func seed(f *testing.F, inputs ...[]byte) {
	f.Helper()
	for i, b := range inputs {
		f.Add(b)
		if os.Getenv("EVTPM_WRITE_CORPUS") == "" {
			continue
		}
		dir := filepath.Join("testdata", "fuzz", f.Name())
		if err := os.MkdirAll(dir, 0o755); err != nil {
			f.Fatal(err)
		}
		text := fmt.Sprintf("go test fuzz v1\n[]byte(%q)\n", b)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("seed-%02d", i)), []byte(text), 0o644); err != nil {
			f.Fatal(err)
		}
	}
}

// machine is a good machine whose parts are seeds.
func machine() *attesttest.Machine { return attesttest.NewMachine(attesttest.Genoa) }

func FuzzParseReport(f *testing.F) {
	good := machine().SignedReport([64]byte{1})
	turin := attesttest.NewMachine(attesttest.Turin).SignedReport([64]byte{2})
	seed(f, good, turin, good[:1183], make([]byte, 1184))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseReport(b)
		if err != nil {
			return
		}
		r.Claims()
		if _, err := ReportURL(r); err == nil && r.CPUID == nil {
			t.Error("a URL without a product")
		}
		v, err := VerifyReport(t.Context(), b, nil, Expect{}, Options{Now: attesttest.Now})
		if err != nil || v.Trusted() {
			t.Errorf("a report without certificates: %v, %v", v, err)
		}
	})
}

func FuzzSplitReport(f *testing.F) {
	m := machine()
	raw := append(bytes.Clone(m.SignedReport([64]byte{1})), m.CertTable()...)
	response := append([]byte{0, 0, 0, 0, 0xA0, 4, 31: 0}, raw[:ReportSize]...)
	tsm := fmt.Appendf(nil, `{"evidence":{"outblob":%q,"auxblob":%q}}`, base64.StdEncoding.EncodeToString(raw[:ReportSize]), base64.StdEncoding.EncodeToString(raw[ReportSize:]))
	fields := []byte(`{"attestation_report":{"version":5,"current_tcb":{"fmc":1,"bootloader":1,"tee":0,"snp":3,"microcode":70},"signature":{"r":[1],"s":"AQ"}},` +
		`"cert_chain":[{"cert_type":"VCEK","data":[48,0]},{"cert_type":{"OTHER":"x"},"data":"MAA"}]}`)
	seed(f, raw, fmt.Appendf(nil, "%x\n", raw[:ReportSize]), []byte("AgAAAA=="), response, tsm, fields)
	f.Fuzz(func(t *testing.T, b []byte) {
		report, table, err := SplitReport(b)
		if err == nil && len(report) != ReportSize {
			t.Errorf("a report of %d bytes", len(report))
		}
		if err == nil && len(table) > 0 {
			if _, err := ParseCertTable(table); err != nil {
				t.Error(err)
			}
		}
	})
}

func FuzzCertTable(f *testing.F) {
	good := machine().CertTable()
	wraps := bytes.Clone(good[:96])
	copy(wraps[16:], []byte{0xF0, 0xFF, 0xFF, 0xFF, 0x20, 0, 0, 0})
	seed(f, good[:200], EncodeCertTable([]CertEntry{{GUIDVCEK, []byte("x")}, {GUIDCRL, []byte("yy")}}), wraps, make([]byte, 24))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := ParseCertTable(b)
		if err != nil {
			return
		}
		again, err := ParseCertTable(EncodeCertTable(entries))
		if err != nil || len(again) != len(entries) {
			t.Fatalf("written and read again: %v", err)
		}
		for i, e := range entries {
			if again[i].GUID != e.GUID || !bytes.Equal(again[i].Data, e.Data) {
				t.Errorf("entry %d changed", i)
			}
		}
		_, _ = TableBundle(b)
	})
}

func FuzzLeaf(f *testing.F) {
	m := machine()
	vlek := m.Signer.Leaf(attesttest.Leaf{VLEK: true, Levels: m.Processor.Levels})
	turin := attesttest.NewMachine(attesttest.Turin).LeafCertificate()
	seed(f, m.LeafCertificate().Raw, vlek.Raw, turin.Raw)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := x509.ParseCertificate(b)
		if err != nil {
			return
		}
		l, err := ParseLeaf(c)
		if err != nil {
			return
		}
		if l.Kind == "vcek" && len(l.HWID) != hwidSize && len(l.HWID) != hwidSizeTurin || l.key == nil {
			t.Errorf("%+v", l)
		}
		l.URL()
	})
}

func FuzzCRL(f *testing.F) {
	crl := attesttest.NewSigner("Genoa").CRL(nil, nil)
	seed(f, crl, crl[:len(crl)-3])
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseCRL(b)
		if err == nil && (l.NextUpdate.IsZero() || !bytes.Equal(l.Raw, b)) {
			t.Errorf("%v", l)
		}
	})
}

func FuzzBundle(f *testing.F) {
	m := machine()
	b := &Bundle{Certificates: []*x509.Certificate{m.LeafCertificate(), m.Signer.ARK}}
	if err := b.addCRL(m.Signer.CRL(nil, nil)); err != nil {
		f.Fatal(err)
	}
	seed(f, b.Encode(), m.Signer.ARK.Raw, []byte("-----BEGIN CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := ParseBundle(data)
		if err != nil {
			return
		}
		again, err := ParseBundle(b.Encode())
		if len(b.Certificates)+len(b.CRLs) == 0 {
			return
		}
		if err != nil || len(again.Certificates) != len(b.Certificates) || len(again.CRLs) != len(b.CRLs) {
			t.Errorf("written and read again: %v", err)
		}
	})
}

// FuzzPublic holds our reader against go-tpm's: what we take, it takes, and
// writes back as the same bytes.
func FuzzPublic(f *testing.F) {
	m := machine()
	ecc := attesttest.NewVTPM(3, true)
	seed(f, tpm2.Marshal(m.TPM.EK), tpm2.Marshal(m.TPM.AK), tpm2.Marshal(ecc.AK))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePublic(b)
		if err != nil {
			return
		}
		p.name()
		_, _ = p.key()
		theirs, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
		if err != nil {
			return // go-tpm knows fewer algorithms by name
		}
		if !bytes.Equal(tpm2.Marshal(*theirs), b) {
			t.Error("go-tpm reads something else")
		}
	})
}

func FuzzSignature(f *testing.F) {
	m := machine()
	ecc := attesttest.NewVTPM(3, true)
	seed(f, m.TPM.Sign([]byte("x")), ecc.Sign([]byte("x")))
	key, err := (&tpmPublic{kind: algRSA, bits: 2048, modulus: attesttest.RSAKey(2).N.Bytes()}).key()
	if err != nil {
		f.Fatal(err)
	}
	eccKey := &attesttest.ECKey().PublicKey
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSignature(b)
		if err != nil {
			return
		}
		if s.verify(key, []byte("y")) == nil || s.verify(eccKey, []byte("y")) == nil {
			t.Error("a signature of something else verifies")
		}
	})
}

func FuzzQuote(f *testing.F) {
	m := machine()
	good := m.TPM.Quote([]byte("nonce"), []int{0, 4, 9}, nil)
	seed(f, good, m.TPM.Quote(nil, nil, nil), good[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := parseQuote(b); err != nil {
			return
		}
		theirs, err := tpm2.Unmarshal[tpm2.TPMSAttest](b)
		if err != nil {
			return
		}
		if !bytes.Equal(tpm2.Marshal(*theirs), b) {
			t.Error("go-tpm reads something else")
		}
	})
}

func FuzzServices(f *testing.F) {
	m := machine()
	m.Binding = evidence.BindingSVSMServices
	seed(f, m.Manifest(), attesttest.Services(), attesttest.Services(attesttest.TableEntry{GUID: [16]byte{1}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := ParseServices(b)
		if err == nil && !bytes.Equal(EncodeServices(list), b) {
			t.Error("written again it is something else")
		}
	})
}

func FuzzManifest(f *testing.F) {
	m := machine()
	ek, ak := m.TPM.EKPublic(), m.TPM.AKPublic()
	v1 := append(append([]byte{0, 0, 0, 1, 0, 0, 0, 2}, ek...), ak...)
	seed(f, append([]byte{0}, ek[2:]...), append([]byte{1}, v1...), []byte{1, 0, 0, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		keys, err := parseVTPMManifest(b[1:], uint32(b[0]))
		if err == nil && (len(keys) == 0 || len(keys) > maxManifestKeys) {
			t.Errorf("%d keys", len(keys))
		}
	})
}

func FuzzEventLog(f *testing.F) {
	good := attesttest.Log(attesttest.DirectBoot())
	seed(f, good, good[:49], attesttest.Log(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseEventLog(b)
		if err != nil {
			return
		}
		checkEventData(l)
		l.separatorFault()
		for _, bank := range append(l.Banks, "sha256", "none") {
			if values, err := l.Replay(bank); err == nil && len(values[0]) == 0 {
				t.Error("no values")
			}
		}
	})
}

func FuzzHCL(f *testing.F) {
	runtime := []byte(`{"keys":[{"kid":"HCLAkPub","key_ops":["sign"],"kty":"RSA","e":"AQAB","n":"AQAB"}]}`)
	b := append([]byte("HCLA"), make([]byte, 28+ReportSize+hclDataHeader)...)
	b = append(b, runtime...)
	put := func(off int, v int) { b[off], b[off+1] = byte(v), byte(v>>8) }
	put(offHCLVersion, 1)
	put(offHCLSize, len(b))
	put(offHCLRequest, hclRequestReport)
	put(offHCLData, hclDataHeader+len(runtime))
	put(offHCLData+4, 1)
	put(offHCLData+8, hclReportSNP)
	put(offHCLData+12, hclHashSHA256)
	put(offHCLData+16, len(runtime))
	seed(f, b, b[:offHCLData])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHCL(b)
		if err != nil {
			return
		}
		if len(h.Report) != ReportSize {
			t.Errorf("a report of %d bytes", len(h.Report))
		}
		_, _ = runtimeAK(h.Runtime)
	})
}

func FuzzRuntimeData(f *testing.F) {
	n := "vcK4"
	seed(f, []byte(`{"keys":[{"kid":"HCLAkPub","key_ops":["sign"],"kty":"RSA","e":"AQAB","n":"`+n+`"}]}`), []byte(`{"keys":[]}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := runtimeAK(b); err == nil && len(k.modulus) != 256 {
			t.Errorf("%+v", k)
		}
	})
}

func FuzzAzure(f *testing.F) {
	seed(f, []byte(`{"version":1,"hcl_report":"","tpm_quote":{"message":"00","pcrs":["00"],"signature":"00"},"vcek":""}`),
		[]byte(`{"report":[1],"quote":{"message":[1],"pcrs":[[1]],"signature":[1]},"vcek":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if ev, err := ParseAzure(b, []byte("challenge")); err == nil && len(ev.Report) != ReportSize {
			t.Errorf("%+v", ev)
		}
	})
}

func FuzzGoTPM(f *testing.F) {
	good, err := EncodeGoTPM(machine().Evidence())
	if err != nil {
		f.Fatal(err)
	}
	seed(f, good, good[:300], []byte{0x0A, 0x00})
	f.Fuzz(func(t *testing.T, b []byte) {
		ev, err := ParseGoTPM(b, make([]byte, NonceSize))
		if err != nil {
			return
		}
		again, err := EncodeGoTPM(ev)
		if err != nil {
			return // a report or a table that this package refuses
		}
		back, err := ParseGoTPM(again, ev.Nonce)
		if err != nil || !bytes.Equal(back.Report, ev.Report) || !bytes.Equal(back.Quote, ev.Quote) || !bytes.Equal(back.Manifest, ev.Manifest) {
			t.Errorf("written and read again: %v", err)
		}
	})
}

func FuzzPolicy(f *testing.F) {
	seed(f, DefaultPolicyYAML(), PermissivePolicyYAML(), []byte("version: 1\n"), []byte("a: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePolicy(b, "p")
		if err != nil {
			return
		}
		text, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParsePolicy(text, "again"); err != nil {
			t.Errorf("written and read again: %v\n%s", err, text)
		}
	})
}

// FuzzVerify changes evidence as text: it is never trusted unless what counts is
// the same.
func FuzzVerify(f *testing.F) {
	m := machine()
	good := m.Evidence()
	text, err := json.Marshal(good)
	if err != nil {
		f.Fatal(err)
	}
	nv := machine()
	nv.Binding = evidence.BindingNV
	other, err := json.Marshal(nv.Evidence())
	if err != nil {
		f.Fatal(err)
	}
	seed(f, text, other)
	golden := m.Golden()
	o := Options{Now: attesttest.Now, SimRoots: []*x509.Certificate{m.Signer.ARK}, Cache: new(ChainCache)}
	f.Fuzz(func(t *testing.T, b []byte) {
		ev, err := evidence.Parse(b)
		if err != nil {
			return
		}
		v, err := Verify(t.Context(), ev, golden, o)
		if err != nil {
			t.Fatal(err)
		}
		// Boot id is a claim, and the certificate table may differ in form.
		if v.Trusted() && (!bytes.Equal(ev.Nonce, good.Nonce) || len(ev.Quote) != len(good.Quote) || len(v.Checks) == 0) {
			t.Errorf("trusted: %s", b)
		}
	})
}

// TestBoundsOfHostileInput: the largest inputs of the worst kind cost at most 64
// MiB and a second each.
func TestBoundsOfHostileInput(t *testing.T) {
	if testing.Short() {
		t.Skip("needs go test without -short: takes long")
	}
	table := func() []byte {
		var entries []CertEntry
		for i := range maxCertEntries {
			entries = append(entries, CertEntry{GUID{byte(i), 1}, make([]byte, 4000)})
		}
		return EncodeCertTable(entries)
	}()
	manyEvents := attesttest.Log(make([]attesttest.Event, maxEvents))
	m := machine()
	servicesGUID := GUIDServicesManifest.swapped()
	for name, f := range map[string]func(){
		"report":      func() { _, _ = ParseReport(make([]byte, 1<<25)) },
		"text report": func() { _, _, _ = SplitReport(bytes.Repeat([]byte("A"), MaxReportFile)) },
		"table":       func() { _, _ = ParseCertTable(table) },
		"bundle":      func() { _, _ = ParseBundle(bytes.Repeat([]byte("-----BEGIN X-----\n"), MaxBundle/18)) },
		"CRL":         func() { _, _ = ParseCRL(bytes.Repeat([]byte{0x30, 0x80}, maxCRL/2)) },
		"event log": func() {
			l, err := ParseEventLog(manyEvents)
			use(t, l, err)
			_, _ = l.Replay("sha256")
			checkEventData(l)
		},
		"zeros log":   func() { _, _ = ParseEventLog(make([]byte, maxEventLog)) },
		"services":    func() { _, _ = ParseServices(bytes.Repeat(servicesGUID[:], maxManifest/16)) },
		"quote":       func() { _, _ = parseQuote(bytes.Repeat([]byte{0xFF, 0x54, 0x43, 0x47, 0x80, 0x18}, 1<<20)) },
		"HCL":         func() { _, _ = ParseHCL(bytes.Repeat([]byte("HCLA"), maxHCL/4)) },
		"gotpm":       func() { _, _ = ParseGoTPM(bytes.Repeat([]byte{0x12, 0}, maxGoTPM/2), nil) },
		"azure":       func() { _, _ = ParseAzure([]byte(`{"report":[`+strings.Repeat("1,", maxAzure/2-50)+`1]}`), nil) },
		"policy":      func() { _, _ = ParsePolicy([]byte(strings.Repeat("a: 1\n", maxPolicySize/5)), "p") },
		"policy list": func() { _, _ = ParsePolicy([]byte("x: ["+strings.Repeat("[],", maxPolicySize/3-10)+"]"), "p") },
		"evidence": func() {
			_, _ = evidence.Parse([]byte(`{"pcrs":[` + strings.Repeat(`{},`, evidence.MaxEvidence/3-10) + `{}]}`))
		},
		"many PCRs": func() {
			ev := m.Evidence()
			for range 100000 {
				ev.PCRs = append(ev.PCRs, evidence.PCR{PCR: 1})
			}
			_, _ = Verify(t.Context(), ev, m.Golden(), Options{Now: attesttest.Now, SimRoots: []*x509.Certificate{m.Signer.ARK}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			f()
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
				t.Errorf("allocated %d MiB", n>>20)
			}
			if took > time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func use(t *testing.T, l *EventLog, err error) {
	t.Helper()
	if err != nil || len(l.Events) != maxEvents {
		t.Fatalf("%v", err)
	}
}
