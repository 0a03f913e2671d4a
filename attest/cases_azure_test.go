package attest_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/measure"
)

// azurePolicy is the permissive policy for Azure's binding, which has no event
// log.
func azurePolicy() *attest.Policy {
	p := attest.PermissivePolicy()
	p.VTPM.Bindings = []string{attest.BindingAzureHCL}
	return p
}

// azureGolden fits a report, whatever it says.
func azureGolden(t *testing.T, report []byte, platform string) *measure.Golden {
	t.Helper()
	r, err := attest.ParseReport(report)
	if err != nil {
		t.Fatal(err)
	}
	g := &measure.Golden{
		Schema: measure.GoldenSchema, Platform: platform, HostProfile: "azure",
		LaunchDigests: []measure.Digest{measure.Digest(r.Measurement)}, Policy: uint64(r.Policy), HostData: bytes.Clone(r.HostData[:]),
	}
	if r.IDKeyDigest != [48]byte{} || r.FamilyID != [16]byte{} {
		g.IDBlock = &measure.GoldenIDBlock{FamilyID: bytes.Clone(r.FamilyID[:]), ImageID: bytes.Clone(r.ImageID[:]), GuestSVN: r.GuestSVN, IDKeyDigest: measure.Digest(r.IDKeyDigest)}
	}
	return g
}

// runtimeData is Azure's runtime data with one AK.
func runtimeData(keys ...string) []byte {
	return []byte(`{"keys":[` + strings.Join(keys, ",") + `],"vm-configuration":{"secure-boot":true},"user-data":"00"}`)
}

func jwk(kid, ops string, n []byte) string {
	return fmt.Sprintf(`{"kid":%q,"key_ops":[%s],"kty":"RSA","e":"AQAB","n":%q}`, kid, ops, base64.RawURLEncoding.EncodeToString(n))
}

func akModulus() []byte { return attesttest.RSAKey(2).N.Bytes() }

// azure makes evidence of an Azure machine with runtime data.
func azure(runtime []byte) (*attesttest.Machine, *evidence.Evidence) {
	m := genoa()
	var data [64]byte
	sum := sha256.Sum256(runtime)
	copy(data[:], sum[:])
	nonce := []byte("challenge")
	ev := &evidence.Evidence{
		Schema: evidence.Schema, Nonce: nonce, Binding: attest.BindingAzureHCL, Report: m.SignedReport(data), Manifest: runtime,
		Certificates: m.CertTable(), PCRBank: "sha256", Quote: m.TPM.Quote(nonce, pcrList(24), nil),
	}
	ev.QuoteSignature = m.TPM.Sign(ev.Quote)
	for i := range 24 {
		ev.PCRs = append(ev.PCRs, evidence.PCR{PCR: i, Value: m.TPM.PCRs[i]})
	}
	return m, ev
}

