package main

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
)

// A bench is a folder with a machine's evidence, golden values, report and
// certificates, and a state directory whose simulated root is the machine's.
type bench struct {
	t       *testing.T
	dir     string
	machine *attesttest.Machine
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), machine: attesttest.NewMachine(attesttest.Genoa)}
	m := b.machine
	b.json("evidence.json", m.Evidence())
	b.json("golden.json", m.Golden())
	report := m.SignedReport([64]byte{1})
	b.write("report.bin", report)
	b.write("report.hex", []byte(hex.EncodeToString(report)+"\n"))
	b.write("report-table.bin", append(bytes.Clone(report), m.CertTable()...))
	b.write("table.bin", m.CertTable())
	b.write("vcek.der", m.LeafCertificate().Raw)
	b.write("ask.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.Signer.ASK.Raw}))
	ark := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.Signer.ARK.Raw})
	b.write("ark.pem", ark)
	b.write("state/sim/Genoa/ark.pem", ark)
	b.write("crl.der", m.Signer.CRL(nil, nil))
	return b
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) write(name string, data []byte) {
	b.t.Helper()
	if err := os.MkdirAll(filepath.Dir(b.path(name)), 0o700); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(b.path(name), data, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) json(name string, v any) {
	b.t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		b.t.Fatal(err)
	}
	b.write(name, text)
}

// run runs a command line in which words that name files of the bench stand for
// their paths.
func (b *bench) run(line string) (stdout, stderr string, code int) {
	b.t.Helper()
	return b.runWith(nil, line)
}

func (b *bench) runWith(stdin []byte, line string) (stdout, stderr string, code int) {
	b.t.Helper()
	args := []string{"evtpm"}
	for _, w := range strings.Fields(line) {
		if _, err := os.Stat(b.path(w)); err == nil && !strings.HasPrefix(w, "-") {
			w = b.path(w)
		}
		args = append(args, w)
	}
	var out, errs bytes.Buffer
	u := &ui{in: bytes.NewReader(stdin), out: &out, err: &errs, getenv: func(k string) string {
		if k == "EVTPM_STATE" {
			return b.path("state")
		}
		return ""
	}}
	app := newApp(u, nil)
	err := app.RunContext(b.t.Context(), flagsFirst(app, args))
	var silent errSilent
	if err != nil && !errors.As(err, &silent) {
		u.fail(err)
	}
	return out.String(), errs.String(), exitCode(err)
}

const at = "--at 2026-11-24T12:00:00Z"

