package attest_test

import (
	"crypto/x509"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
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

	facts realFacts
	raw   []byte
	certs []*x509.Certificate
}

// realTCB is a TCB version of index.json.
type realTCB struct {
	FMC   *uint8
	BL    uint8
	TEE   uint8
	SNP   uint8
	Ucode uint8
}

// realFacts are what index.json says of a report.
type realFacts struct {
	Product     string  `json:"product"`
	Version     uint32  `json:"version"`
	CPUID       string  `json:"cpuid_fms"`
	VMPL        uint32  `json:"vmpl"`
	SigningKey  string  `json:"signing_key"`
	SMTAllowed  bool    `json:"smt_allowed"`
	MigrateMA   bool    `json:"migrate_ma"`
	Debug       bool    `json:"debug"`
	SMTEnabled  bool    `json:"smt_en"`
	AliasCheck  bool    `json:"alias_check_complete"`
	HostData    string  `json:"host_data"`
	ChipIDZero  bool    `json:"chip_id_zero"`
	Reported    realTCB `json:"reported_tcb"`
	Current     realTCB `json:"current_tcb"`
	Committed   realTCB `json:"committed_tcb"`
	Launch      realTCB `json:"launch_tcb"`
	CurrentFW   string  `json:"current_fw"`
	CommittedFW string  `json:"committed_fw"`
}

// levels are a TCB version's, in an order.
func (t realTCB) levels() [5]uint8 {
	var fmc uint8
	if t.FMC != nil {
		fmc = *t.FMC
	}
	return [5]uint8{fmc, t.BL, t.TEE, t.SNP, t.Ucode}
}

// meetDefault says, from index.json's facts and the table of floors alone,
// whether the default policy accepts a report.
func (f realFacts) meetDefault() bool {
	if f.Version < 3 || f.VMPL != 0 || f.Debug || f.MigrateMA || !f.AliasCheck || f.SMTEnabled && !f.SMTAllowed ||
		strings.Trim(f.HostData, "0") != "" || f.ChipIDZero && f.SigningKey == "VCEK" ||
		f.CurrentFW != f.CommittedFW || f.Current.levels() != f.Committed.levels() {
		return false
	}
	for _, row := range attest.DefaultFloors().Floors {
		if strings.ReplaceAll(row.CPUID, "/", "") != f.CPUID {
			continue
		}
		floor := realTCB{row.TCB.FMC, row.TCB.Bootloader, row.TCB.TEE, row.TCB.SNP, row.TCB.Microcode}.levels()
		for _, t := range []realTCB{f.Reported, f.Current, f.Committed, f.Launch} {
			for i, level := range t.levels() {
				if level < floor[i] {
					return false
				}
			}
		}
		return true
	}
	return false
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
		if strict.Trusted() != r.facts.meetDefault() {
			t.Errorf("%s: default policy: %s, expected %t:\n%s", r.File, strict.Result, r.facts.meetDefault(), reasons(strict))
		}
		t.Logf("%s: permissive %s, default %s", r.File, v.Result, strict.Result)
		if !v.Trusted() || v.Platform != attest.PlatformSNP {
			t.Errorf("%s: %s on platform %q:\n%s", r.File, v.Result, v.Platform, reasons(v))
			continue
		}
		accepted++
		if v.Product != r.facts.Product {
			t.Errorf("%s: product %q, expected %q", r.File, v.Product, r.facts.Product)
		}
		checkFacts(t, r)
	}
	t.Logf("reports: %d, with certificate: %d, accepted: %d, meeting the default policy: %d", len(reports), withCerts, accepted, meetFloors)
	if withCerts < 13 {
		t.Errorf("found %d reports with a certificate, expected at least 13", withCerts)
	}
	if meetFloors < 2 {
		t.Errorf("%d reports meet the default policy, expected at least the 2 of Bergamo and Siena", meetFloors)
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
	// Before version 3 only the certificate names the product: version 2 was
	// written by Milan's and Genoa's firmware, whose layout is the same.
	var product attest.Product
	if p.CPUID != nil {
		product, _ = p.CPUID.Product()
	}
	for _, x := range []struct {
		name string
		raw  attest.RawTCB
		want realTCB
	}{
		{"reported", p.ReportedTCB, r.facts.Reported}, {"current", p.CurrentTCB, r.facts.Current},
		{"committed", p.CommittedTCB, r.facts.Committed}, {"launch", p.LaunchTCB, r.facts.Launch},
	} {
		tcb, err := product.TCB.Split(x.raw)
		got := realTCB{tcb.FMC, tcb.Bootloader, tcb.TEE, tcb.SNP, tcb.Microcode}
		if err != nil || got.levels() != x.want.levels() {
			t.Errorf("%s: %s TCB is %s (%v), expected %+v", r.File, x.name, tcb, err, x.want)
		}
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
					if testing.Short() && bit%509 != 0 {
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