func judgeAzure(t *testing.T, m *attesttest.Machine, ev *evidence.Evidence) *attest.Verdict {
	t.Helper()
	o := options(m)
	o.Policy = azurePolicy()
	o.Registry = registry(t)
	v, err := attest.Verify(t.Context(), ev, azureGolden(t, ev.Report, "sim"), o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestV30_RuntimeData(t *testing.T) {
	good := jwk("HCLAkPub", `"sign"`, akModulus())
	m, ev := azure(runtimeData(good))
	v := judgeAzure(t, m, ev)
	want(t, v)
	if f := found(v, attest.CheckQuoteSignature); f != "the runtime data's AK" {
		t.Errorf("found %q", f)
	}
	m, ev = azure(runtimeData(jwk("HCLEkPub", `"encrypt"`, akModulus()), good))
	want(t, judgeAzure(t, m, ev))
	even := bytes.Clone(akModulus())
	even[255] &^= 1
	for name, runtime := range map[string][]byte{
		"two AKs":           runtimeData(good, good),
		"no AK":             runtimeData(jwk("HCLEkPub", `"encrypt"`, akModulus())),
		"another name":      runtimeData(jwk("HCLAKPUB", `"sign"`, akModulus())),
		"for encryption":    runtimeData(jwk("HCLAkPub", `"encrypt"`, akModulus())),
		"for both":          runtimeData(jwk("HCLAkPub", `"sign","encrypt"`, akModulus())),
		"for nothing":       runtimeData(jwk("HCLAkPub", ``, akModulus())),
		"exponent 3":        runtimeData(strings.Replace(good, "AQAB", "Aw", 1)),
		"elliptic":          runtimeData(strings.Replace(good, `"RSA"`, `"EC"`, 1)),
		"short modulus":     runtimeData(jwk("HCLAkPub", `"sign"`, akModulus()[:255])),
		"leading zero":      runtimeData(jwk("HCLAkPub", `"sign"`, append([]byte{0}, akModulus()...))),
		"key no object":     runtimeData(good, "5"),
		"even modulus":      runtimeData(jwk("HCLAkPub", `"sign"`, even)),
		"modulus no base64": runtimeData(`{"kid":"HCLAkPub","key_ops":["sign"],"kty":"RSA","e":"AQAB","n":"!"}`),
		"repeated member":   []byte(`{"keys":[` + good + `],"keys":[]}`),
		"repeated in a key": runtimeData(strings.Replace(good, `"kty"`, `"kid":"HCLAkPub","kty"`, 1)),
		"no keys":           []byte(`{}`),
		"no JSON":           []byte("runtime"),
		"empty":             nil,
	} {
		t.Run(name, func(t *testing.T) {
			m, ev := azure(runtime)
			want(t, judgeAzure(t, m, ev), badManifest)
		})
	}
	// What is at fault is said.
	for says, runtime := range map[string][]byte{
		"runtime data: unexpected EOF":                nil,
		"runtime data: HCLAkPub: n: illegal base64":   runtimeData(strings.Replace(good, `"n":"`, `"n":"!`, 1)),
		"runtime data: no key HCLAkPub":               runtimeData(),
		"runtime data: keys: json: cannot unmarshal ": []byte(`{"keys":5}`),
	} {
		m, ev := azure(runtime)
		if f := found(judgeAzure(t, m, ev), attest.CheckManifest); !strings.HasPrefix(f, says) {
			t.Errorf("found %q, expected %q", f, says)
		}
	}
	// The digest is not the runtime data's; or what follows it is not zeros.
	m, ev = azure(runtimeData(good))
	ev.Manifest = runtimeData(jwk("HCLAkPub", `"sign"`, akModulus()), jwk("x", "", nil))
	want(t, judgeAzure(t, m, ev), reportData)
	m, ev = azure(runtimeData(good))
	r := attesttest.Report(bytes.Clone(ev.Report))
	r[attesttest.OffReportData+63] = 1
	r.Sign(attesttest.LeafKey())
	ev.Report = r
	want(t, judgeAzure(t, m, ev), reportData)
	// Another key's quote; an empty, shorter or other nonce.
	m, ev = azure(runtimeData(jwk("HCLAkPub", `"sign"`, attesttest.RSAKey(5).N.Bytes())))
	want(t, judgeAzure(t, m, ev), is(attest.CheckQuoteSignature, attest.ReasonQuoteSignature))
	for _, nonce := range []string{"challengd", "challenge0", "challeng"} {
		m, ev = azure(runtimeData(good))
		ev.Nonce = []byte(nonce)
		want(t, judgeAzure(t, m, ev), is(attest.CheckQuoteNonce, attest.ReasonQuoteNonce))
	}
	for _, nonce := range [][]byte{nil, []byte("seven77"), make([]byte, 9), bytes.Repeat([]byte("x"), 65)} {
		m, ev = azure(runtimeData(good))
		ev.Nonce = nonce
		wantAny(t, judgeAzure(t, m, ev), is(attest.CheckNonce, attest.ReasonNonceForm))
	}
	// Keys beside the runtime data say nothing, and have no place there.
	m, _ = azure(runtimeData(good))
	for _, edit := range []func(*evidence.Evidence){
		func(ev *evidence.Evidence) { ev.EKPublic = m.TPM.EKPublic() },
		func(ev *evidence.Evidence) { ev.AKPublic = m.TPM.AKPublic() },
		func(ev *evidence.Evidence) { ev.ManifestVersion = 1 },
	} {
		_, ev := azure(runtimeData(good))
		edit(ev)
		want(t, judgeAzure(t, m, ev), badManifest)
	}
	// Not unless the policy asks for it, and never for a live challenge of ours.
	_, ev = azure(runtimeData(good))
	o := options(m)
	v, err := attest.Verify(t.Context(), ev, azureGolden(t, ev.Report, "sim"), o)
	if err != nil {
		t.Fatal(err)
	}
	wantAny(t, v, is(attest.CheckBinding, attest.ReasonBinding))
	s := challenge(t, m, m.TPM, attest.ChallengeOptions{})
	o.Live, o.Policy = s, azurePolicy()
	if v, err = attest.Verify(t.Context(), ev, azureGolden(t, ev.Report, "sim"), o); err != nil {
		t.Fatal(err)
	}
	wantAny(t, v, is(attest.CheckNonce, attest.ReasonNonceForeign))
	// The real sample whose AK is for encryption.
	hcl, err := attest.ParseHCL(readFile(t, filepath.Join(dataDir(t), "azure-vtpm", "azure-cvm-tooling__hcl-report-snp.bin")))
	if err != nil {
		t.Fatal(err)
	}
	m, ev = azure(hcl.Runtime)
	want(t, judgeAzure(t, m, ev), badManifest)
}

// hclReport makes Azure's envelope.
func hclReport(report, runtime []byte) []byte {
	le := binary.LittleEndian
	b := []byte("HCLA")
	for _, v := range []uint32{1, uint32(32 + len(report) + 20 + len(runtime)), 2, 0, 0, 0, 0} {
		b = le.AppendUint32(b, v)
	}
	b = append(b, report...)
	for _, v := range []uint32{uint32(20 + len(runtime)), 1, 2, 1, uint32(len(runtime))} {
		b = le.AppendUint32(b, v)
	}
	return append(append(b, runtime...), make([]byte, 200)...)
}

func TestV31_HCLEnvelope(t *testing.T) {
	le := binary.LittleEndian
	report, runtime := bytes.Repeat([]byte{7}, 1184), runtimeData()
	good := hclReport(report, runtime)
	h, err := attest.ParseHCL(good)
	if err != nil || !bytes.Equal(h.Report, report) || !bytes.Equal(h.Runtime, runtime) {
		t.Fatalf("%v", err)
	}
	// OpenHCL's number, which newer machines have.
	le.PutUint32(good[4:], 2)
	if h, err := attest.ParseHCL(good); err != nil || !bytes.Equal(h.Report, report) || !bytes.Equal(h.Runtime, runtime) {
		t.Errorf("version 2: %v", err)
	}
	// Without the padding, as some services have it.
	if _, err := attest.ParseHCL(good[:len(good)-200]); err != nil {
		t.Errorf("without padding: %v", err)
	}
	// An envelope may be as short as one without runtime data, and 64 KiB long.
	for n, b := range map[int][]byte{
		32 + 1184 + 20: hclReport(report, nil)[:32+1184+20],
		64 << 10:       append(bytes.Clone(good), make([]byte, 64<<10-len(good))...),
	} {
		if h, err := attest.ParseHCL(b); err != nil || len(b) != n || !bytes.Equal(h.Report, report) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	data := 32 + 1184
	at := func(off int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint32(b[off:], v); return b }
	}
	for name, edit := range map[string]func([]byte) []byte{
		"empty":                    func([]byte) []byte { return nil },
		"header alone":             func(b []byte) []byte { return b[:data+19] },
		"magic":                    func(b []byte) []byte { b[3] = 'B'; return b },
		"version 0":                at(4, 0),
		"version 3":                at(4, 3),
		"size one more":            func(b []byte) []byte { le.PutUint32(b[8:], le.Uint32(b[8:])+1); return b },
		"request type":             at(12, 1),
		"status":                   at(16, 1),
		"reserved":                 at(28, 1),
		"data size below variable": at(data, 20),
		"data version":             at(data+4, 2),
		"report of another kind":   at(data+8, 4),
		"SHA-384":                  at(data+12, 2),
		"variable beyond the end":  at(data+16, 0xFFFFFFFF),
		"all sizes beyond the end": func(b []byte) []byte {
			le.PutUint32(b[8:], uint32(data+20+4000))
			le.PutUint32(b[data:], 4020)
			le.PutUint32(b[data+16:], 4000)
			return b
		},
		"bytes behind":    func(b []byte) []byte { b[len(b)-1] = 1; return b },
		"64 KiB and more": func(b []byte) []byte { return append(b, make([]byte, 64<<10+1-len(b))...) },
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := attest.ParseHCL(edit(bytes.Clone(good))); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// azureFiles are the real pieces of Azure evidence, with what their quotes are
// over.
var azureFiles = map[string]string{
	"trustee__evidence-v0.json":          hex.EncodeToString([]byte("challenge")),
	"trustee__evidence-v1.json":          hex.EncodeToString([]byte("challenge")),
	"trustee__evidence-v2.json":          "982f5c6e45df0ed3f10b6f60b02f0c8390e281300f3805e2279c16168cd6ae9aa398f647caa2338748cd0fd9f5f819ef",
	"attestation-rs__live-evidence.json": hex.EncodeToString([]byte("attestation-test-fixture")),
	"attestation-rs__evidence-v1.json":   hex.EncodeToString([]byte("challenge")),
}

// readAzureFile reads evidence, which one collection wraps in another object.
func readAzureFile(t *testing.T, name string) []byte {
	t.Helper()
	data := readFile(t, filepath.Join(dataDir(t), "azure-vtpm", name))
	var wrapped struct {
		Evidence json.RawMessage `json:"evidence"`
	}
	if json.Unmarshal(data, &wrapped) == nil && wrapped.Evidence != nil {
		return wrapped.Evidence
	}
	return data
}

// TestRealAzureEvidence: every real chain of Azure, from AMD's root to the quote.
func TestRealAzureEvidence(t *testing.T) {
	for name, nonce := range azureFiles {
		t.Run(name, func(t *testing.T) {
			n, err := hex.DecodeString(nonce)
			if err != nil {
				t.Fatal(err)
			}
			ev, err := attest.ParseAzure(readAzureFile(t, name), n)
			if err != nil {
				t.Fatal(err)
			}
			o := attest.Options{Policy: azurePolicy(), Now: attesttest.Now}
			v, err := attest.Verify(t.Context(), ev, azureGolden(t, ev.Report, "snp"), o)
			if err != nil {
				t.Fatal(err)
			}
			want(t, v)
			// Evidence survives being saved.
			text, err := json.Marshal(ev)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := evidence.Parse(text); err != nil {
				t.Error(err)
			}
			// Under the default policy this evidence shows too little.
			if v, err = attest.Verify(t.Context(), ev, azureGolden(t, ev.Report, "snp"), attest.Options{Now: attesttest.Now}); err != nil || v.Trusted() {
				t.Errorf("default policy: %v, %v", v.Result, err)
			}
			// An old quote of the same machine is over another nonce.
			ev.Nonce = []byte("another challenge")
			if v, err = attest.Verify(t.Context(), ev, azureGolden(t, ev.Report, "snp"), o); err != nil {
				t.Fatal(err)
			}
			want(t, v, is(attest.CheckQuoteNonce, attest.ReasonQuoteNonce))
		})
	}
}

func TestAzureEvidenceMalformed(t *testing.T) {
	good := readAzureFile(t, "trustee__evidence-v1.json")
	replace := func(old, new string) []byte { return bytes.Replace(good, []byte(old), []byte(new), 1) }
	for name, data := range map[string][]byte{
		"version 3":      replace(`"version": 1`, `"version": 3`),
		"unknown member": replace(`"version": 1`, `"version": 1, "x": 1`),
		"empty":          nil,
		"no JSON":        []byte("evidence"),
		"VCEK missing":   replace(`"vcek"`, `"user-data"`),
		"HCL cut short":  replace(`"hcl_report": "SENMQQEA`, `"hcl_report": "SENMQQEB`),
		"PCR no hex":     replace(`"e15c4479`, `"x15c4479`),
	} {
		t.Run(name, func(t *testing.T) {
			if bytes.Equal(data, good) {
				t.Fatal("nothing was changed")
			}
			if _, err := attest.ParseAzure(data, []byte("challenge")); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// signPSS is the AK's signature in another scheme.
func signPSS(t *testing.T, message []byte) []byte {
	t.Helper()
	digest := sha256.Sum256(message)
	sig, err := rsa.SignPSS(rand.Reader, attesttest.RSAKey(2), crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	return tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgRSAPSS, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSAPSS, &tpm2.TPMSSignatureRSA{
		Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: sig},
	})})
}

func TestQuoteByRSAPSS(t *testing.T) {
	m := genoa()
	rsaParms(&m.TPM.AK).Scheme = tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSAPSS, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSAPSS, &tpm2.TPMSSigSchemeRSAPSS{HashAlg: tpm2.TPMAlgSHA256})}
	m.EditEvidence = func(ev *evidence.Evidence) { ev.QuoteSignature = signPSS(t, ev.Quote) }
	want(t, judge(t, m))
	m.EditEvidence = func(ev *evidence.Evidence) {
		ev.QuoteSignature = signPSS(t, ev.Quote)
		ev.QuoteSignature[20] ^= 1
	}
	want(t, judge(t, m), is(attest.CheckQuoteSignature, attest.ReasonQuoteSignature))
}

// numbers is bytes as version 0 of Azure evidence has them.
func numbers(b []byte) string {
	list := make([]string, len(b))
	for i, c := range b {
		list[i] = strconv.Itoa(int(c))
	}
	return "[" + strings.Join(list, ",") + "]"
}

// What a piece of Azure evidence holds is either wholly readable or refused, also
// where it is of no further use.
func TestAzureEvidenceRefused(t *testing.T) {
	m, _ := azure(nil)
	pemOf := func(n int) string {
		der := m.LeafCertificate().Raw
		return strings.Repeat(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), n)
	}
	vcek := pemOf(1) + strings.Repeat("\n", 2-(len(pemOf(1))+2)%3) // three bytes each are four digits
	hcl := hclReport(m.SignedReport([64]byte{}), nil)
	version0 := func(vcek, pcr, message string) string {
		v, err := json.Marshal(vcek)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf(`{"report":%s,"vcek":%s,"quote":{"message":%s,"pcrs":[%s],"signature":[7]}}`, numbers(hcl), v, message, pcr)
	}
	url := base64.RawURLEncoding.EncodeToString
	version1 := func(vcek, more string) string {
		return fmt.Sprintf(`{"version":1,"hcl_report":%q,"vcek":%q,"tpm_quote":{"message":"00ff","pcrs":["00ff"],"signature":"07"}%s}`, url(hcl), vcek, more)
	}
	for name, text := range map[string]string{
		"version 0":             version0(vcek, "[0,255]", "[0,255]"),
		"version 1":             version1(url([]byte(vcek)), ""),
		"version 1, unused":     version1(url([]byte(vcek)), `,"report":[]`),
		"base64 with its signs": version1(base64.URLEncoding.EncodeToString([]byte(vcek+"\n")), ""),
	} {
		ev, err := attest.ParseAzure([]byte(text), []byte("challenge"))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if b := []byte{0, 255}; len(ev.PCRs) != 1 || !bytes.Equal(ev.PCRs[0].Value, b) || !bytes.Equal(ev.Quote, b) {
			t.Errorf("%s: %+v", name, ev)
		}
	}
	for _, c := range []struct{ name, text, says string }{
		{"byte 256", version0(vcek, "[256]", "[0]"), "found 256, expected a byte"},
		{"byte -1", version0(vcek, "[-1]", "[0]"), "found -1, expected a byte"},
		{"byte 1.5", version0(vcek, "[1.5]", "[0]"), "found 1.5, expected a byte"},
		{"list of text", version0(vcek, `["x"]`, "[0]"), "invalid number"},
		{"base64 for a list", version0(vcek, `"AP8="`, "[0]"), "cannot unmarshal"},
		{"message of 300", version0(vcek, "[0]", "[300]"), "found 300, expected a byte"},
		{"no certificate", version0("", "[0]", "[0]"), "azure evidence: vcek: "},
		{"two certificates", version0(pemOf(2), "[0]", "[0]"), "found 2 certificates, expected one"},
		{"a CRL", version0(string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: m.Signer.CRL(nil, nil)})), "[0]", "[0]"), "found 0 certificates, expected one"},
		{"no PEM", version0(vcek+"x", "[0]", "[0]"), "no PEM at the end"},
		{"VCEK no text", strings.Replace(version0(vcek, "[0]", "[0]"), `"vcek":`, `"vcek":5,"x":`, 1), `"x"`},
		{"VCEK a number", `{"vcek":5}`, "cannot unmarshal"},
		{"base64 and more", version1(url([]byte(vcek))+"!", ""), "vcek: illegal base64"},
		{"unused bytes", version1(url([]byte(vcek)), `,"report":[256]`), "found 256, expected a byte"},
		{"unknown", version1(url([]byte(vcek)), `,"unknown":1`), `"unknown"`},
		{"quote of version 1 in version 0", strings.Replace(version1(url([]byte(vcek)), ""), `"version":1,`, "", 1), "azure evidence: quote: "},
	} {
		if _, err := attest.ParseAzure([]byte(c.text), []byte("challenge")); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error is %v, expected %q", c.name, err, c.says)
		}
	}
}