func TestJudgingCommands(t *testing.T) {
	b := newBench(t)
	b.write("policy.yaml", bytes.Replace(attest.DefaultPolicyYAML(), []byte("[Milan, Genoa, Bergamo-Siena, Turin]"), []byte("[Milan]"), 1))
	b.write("odd.yaml", []byte("version: 1\nnosuch: 1\n"))
	b.write("garbage", []byte("garbage"))
	wrong := b.machine.Golden()
	wrong.LaunchDigests[0][0] ^= 1
	b.json("wrong.json", wrong)
	digest := attesttest.LaunchDigest.String()
	data := "01" + strings.Repeat("00", 63)
	chip := hex.EncodeToString(b.machine.ChipID[:])
	certs := "--vek vcek.der --ca ask.pem --ca ark.pem"
	for _, c := range []struct {
		line   string
		code   int
		stderr string // a part of it
	}{
		{"verify evidence.json --golden golden.json --trust-sim " + at, 0, "verdict: trusted (SIMULATED)\n"},
		{"verify evidence.json --golden golden.json " + at, 2, "ark-untrusted"},
		{"verify evidence.json --golden wrong.json --trust-sim " + at, 6, "verdict: refused (SIMULATED): measurement-differs\n"},
		{"verify evidence.json --golden golden.json --trust-sim --at 2036-01-01T00:00:00Z", 2, "certificate-expired"},
		{"verify evidence.json --golden golden.json --trust-sim --chip-id " + chip + " " + at, 0, "trusted"},
		{"verify evidence.json --golden golden.json --trust-sim --chip-id 01" + chip[2:] + " " + at, 5, "chip-not-launch-host"},
		{"verify evidence.json --golden golden.json --trust-sim --policy policy.yaml " + at, 5, "product-not-allowed"},
		{"verify evidence.json --golden golden.json --trust-sim --policy odd.yaml " + at, 1, "nosuch"},
		{"verify evidence.json --golden golden.json --trust-sim --policy none.yaml " + at, 1, "none.yaml"},
		{"verify evidence.json --trust-sim " + at, 1, "--golden is missing"},
		{"verify --golden golden.json " + at, 1, "EVIDENCE"},
		{"verify garbage --golden golden.json " + at, 1, "garbage"},
		{"verify evidence.json --golden evidence.json " + at, 1, "golden"},
		{"verify evidence.json --golden golden.json --at yesterday", 1, "--at"},
		{"verify evidence.json --golden golden.json --chip-id 0102", 1, "--chip-id"},
		{"verify evidence.json --golden golden.json -o yaml", 1, "--output"},
		{"verify nosuch.json --golden golden.json", 1, "nosuch.json"},

		{"report verify report.bin " + certs + " --trust-sim " + at, 0, "verdict: trusted (SIMULATED)\n"},
		{"report verify report.hex " + certs + " --trust-sim " + at, 0, "trusted"},
		{"report verify report-table.bin --trust-sim " + at, 0, "trusted"},
		{"report verify report.bin --cert-table table.bin --trust-sim " + at, 0, "trusted"},
		{"report verify report-table.bin --cert-table table.bin --trust-sim " + at, 1, "--cert-table"},
		{"report verify report.bin --trust-sim " + at, 3, "certificates-unavailable"},
		{"report verify report-table.bin " + at, 2, "ark-untrusted"},
		{"report verify report-table.bin --trust-sim --policy permissive " + at, 0, "trusted"},
		{"report verify report-table.bin --trust-sim --expect-measurement " + digest + " " + at, 0, "trusted"},
		{"report verify report-table.bin --trust-sim --expect-measurement " + digest[:95] + "0 " + at, 6, "measurement-differs"},
		{"report verify report-table.bin --trust-sim --expect-report-data " + data + " " + at, 0, "trusted"},
		{"report verify report-table.bin --trust-sim --expect-report-data 02" + data[2:] + " " + at, 7, "report-data-differs"},
		{"report verify report-table.bin --trust-sim --expect-report-data " + strings.Repeat("00", 64) + " " + at, 1, "zeros"},
		{"report verify report-table.bin --trust-sim --expect-report-data 01 " + at, 1, "--expect-report-data"},
		{"report verify report-table.bin --trust-sim --expect-measurement 01 " + at, 1, "--expect-measurement"},
		{"report verify garbage " + at, 2, "garbage"},
		{"report verify report.bin --vek garbage " + at, 1, "--vek"},
		{"report verify report.bin --crl garbage " + at, 1, "--crl"},
		{"report verify report.bin --bundle nosuch.pem " + at, 1, "--bundle"},
		{"report verify", 1, "FILE"},
		{"report show report.bin", 0, ""},
		{"report show garbage", 2, "neither hexadecimal nor base64"},

		{"policy check policy.yaml", 0, "in order"},
		{"policy check odd.yaml", 1, "nosuch"},
		{"policy check nosuch.yaml", 1, "nosuch.yaml"},
		{"policy show default", 0, ""},
		{"policy default", 0, ""},
		{"policy default x", 1, "x"},

		{"certs show vcek.der ask.pem crl.der --cert-table table.bin", 0, ""},
		{"certs show garbage", 1, "garbage"},
		{"certs show", 1, "no certificate"},
		{"certs fetch", 1, "neither"},
		{"certs fetch --product Rome", 1, "Rome"},
		{"certs fetch garbage", 1, "garbage"},
		{"certs import ark.pem", 1, "nothing to keep"},
		{"certs import", 1, "no certificate"},
		{"evidence convert --from odd --nonce 01 evidence.json", 1, "--from"},
		{"evidence convert --to odd evidence.json", 1, "--to"},
		{"evidence convert --from gotpm evidence.json", 1, "--nonce"},
		{"evidence convert --nonce 01 evidence.json", 1, "--nonce"},
	} {
		stdout, stderr, code := b.run(c.line)
		if code != c.code || !strings.Contains(stderr, c.stderr) {
			t.Errorf("evtpm %s: exit code %d, expected %d; stderr, expected %q:\n%s", c.line, code, c.code, c.stderr, stderr)
		}
		if strings.Contains(stdout, "verdict") {
			t.Errorf("evtpm %s: text for people on standard output", c.line)
		}
		if quiet, errs, code := b.run("-q " + c.line); code != c.code || errs != "" || quiet != stdout {
			t.Errorf("evtpm -q %s: exit code %d, stderr %q", c.line, code, errs)
		}
	}
}

