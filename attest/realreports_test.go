package attest_test

import (
	"crypto/x509"
	"encoding/json"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest"
)

// A realReport is a report found in a public repository, with what an
// independent reading of it says (index.json beside the data).
type realReport struct {
	File        string `json:"file"`
	Kind        string `json:"kind"`
	Endorsement []struct {
		File    string   `json:"file"`
		Product string   `json:"product"`
		Chain   []string `json:"chain"`
	} `json:"endorsement"`
	Facts json.RawMessage `json:"facts"`

	facts struct {
		Product     string `json:"product"`
		Version     uint32 `json:"version"`
		VMPL        uint32 `json:"vmpl"`
		SigningKey  string `json:"signing_key"`
		Policy      string `json:"policy"`
		ReportedTCB struct {
			FMC   *uint8
			BL    uint8
			TEE   uint8
			SNP   uint8
			Ucode uint8
		} `json:"reported_tcb"`
	}
	raw   []byte
	certs []*x509.Certificate
}

// at is a time at which the certificates are valid: a day after the leaf's start.
func (r realReport) at() time.Time { return r.certs[0].NotBefore.AddDate(0, 0, 1) }

// dataDir is the folder of real data, or skips the test.
func dataDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("EVTPM_TESTDATA")
	if dir == "" {
		t.Skip("EVTPM_TESTDATA is not set: no real reports")
	}
	return filepath.Join(dir, "realdata")
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// realReports reads the collection.
func realReports(t testing.TB) []realReport {
	t.Helper()
	dir := dataDir(t)
	var index struct {
		Entries []realReport `json:"entries"`
	}
	if err := json.Unmarshal(readFile(t, filepath.Join(dir, "index.json")), &index); err != nil {
		t.Fatal(err)
	}
	var out []realReport
	for _, r := range index.Entries {
		if r.Kind != "snp-report" || r.File == "" {
			continue
		}
		if err := json.Unmarshal(r.Facts, &r.facts); err != nil {
			t.Fatal(err)
		}
		r.raw = readFile(t, filepath.Join(dir, r.File))
		for _, e := range r.Endorsement {
			for _, name := range append([]string{e.File}, e.Chain...) {
				c, err := x509.ParseCertificate(readFile(t, filepath.Join(dir, name)))
				if err != nil {
					t.Fatal(err)
				}
				r.certs = append(r.certs, c)
			}
		}
		out = append(out, r)
	}
	return out
}

func verifyReal(t testing.TB, r realReport, raw []byte, p *attest.Policy) *attest.Verdict {
	t.Helper()
	o := attest.Options{Policy: p, Certificates: r.certs, Now: time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)}
	if len(r.certs) > 0 {
		o.Now = r.at()
	}
	v, err := attest.VerifyReport(t.Context(), raw, nil, attest.Expect{}, o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestRealReports: every report that comes with a certificate verifies under the
// permissive policy, with the product, version and levels that an independent
// reading gives; under the default policy only those that meet the floors do.
func TestRealReports(t *testing.T) {
	reports := realReports(t)
	var accepted, withCerts, meetFloors int
	for _, r := range reports {
		v := verifyReal(t, r, r.raw, attest.PermissivePolicy())
		if len(r.certs) == 0 {
			if v.Trusted() || v.Class() != attest.ClassCertificates {
				t.Errorf("%s has no certificate: %s, class %d", r.File, v.Result, v.Class())
			}
			continue
		}
		withCerts++
		strict := verifyReal(t, r, r.raw, attest.DefaultPolicy())
		if strict.Trusted() {
			meetFloors++
		}
		t.Logf("%s: permissive %s, default %s", r.File, v.Result, strict.Result)
		if !v.Trusted() || v.Platform != attest.PlatformSNP {
			t.Errorf("%s: %s on platform %q:\n%s", r.File, v.Result, v.Platform, reasons(v))
			continue
		}
		accepted++
		checkFacts(t, r)
	}
	t.Logf("reports: %d, with certificate: %d, accepted: %d, meeting the default policy: %d", len(reports), withCerts, accepted, meetFloors)
	if withCerts < 13 {
		t.Errorf("found %d reports with a certificate, expected at least 13", withCerts)
	}
	if meetFloors != 2 {
		t.Errorf("%d reports meet the default policy, expected the 2 of Bergamo and Siena", meetFloors)
	}
}

func checkFacts(t *testing.T, r realReport) {
	t.Helper()
	p, err := attest.ParseReport(r.raw)
	if err != nil {
		t.Fatal(err)
	}
	if p.Version != r.facts.Version || p.VMPL != r.facts.VMPL {
		t.Errorf("%s: version %d, VMPL %d; expected %d, %d", r.File, p.Version, p.VMPL, r.facts.Version, r.facts.VMPL)
	}
	if p.CPUID == nil {
		return
	}
	product, _ := p.CPUID.Product()
	if product.Name != r.facts.Product {
		t.Errorf("%s: product %q, expected %q", r.File, product.Name, r.facts.Product)
	}
	tcb, err := product.TCB.Split(p.ReportedTCB)
	want := r.facts.ReportedTCB
	if err != nil || tcb.Bootloader != want.BL || tcb.TEE != want.TEE || tcb.SNP != want.SNP || tcb.Microcode != want.Ucode {
		t.Errorf("%s: reported TCB %s (%v), expected %+v", r.File, tcb, err, want)
	}
}

// TestRealReportsEveryBit: no single bit of the signed part can change.
func TestRealReportsEveryBit(t *testing.T) {
	policy := attest.PermissivePolicy()
	var flips, accepted atomic.Int64
	t.Run("reports", func(t *testing.T) {
		for _, r := range realReports(t) {
			if len(r.certs) == 0 {
				continue
			}
			t.Run(filepath.Base(r.File), func(t *testing.T) {
				t.Parallel()
				o := attest.Options{Policy: policy, Certificates: r.signers(t), Now: r.at(), Cache: new(attest.ChainCache)}
				for bit := range 0x2A0 * 8 {
					if testing.Short() && bit%97 != 0 {
						continue
					}
					raw := append([]byte(nil), r.raw...)
					raw[bit/8] ^= 1 << (bit % 8)
					v, err := attest.VerifyReport(t.Context(), raw, nil, attest.Expect{}, o)
					if err != nil {
						t.Fatal(err)
					}
					if v.Trusted() {
						accepted.Add(1)
						t.Errorf("accepted with bit %d of byte %#x flipped", bit%8, bit/8)
					}
					flips.Add(1)
				}
			})
		}
	})
	t.Logf("bits flipped: %d, accepted: %d", flips.Load(), accepted.Load())
}

// signers are the certificates without leafs that did not sign the report: each
// one more costs a verification.
func (r realReport) signers(t *testing.T) []*x509.Certificate {
	t.Helper()
	var out []*x509.Certificate
	for _, c := range r.certs {
		if attest.CertificateRole(c) != "leaf" {
			out = append(out, c)
			continue
		}
		v, err := attest.VerifyReport(t.Context(), r.raw, nil, attest.Expect{}, attest.Options{Policy: attest.PermissivePolicy(), Certificates: []*x509.Certificate{c}, Now: r.at()})
		if err != nil {
			t.Fatal(err)
		}
		if v.Trusted() {
			out = append(out, c)
		}
	}
	return out
}
