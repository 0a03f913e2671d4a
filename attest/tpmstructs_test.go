package attest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
	"github.com/evtpm/evtpm/attest/evidence"
)

// The exit code is that of the most fundamental failure, wherever it stands.
func TestClassOfVerdict(t *testing.T) {
	verdict := func(checks ...attest.Check) *attest.Verdict { return &attest.Verdict{Checks: checks} }
	failed := func(c attest.Class) attest.Check { return attest.Check{Status: attest.Failed, Class: c} }
	passed := attest.Check{Status: attest.Passed, Class: attest.ClassSignature}
	for want, v := range map[attest.Class]*attest.Verdict{
		attest.ClassOK:          verdict(passed),
		attest.ClassPolicy:      verdict(failed(7), failed(5), failed(6)),
		attest.ClassSignature:   verdict(failed(2), failed(7), failed(2)),
		attest.ClassMeasurement: verdict(passed, failed(6), failed(7)),
		attest.ClassVTPM:        verdict(failed(7), passed),
	} {
		if got := v.Class(); got != want {
			t.Errorf("class is %d, expected %d", got, want)
		}
	}
}

// Keys at the borders of what is accepted for an AK.
func TestKeysOfAK(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uncompressed, err := p384.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	point := uncompressed[1:]
	curve := func(x int) func(*tpm2.TPMTPublic) {
		return func(p *tpm2.TPMTPublic) {
			*p = attesttest.NewVTPM(3, true).AK
			eccParms(p).CurveID = tpm2.TPMECCNistP384
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: point[:x]}, Y: tpm2.TPM2BECCParameter{Buffer: point[x:]},
			})
		}
	}
	for name, c := range map[string]struct {
		edit func(*tpm2.TPMTPublic)
		ok   bool
	}{
		"P-384":                   {curve(48), true},
		"P-384 cut at other byte": {curve(47), false},
		"RSA-4096":                {func(p *tpm2.TPMTPublic) { rsaParms(p).KeyBits = 4096; p.Unique = modulus(0xC1, 512) }, true},
		"RSA-4104":                {func(p *tpm2.TPMTPublic) { rsaParms(p).KeyBits = 4104; p.Unique = modulus(0xC1, 513) }, false},
		"RSA-2040":                {func(p *tpm2.TPMTPublic) { rsaParms(p).KeyBits = 2040; p.Unique = modulus(0xC1, 255) }, false},
		"exponent in full":        {func(p *tpm2.TPMTPublic) { rsaParms(p).Exponent = 65537 }, true},
		"modulus with a zero": {func(p *tpm2.TPMTPublic) {
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: append([]byte{0}, bytes.Repeat([]byte{0xC1}, 256)...)})
		}, false},
	} {
		m := genoa()
		c.edit(&m.TPM.AK)
		ak := m.TPM.AKPublic()
		v := judge(t, withEvidence(func(ev *evidence.Evidence) { ev.AKPublic = ak }))
		if got := check(t, v, attest.CheckAK); (got.Status == attest.Passed) != c.ok || !c.ok && got.Reason != string(attest.ReasonAKAlgorithm) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	// What cannot be read at all.
	ecc := attesttest.NewVTPM(3, true).AKPublic()
	for what, b := range map[string][]byte{
		"key type is 0x0008, expected RSA or ECC":        func() []byte { b := bytes.Clone(ecc); b[3] = 8; return b }(),
		"key derivation scheme is 0x0020, expected none": func() []byte { b := bytes.Clone(ecc); b[21] = 0x20; return b }(),
	} {
		v := judge(t, withEvidence(func(ev *evidence.Evidence) { ev.AKPublic = b }))
		if got := check(t, v, attest.CheckAK); got.Reason != string(attest.ReasonAKMalformed) || !strings.Contains(got.Found, what) {
			t.Errorf("%+v, expected %q", got, what)
		}
	}
}