func TestJudgingWithoutASimulatedPlatform(t *testing.T) {
	b := newBench(t)
	if err := os.RemoveAll(b.path("state")); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := b.run("verify evidence.json --golden golden.json --trust-sim " + at); code != 1 || !strings.Contains(stderr, "--trust-sim") {
		t.Errorf("exit code %d, stderr %s", code, stderr)
	}
}

func TestJudgementJSON(t *testing.T) {
	b := newBench(t)
	type doc struct {
		Schema  string         `json:"schema"`
		Verdict attest.Verdict `json:"verdict"`
		Claims  map[string]any `json:"claims"`
	}
	read := func(line string, code int) doc {
		t.Helper()
		stdout, stderr, got := b.run(line)
		if got != code {
			t.Errorf("evtpm %s: exit code %d\n%s", line, got, stderr)
		}
		var d doc
		if err := json.Unmarshal([]byte(stdout), &d); err != nil {
			t.Fatalf("evtpm %s: %v\n%s", line, err, stdout)
		}
		return d
	}
	d := read("verify evidence.json --golden golden.json --trust-sim -o json "+at, 0)
	if d.Schema != "evtpm.judgement/v1" || d.Verdict.Result != "trusted" || d.Verdict.Platform != "sim" || d.Verdict.Live || d.Claims["measurement"] != attesttest.LaunchDigest.String() {
		t.Errorf("%+v", d)
	}
	d = read("verify evidence.json --golden golden.json -o json "+at, 2)
	if d.Verdict.Result != "refused" || d.Verdict.Platform != "" {
		t.Errorf("%+v", d.Verdict)
	}
	d = read("report verify report-table.bin --trust-sim -o json "+at, 0)
	if d.Verdict.Result != "trusted" || d.Claims["reported_tcb_snp"] != 27.0 || d.Claims["init_data"] != strings.Repeat("00", 32) {
		t.Errorf("%+v", d)
	}
	stdout, _, _ := b.run("report show report.hex -o json")
	if err := json.Unmarshal([]byte(stdout), &d); err != nil || d.Schema != "evtpm.report/v1" || d.Claims["vmpl"] != 0.0 {
		t.Errorf("%v\n%s", err, stdout)
	}
	stdout, _, code := b.run("certs show vcek.der crl.der -o json")
	var certs struct {
		Certificates []certInfo `json:"certificates"`
	}
	if err := json.Unmarshal([]byte(stdout), &certs); err != nil || code != 0 || len(certs.Certificates) != 2 ||
		certs.Certificates[0].Leaf != "vcek" || certs.Certificates[0].TCB.SNP != 27 || certs.Certificates[1].Kind != "crl" {
		t.Errorf("%v\n%s", err, stdout)
	}
}

