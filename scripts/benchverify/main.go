// Command benchverify measures how long evtpm takes to judge SNP reports: as a
// process of its own for one report, and as one process for a folder of them;
// beside snpguest, where there is one, on the same reports with the same
// certificates. Everything is measured side by side in one run;
// scripts/bench-verify calls it.
package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/evtpm/evtpm/attest"
)

func main() {
	var b bench
	flag.StringVar(&b.evtpm, "evtpm", "bin/evtpm", "our `program`")
	flag.StringVar(&b.snpguest, "snpguest", "", "`program` snpguest; without it there is no comparison")
	flag.StringVar(&b.data, "data", "", "`DIR` of real reports with index.json")
	flag.IntVar(&b.rounds, "rounds", 40, "how often each program runs")
	flag.IntVar(&b.copies, "copies", 400, "how often each report is in the folder")
	flag.Float64Var(&b.bare, "bare", 0, "nanoseconds that a bare signature takes on all processors")
	flag.Parse()
	if err := b.run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench-verify:", err)
		os.Exit(1)
	}
}

type bench struct {
	evtpm, snpguest, data string
	rounds, copies        int
	bare                  float64
	dir                   string
}

// A sample is a real report with its certificates, as files.
type sample struct {
	report, leaf string
	at           string // a time at which they are valid
	certs        string // a folder of ark, ask and vcek, as snpguest wants them
}

// samples reads the reports of data that come with a certificate.
func (b *bench) samples() ([]sample, error) {
	text, err := os.ReadFile(filepath.Join(b.data, "index.json"))
	if err != nil {
		return nil, err
	}
	var index struct {
		Entries []struct {
			File, Kind  string
			Endorsement []struct {
				File  string
				Chain []string
			}
		}
	}
	if err := json.Unmarshal(text, &index); err != nil {
		return nil, err
	}
	var out []sample
	for i, e := range index.Entries {
		if e.Kind != "snp-report" || len(e.Endorsement) == 0 {
			continue
		}
		s := sample{
			report: filepath.Join(b.data, e.File), leaf: filepath.Join(b.data, e.Endorsement[0].File),
			certs: filepath.Join(b.dir, fmt.Sprintf("certs-%d", i)),
		}
		if err := s.prepare(b.data, e.Endorsement[0].Chain); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: no report with a certificate", b.data)
	}
	return out, nil
}

func (s *sample) prepare(data string, chain []string) error {
	leaf, err := os.ReadFile(s.leaf)
	if err != nil {
		return err
	}
	c, err := x509.ParseCertificate(leaf)
	if err != nil {
		return err
	}
	s.at = c.NotBefore.AddDate(0, 0, 1).UTC().Format(time.RFC3339)
	if err := os.Mkdir(s.certs, 0o700); err != nil {
		return err
	}
	name := "vcek"
	if c.Subject.CommonName == "SEV-VLEK" {
		name = "vlek"
	}
	files := map[string]string{name: s.leaf}
	for _, f := range chain {
		role := "ask"
		if strings.HasPrefix(filepath.Base(f), "ARK") {
			role = "ark"
		} else if name == "vlek" {
			role = "asvk"
		}
		files[role] = filepath.Join(data, f)
	}
	for name, file := range files {
		der, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		if err := os.WriteFile(filepath.Join(s.certs, name+".pem"), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) run() error {
	var err error
	if b.dir, err = os.MkdirTemp("", "bench-verify"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	samples, err := b.samples()
	if err != nil {
		return err
	}
	ours, theirs, err := b.processes(samples)
	if err != nil {
		return err
	}
	fmt.Printf("one report, one process:   evtpm %.1f ms (median of %d)\n", ms(ours), b.rounds)
	rate, err := b.batch(samples)
	if err != nil {
		return err
	}
	line := fmt.Sprintf("evtpm verify --batch:      %.0f reports a second, all processors", rate)
	if b.bare > 0 {
		line += fmt.Sprintf(", %.2f times the bare signature", 1e9/rate/b.bare)
	}
	fmt.Println(line)
	if theirs > 0 {
		fmt.Printf("snpguest, one report:      %.1f ms, %.2f times one process of evtpm, %.1f times a report of --batch\n",
			ms(theirs), float64(theirs)/float64(ours), theirs.Seconds()*rate)
	}
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// processes runs the programs in turn on the same reports; each ends up with its
// median.
func (b *bench) processes(samples []sample) (ours, theirs time.Duration, err error) {
	var our, their []time.Duration
	for i := range b.rounds {
		s := samples[i%len(samples)]
		took, err := timed(b.evtpm, "-q", "report", "verify", "--policy", "permissive", "--at", s.at, "--vek", s.leaf, s.report)
		if err != nil {
			return 0, 0, err
		}
		our = append(our, took)
		if b.snpguest == "" {
			continue
		}
		// Its two steps are what ours is: the chain, then the report.
		chain, err := timed(b.snpguest, "verify", "certs", s.certs)
		if err != nil {
			// It knows some of the reports' certificates only.
			continue
		}
		report, err := timed(b.snpguest, "verify", "attestation", s.certs, s.report)
		if err != nil {
			continue
		}
		their = append(their, chain+report)
	}
	if b.snpguest != "" && len(their) == 0 {
		return 0, 0, errors.New("snpguest verifies none of the reports")
	}
	return median(our), median(their), nil
}

func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[len(d)/2]
}

func timed(name string, args ...string) (time.Duration, error) {
	start := time.Now()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return time.Since(start), nil
}

// batch judges a folder of reports in one process, and returns its rate.
func (b *bench) batch(samples []sample) (float64, error) {
	dir := filepath.Join(b.dir, "reports")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	var certs attest.Bundle
	// The certificates' validities differ: those that are valid when most are.
	at := make([]string, len(samples))
	for i, s := range samples {
		at[i] = s.at
	}
	slices.Sort(at)
	now := at[len(at)/2]
	for i, s := range samples {
		der, err := os.ReadFile(s.leaf)
		if err != nil {
			return 0, err
		}
		leaf, err := attest.ParseBundle(der)
		if err != nil {
			return 0, err
		}
		certs.Add(leaf)
		report, err := os.ReadFile(s.report)
		if err != nil {
			return 0, err
		}
		for n := range b.copies {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d-%d", i, n)), report, 0o600); err != nil {
				return 0, err
			}
		}
	}
	bundle := filepath.Join(b.dir, "bundle.pem")
	if err := os.WriteFile(bundle, certs.Encode(), 0o600); err != nil {
		return 0, err
	}
	// Some are out of their validity then, so that the exit code is not 0: they
	// cost the same.
	out, err := exec.Command(b.evtpm, "-q", "verify", "--batch", dir, "--bundle", bundle, "--policy", "permissive", "--at", now, "-o", "json").Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	var result struct {
		Files     int     `json:"files"`
		Trusted   int     `json:"trusted"`
		PerSecond float64 `json:"per_second"`
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return 0, fmt.Errorf("evtpm verify --batch: %w", err)
	}
	if result.Files != len(samples)*b.copies || result.Trusted < result.Files/2 {
		return 0, fmt.Errorf("evtpm verify --batch: %d of %d reports were trusted", result.Trusted, result.Files)
	}
	return result.PerSecond, nil
}