// Signatures and quotes at their borders.
func TestQuoteBorders(t *testing.T) {
	v := judge(t, withEvidence(func(ev *evidence.Evidence) { ev.QuoteSignature[1] = 0x1B }))
	if c := check(t, v, attest.CheckQuoteSignature); c.Reason != string(attest.ReasonQuoteAlgorithm) || !strings.Contains(c.Found, "scheme is 0x001b") {
		t.Errorf("%+v", c)
	}
	if v := judge(t, genoa()); strings.Contains(strings.Join(v.Warnings, " "), "clock") {
		t.Errorf("warnings %q", v.Warnings)
	}
	// As many selections as may be, and one more.
	good := genoa().Evidence().Quote
	sel := []byte{0, 0x0B, 3}
	at := bytes.Index(good, append([]byte{0, 0, 0, 1}, sel...))
	for n, status := range map[int]attest.Status{16: attest.Passed, 17: attest.Failed} {
		quote := bytes.Clone(good[:at])
		quote = binary.BigEndian.AppendUint32(quote, uint32(n))
		for range n {
			quote = append(quote, good[at+4:at+10]...)
		}
		quote = append(quote, good[at+10:]...)
		v := judge(t, withEvidence(func(ev *evidence.Evidence) { ev.Quote = quote }))
		if c := check(t, v, attest.CheckQuoteForm); c.Status != status {
			t.Errorf("%d selections: %+v", n, c)
		}
	}
	// Long data is shown cut.
	log := attesttest.Log([]attesttest.Event{{PCR: 7, Type: attesttest.EvSeparator, Data: bytes.Repeat([]byte{9}, 20)}})
	v = judge(t, withEvidence(func(ev *evidence.Evidence) { ev.EventLog = log }))
	if c := check(t, v, attest.CheckEventLogReplay); c.Found != "PCR 7 has "+strings.Repeat("09", 16) {
		t.Errorf("%+v", c)
	}
}

// What the vTPM's checks say.
func TestVTPMInWords(t *testing.T) {
	m := genoa()
	v := judge(t, m)
	if c := check(t, v, attest.CheckEK); !strings.HasPrefix(c.Found, "RSA-2048, exponent 0, attributes 0x000300b2, name 000b") {
		t.Errorf("%+v", c)
	}
	if c := check(t, v, attest.CheckReportData); c.Note != "SHA-512(nonce || manifest)" {
		t.Errorf("%+v", c)
	}
	if c := check(t, v, attest.CheckQuoteSignature); !strings.HasPrefix(c.Found, "AK 000b") {
		t.Errorf("%+v", c)
	}
	none := judge(t, withEvidence(func(ev *evidence.Evidence) { ev.PCRs = nil }))
	if c := check(t, none, attest.CheckPCRSelection); c.Status != attest.Failed || !strings.Contains(c.Expected+c.Found, "none") {
		t.Errorf("%+v", c)
	}
	nv := genoa()
	nv.Binding = evidence.BindingNV
	if c := check(t, judge(t, nv), attest.CheckReportData); c.Note != "SHA-512(EK as TPM2B_PUBLIC)" {
		t.Errorf("%+v", c)
	}
	ecc := genoa()
	ecc.TPM = attesttest.NewVTPM(3, true)
	ecc.TPM.Extend(ecc.Events)
	if c := check(t, judge(t, ecc), attest.CheckAK); !strings.HasPrefix(c.Found, "ECC curve 0x0003, attributes ") {
		t.Errorf("%+v", c)
	}
	// Another EK is named, and the one that the manifest has.
	other := attesttest.NewVTPM(5, false)
	v = judge(t, withEvidence(func(ev *evidence.Evidence) { ev.EKPublic = other.EKPublic() }))
	if c := check(t, v, attest.CheckEKBound); !strings.HasPrefix(c.Expected, "000b") || len(c.Expected) != 68 || c.Expected == c.Found {
		t.Errorf("%+v", c)
	}
	// What is wrong with the services' own table is not lost.
	services := genoa()
	services.Binding = evidence.BindingSVSMServices
	services.EditManifest = func(b []byte) []byte { b[0] ^= 1; return b }
	if c := check(t, judge(t, services), attest.CheckManifest); !strings.Contains(c.Found, "header is ") {
		t.Errorf("%+v", c)
	}
	// The policy's VMPLs are those of bare reports.
	want(t, judgeWith(t, genoa(), func(p *attest.Policy) { p.VMPL = []uint32{1, 2} }))
}