func TestStandardInput(t *testing.T) {
	b := newBench(t)
	text, err := os.ReadFile(b.path("evidence.json"))
	if err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := b.runWith(text, "verify - --golden golden.json --trust-sim "+at); code != 0 {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
	report, err := os.ReadFile(b.path("report.hex"))
	if err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := b.runWith(report, "report verify - --cert-table table.bin --trust-sim "+at); code != 0 {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
}

func TestRegistryOfVerify(t *testing.T) {
	b := newBench(t)
	line := "verify evidence.json --golden golden.json --trust-sim --registry " + b.path("eks") + " " + at
	for range 2 {
		if _, stderr, code := b.run(line); code != 0 {
			t.Errorf("exit code %d\n%s", code, stderr)
		}
	}
	other := attesttest.NewMachine(attesttest.Genoa)
	other.EditReport = func(r attesttest.Report) { r[attesttest.OffReportID] ^= 1 }
	b.json("evidence.json", other.Evidence())
	if _, stderr, code := b.run(line); code != 7 || !strings.Contains(stderr, "ek-reused") {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
}

func TestBatch(t *testing.T) {
	b := newBench(t)
	m := b.machine
	b.json("many/a.json", m.Evidence())
	b.write("many/b.bin", append(bytes.Clone(m.SignedReport([64]byte{1})), m.CertTable()...))
	line := "verify --batch many --golden golden.json --trust-sim " + at
	stdout, stderr, code := b.run(line)
	if code != 0 || strings.Count(stdout, "trusted (SIMULATED)") != 2 || !strings.Contains(stderr, "2 files, 2 trusted, 0 refused, ") || !strings.Contains(stderr, " a second") {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
	if strings.Count(stdout, "b.bin\ttrusted (SIMULATED); a report alone, no vTPM\n") != 1 || strings.Count(stdout, "alone") != 1 {
		t.Errorf("a bare report does not look like one:\n%s", stdout)
	}
	b.json("many/aa.json", m.Evidence())
	for _, warning := range []string{"the AK is in the vTPM", "the golden PCRs were not judged"} {
		if _, stderr, _ := b.run(line); strings.Count(stderr, warning) != 1 {
			t.Errorf("%q is not there once:\n%s", warning, stderr)
		}
	}
	if err := os.Remove(b.path("many/aa.json")); err != nil {
		t.Fatal(err)
	}
	// The lowest class of a failure is the batch's.
	bad := attesttest.NewMachine(attesttest.Genoa)
	bad.EditReport = func(r attesttest.Report) { r.PutU32(attesttest.OffVMPL, 2) }
	b.json("many/c.json", bad.Evidence())
	if _, _, code := b.run(line); code != 7 {
		t.Errorf("exit code %d, expected 7", code)
	}
	bad.EditReport = func(r attesttest.Report) { r[attesttest.OffMeasurement] ^= 1 }
	b.json("many/d.json", bad.Evidence())
	if _, _, code := b.run(line); code != 6 {
		t.Errorf("exit code %d, expected 6", code)
	}
	b.write("many/e.txt", []byte("no report"))
	stdout, _, code = b.run(line + " -o json")
	var doc batchResult
	if err := json.Unmarshal([]byte(stdout), &doc); err != nil || code != 1 || doc.Files != 5 || doc.Trusted != 2 || len(doc.Results) != 5 || doc.Results[4].Error == "" {
		t.Errorf("exit code %d: %v\n%s", code, err, stdout)
	}
	// Evidence needs golden values; a folder must have files.
	if _, _, code := b.run("verify --batch many --trust-sim " + at); code != 1 {
		t.Errorf("without golden values: exit code %d", code)
	}
	if err := os.Mkdir(b.path("empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, code := b.run("verify --batch empty --golden golden.json " + at); code != 1 {
		t.Errorf("an empty folder: exit code %d", code)
	}
	if _, _, code := b.run("verify --batch many evidence.json --golden golden.json " + at); code != 1 {
		t.Errorf("a batch and a file: exit code %d", code)
	}
}

func TestCertsCommands(t *testing.T) {
	b := newBench(t)
	// What is imported serves without the network.
	if _, stderr, code := b.run("certs import vcek.der crl.der --cert-table table.bin"); code != 0 || !strings.Contains(stderr, "kept SEV-VCEK of chip a0a1") {
		t.Fatalf("exit code %d\n%s", code, stderr)
	}
	if _, stderr, code := b.run("report verify report.bin --ca ask.pem --ca ark.pem --trust-sim " + at); code != 0 {
		t.Errorf("with the cache: exit code %d\n%s", code, stderr)
	}
	if stdout, _, code := b.run("certs show"); code != 0 || strings.Count(stdout, "leaf: SEV-VCEK") != 1 || !strings.Contains(stdout, "crl of ARK-Genoa") {
		t.Errorf("the cache: exit code %d\n%s", code, stdout)
	}
	b.write("old.der", b.machine.Signer.CRL(nil, func(l *x509.RevocationList) { l.ThisUpdate = l.ThisUpdate.AddDate(0, 0, -1) }))
	if _, stderr, code := b.run("certs import old.der"); code != 1 || !strings.Contains(stderr, "not kept: CRL of ARK-Genoa (the cache has a newer CRL)") {
		t.Errorf("an older CRL: exit code %d\n%s", code, stderr)
	}
	stdout, stderr, code := b.run("certs bundle ask.pem ark.pem")
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, stderr)
	}
	bundle, err := attest.ParseBundle([]byte(stdout))
	if err != nil || len(bundle.Certificates) != 9+3 || len(bundle.CRLs) != 1 {
		t.Fatalf("%v, %+v", err, bundle)
	}
	b.write("bundle.pem", []byte(stdout))
	if _, stderr, code := b.run("report verify report.bin --bundle bundle.pem --trust-sim " + at); code != 0 {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
	if _, stderr, code := b.run("certs bundle -o " + b.path("out.pem")); code != 0 || !strings.Contains(stderr, "CRLs") {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
	text, err := os.ReadFile(b.path("out.pem"))
	if err != nil || !bytes.Contains(text, []byte("X509 CRL")) {
		t.Error(err)
	}
	stdout, _, _ = b.run("certs show vcek.der ark.pem crl.der")
	for _, want := range []string{"leaf: SEV-VCEK", "product: Genoa", "tcb: bl 10, tee 0, snp 27, ucode 86", "root: ARK-Genoa", "crl of ARK-Genoa"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	if strings.Contains(stdout, "pinned") {
		t.Errorf("a root of our own is shown as AMD's\n%s", stdout)
	}
}

func TestEvidenceConvert(t *testing.T) {
	b := newBench(t)
	nonce := hex.EncodeToString(b.machine.Evidence().Nonce)
	stdout, stderr, code := b.run("evidence convert --to gotpm evidence.json")
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, stderr)
	}
	b.write("gotpm.bin", []byte(stdout))
	if _, stderr, code := b.run("evidence convert --from gotpm --nonce " + nonce + " gotpm.bin -o " + b.path("back.json")); code != 0 {
		t.Fatalf("exit code %d\n%s", code, stderr)
	}
	if _, stderr, code := b.run("verify back.json --golden golden.json --trust-sim " + at); code != 0 {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
	if _, _, code := b.run("evidence convert --from gotpm --nonce " + nonce + " evidence.json"); code != 1 {
		t.Errorf("JSON as gotpm: exit code %d", code)
	}
}

func TestVerdictForPeople(t *testing.T) {
	b := newBench(t)
	_, stderr, _ := b.run("verify evidence.json --golden golden.json --trust-sim " + at)
	for _, want := range []string{"ok   report-signature: SEV-VCEK\n", "-    ak-resident: only a live challenge can show this\n", "checks passed, 0 failed"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("no %q in\n%s", want, stderr)
		}
	}
	// What came from a guest cannot move the cursor, or look like a line of ours.
	m := b.machine
	ev := m.Evidence()
	ev.Binding = "svsm\x1b[2J\nverdict: trusted"
	b.json("evidence.json", ev)
	_, stderr, code := b.run("verify evidence.json --golden golden.json --trust-sim " + at)
	if code != 7 || strings.Contains(stderr, "\x1b") || strings.Contains(stderr, "\nverdict: trusted") {
		t.Errorf("exit code %d\n%q", code, stderr)
	}
	if !strings.HasSuffix(stderr, "verdict: refused (SIMULATED): binding-not-accepted\n") {
		t.Errorf("last line of\n%s", stderr)
	}
	// What could not be made is said once.
	ev = m.Evidence()
	ev.Report = ev.Report[:100]
	b.json("evidence.json", ev)
	_, stderr, code = b.run("verify evidence.json --golden golden.json --trust-sim " + at)
	if code != 2 || strings.Count(stderr, "not made, since") != 1 || !strings.HasSuffix(stderr, "verdict: refused: report-length\n") {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
}

func TestC12_FilesThatAnybodyCanWrite(t *testing.T) {
	b := newBench(t)
	b.write("policy.yaml", attest.DefaultPolicyYAML())
	line := "verify evidence.json --golden golden.json --policy policy.yaml --trust-sim " + at
	if _, stderr, code := b.run(line); code != 0 {
		t.Fatalf("exit code %d\n%s", code, stderr)
	}
	for _, name := range []string{"golden.json", "policy.yaml", "state/sim/Genoa/ark.pem", "state/sim/Genoa"} {
		info, err := os.Stat(b.path(name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(b.path(name), info.Mode()|0o002); err != nil {
			t.Fatal(err)
		}
		if _, stderr, code := b.run(line); code != 1 || !strings.Contains(stderr, "chmod o-w") {
			t.Errorf("%s: exit code %d\n%s", name, code, stderr)
		}
		if err := os.Chmod(b.path(name), info.Mode()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBatchOfReports: a bare report is no way round the golden values.
func TestBatchOfReports(t *testing.T) {
	b := newBench(t)
	for name, c := range map[string]struct {
		edit func(attesttest.Report)
		code int
	}{
		"good":      {func(attesttest.Report) {}, 0},
		"digest":    {func(r attesttest.Report) { r[attesttest.OffMeasurement] ^= 1 }, 6},
		"policy":    {func(r attesttest.Report) { r.PutU64(attesttest.OffPolicy, attesttest.GuestPolicy|1<<20) }, 5},
		"host data": {func(r attesttest.Report) { r[attesttest.OffHostData] ^= 1 }, 5},
		"ID block":  {func(r attesttest.Report) { r[attesttest.OffFamilyID] ^= 1 }, 5},
	} {
		m := attesttest.NewMachine(attesttest.Genoa)
		m.EditReport = c.edit
		b.write("many/a.bin", append(bytes.Clone(m.SignedReport([64]byte{1})), m.CertTable()...))
		// A registry is no obstacle, although the report has no EK.
		line := "verify --batch many --golden golden.json --trust-sim --registry " + b.path("eks") + " " + at
		if stdout, stderr, code := b.run(line); code != c.code {
			t.Errorf("%s: exit code %d, expected %d\n%s%s", name, code, c.code, stdout, stderr)
		}
	}
}

// TestBatchRegistry: launches of a batch are remembered, in the order of its files.
func TestBatchRegistry(t *testing.T) {
	b := newBench(t)
	for _, name := range []string{"many/a.json", "many/b.json", "many/c.json", "many/d.json"} {
		m := attesttest.NewMachine(attesttest.Genoa)
		m.EditReport = func(r attesttest.Report) { r[attesttest.OffReportID] = name[5] }
		b.json(name, m.Evidence())
	}
	line := "verify --batch many --golden golden.json --trust-sim --registry " + b.path("eks") + " " + at
	for range 2 {
		stdout, stderr, code := b.run(line)
		if code != 7 || strings.Count(stdout, "ek-reused") != 3 || !strings.Contains(stdout, "a.json\ttrusted") {
			t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
		}
	}
}

// TestBatchLinks: links are files, too; only folders are passed over.
func TestBatchLinks(t *testing.T) {
	b := newBench(t)
	b.json("many/a.json", b.machine.Evidence())
	b.write("many/folder/x", nil)
	line := "verify --batch many --golden golden.json --trust-sim " + at
	link := func(to, name string) {
		if err := os.Symlink(to, b.path(name)); err != nil {
			t.Skipf("needs a file system with symbolic links: %v", err)
		}
	}
	link(b.path("evidence.json"), "many/link")
	link("folder", "many/link-to-folder")
	if stdout, stderr, code := b.run(line); code != 0 || strings.Count(stdout, "trusted") != 2 || strings.Count(stdout, "\n") != 2 {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
	link("nosuch", "many/nowhere")
	if stdout, _, code := b.run(line); code != 1 || !strings.Contains(stdout, "nowhere\terror: ") {
		t.Errorf("exit code %d\n%s", code, stdout)
	}
}

// TestBatchNames: a file's name is no line of ours.
func TestBatchNames(t *testing.T) {
	b := newBench(t)
	b.write("many/a", nil)
	if err := os.Rename(b.path("many/a"), b.path("many")+"/a\x1b[2J\nb\ttrusted"); err != nil {
		t.Skipf("needs a file system with line feeds in names: %v", err)
	}
	stdout, _, code := b.run("verify --batch many --golden golden.json --trust-sim " + at)
	if code != 1 || strings.Count(stdout, "\n") != 1 || strings.Count(stdout, "\t") != 1 || strings.Contains(stdout, "\x1b") {
		t.Errorf("exit code %d\n%q", code, stdout)
	}
}

// TestEmptyFlags: a flag with nothing behind it is no flag that was not given.
func TestEmptyFlags(t *testing.T) {
	b := newBench(t)
	for line, flags := range map[string]string{
		"verify evidence.json --golden golden.json --trust-sim": "chip-id registry bundle batch at policy golden",
		"verify --batch many --trust-sim":                       "golden",
		"report verify report-table.bin --trust-sim":            "cert-table chip-id bundle policy",
		"attest --connect unix:nosuch --golden golden.json":     "registry chip-id binding",
	} {
		for _, f := range strings.Fields(flags) {
			if _, stderr, code := b.run(line + " --" + f + "="); code != 1 || !strings.Contains(stderr, "--"+f+": expected a value") {
				t.Errorf("%s --%s=: exit code %d\n%s", line, f, code, stderr)
			}
		}
	}
}
