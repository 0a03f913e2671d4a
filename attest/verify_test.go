package attest_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/measure"
)

// options trust a machine's simulated root, at a time when it is valid.
func options(m *attesttest.Machine) attest.Options {
	return attest.Options{Now: attesttest.Now, SimRoots: []*x509.Certificate{m.Signer.ARK}}
}

// verify judges a machine's evidence.
func verify(t *testing.T, m *attesttest.Machine, o attest.Options) *attest.Verdict {
	t.Helper()
	v, err := attest.Verify(t.Context(), m.Evidence(), m.Golden(), o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// reasons lists a verdict's failures as "check: reason".
func reasons(v *attest.Verdict) string {
	var out []string
	for _, c := range v.Failures() {
		out = append(out, c.Name+": "+c.Reason+" (expected "+c.Expected+", found "+c.Found+" "+c.Note+")")
	}
	return strings.Join(out, "\n")
}

func TestGoodMachinesAreTrusted(t *testing.T) {
	for name, p := range map[string]attesttest.Processor{
		"Milan": attesttest.Milan, "Genoa": attesttest.Genoa, "Siena": attesttest.Siena, "Turin": attesttest.Turin,
	} {
		for _, binding := range []string{evidence.BindingSVSM, evidence.BindingSVSMServices, evidence.BindingNV} {
			t.Run(name+"/"+binding, func(t *testing.T) {
				m := attesttest.NewMachine(p)
				m.Binding = binding
				v := verify(t, m, options(m))
				if !v.Trusted() || v.Platform != attest.PlatformSim {
					t.Errorf("%s on platform %q:\n%s", v.Result, v.Platform, reasons(v))
				}
				if v.Binding != binding || v.Live || !v.Time.Equal(attesttest.Now) || v.Schema != attest.VerdictSchema {
					t.Errorf("%+v", v)
				}
				if v.Class() != attest.ClassOK {
					t.Errorf("class is %d", v.Class())
				}
			})
		}
	}
}

// Zero options judge now.
func TestNowByDefault(t *testing.T) {
	m := genoa()
	before := time.Now()
	v, err := attest.VerifyReport(t.Context(), m.SignedReport([64]byte{1}), m.CertTable(), attest.Expect{}, attest.Options{})
	if err != nil || v.Time.Before(before.Add(-time.Minute)) || v.Time.After(time.Now().Add(time.Minute)) {
		t.Errorf("judged at %v, %v", v.Time, err)
	}
}

// A policy that is none is an error for a bare report, too.
func TestPolicyOfBareReport(t *testing.T) {
	m := genoa()
	if _, err := attest.VerifyReport(t.Context(), m.SignedReport([64]byte{1}), m.CertTable(), attest.Expect{}, attest.Options{Policy: new(attest.Policy)}); err == nil {
		t.Error("an empty policy was accepted")
	}
}

// A chip id is pinned whole.
func TestPinnedChipHasALength(t *testing.T) {
	m := genoa()
	for _, id := range [][]byte{{}, m.ChipID[:63], append(bytes.Clone(m.ChipID[:]), 1), m.ChipID[:1]} {
		o := options(m)
		o.ChipID = id
		if _, err := attest.VerifyReport(t.Context(), m.SignedReport([64]byte{1}), m.CertTable(), attest.Expect{}, o); err == nil {
			t.Errorf("%d bytes were accepted", len(id))
		}
	}
}

// fickle is a registry that first says that the EK was seen in another launch,
// then that it was not.
type fickle struct{}

func (fickle) Observe(_ context.Context, s attest.Sighting, judge func([]attest.Sighting) bool) error {
	judge([]attest.Sighting{{EK: s.EK, ReportID: []byte{1}}})
	judge(nil)
	return nil
}

// What has failed stays failed.
func TestFailureIsNotTakenBack(t *testing.T) {
	m := genoa()
	o := options(m)
	o.Registry = fickle{}
	want(t, verify(t, m, o), is(attest.CheckLifecycle, attest.ReasonEKReused))
}

func TestChallenge(t *testing.T) {
	m := attesttest.NewMachine(attesttest.Genoa)
	s := challenge(t, m, m.TPM, attest.ChallengeOptions{Binding: evidence.BindingSVSM})
	o := options(m)
	o.Live = s
	v, err := attest.Verify(t.Context(), s.Evidence, m.Golden(), o)
	if err != nil {
		t.Fatal(err)
	}
	if !v.Trusted() || !v.Live {
		t.Errorf("%s, live %t:\n%s", v.Result, v.Live, reasons(v))
	}
}

// challenge makes a challenge to a machine whose credentials are opened by a TPM.
func challenge(t *testing.T, m *attesttest.Machine, activator *attesttest.VTPM, o attest.ChallengeOptions) *attest.Session {
	t.Helper()
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- m.Serve(theirs, activator) }()
	s, err := attest.Challenge(context.Background(), ours, o)
	ours.Close() // an agent that still waits for something is wrong to
	if err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	return s
}

// A bare report is held against all that golden values say of a report.
func TestBareReportByGolden(t *testing.T) {
	m := genoa()
	data := [64]byte{1}
	judge := func(change func(*measure.Golden)) *attest.Verdict {
		g := m.Golden()
		change(g)
		return bare(t, m, m.SignedReport(data), attest.Expect{Golden: g}, nil)
	}
	good := judge(func(*measure.Golden) {})
	want(t, good)
	if w := strings.Join(good.Warnings, "\n"); w != "the golden PCRs were not judged: a bare report has no vTPM" {
		t.Errorf("warnings are %q", w)
	}
	if v := judge(func(g *measure.Golden) { g.PCRs = nil }); len(v.Warnings) > 0 {
		t.Errorf("without PCRs, warnings are %q", v.Warnings)
	}
	want(t, judge(func(g *measure.Golden) { g.LaunchDigests[0][0] ^= 1 }), is(attest.CheckMeasurement, attest.ReasonMeasurement))
	want(t, judge(func(g *measure.Golden) { g.Platform = "snp" }), is(attest.CheckPlatform, attest.ReasonPlatformMismatch))
	want(t, judge(func(g *measure.Golden) { g.Policy |= 1 << 20 }), is(attest.CheckGuestGolden, attest.ReasonPolicyGolden))
	want(t, judge(func(g *measure.Golden) { g.HostData = bytes.Repeat([]byte{1}, 32) }), is(attest.CheckHostData, attest.ReasonHostData))

	for name, expect := range map[string]attest.Expect{
		"golden values that say nothing": {Golden: new(measure.Golden)},
		"digests twice":                  {Golden: m.Golden(), Measurements: []measure.Digest{attesttest.LaunchDigest}},
	} {
		if _, err := attest.VerifyReport(t.Context(), m.SignedReport(data), m.CertTable(), expect, options(m)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A guest cannot make a verdict much larger than others.
func TestVerdictIsBounded(t *testing.T) {
	large := strings.Repeat("\u00e9", 500_000)
	for name, edit := range map[string]func(*evidence.Evidence){
		"PCR":     func(ev *evidence.Evidence) { ev.PCRs[4].Value = bytes.Repeat([]byte{1}, 1<<20) },
		"bank":    func(ev *evidence.Evidence) { ev.PCRBank = large },
		"binding": func(ev *evidence.Evidence) { ev.Binding = large },
	} {
		v := judge(t, withEvidence(edit))
		text, err := json.Marshal(v)
		if err != nil || len(text) > 1<<19 || v.Trusted() || !strings.Contains(string(text), " bytes)") || strings.Contains(string(text), "\ufffd") {
			t.Errorf("%s: %s of %d bytes (%v)", name, v.Result, len(text), err)
		}
	}
	for n, cut := range map[int]bool{64 << 10: false, 64<<10 + 1: true} {
		v := judge(t, withEvidence(func(ev *evidence.Evidence) { ev.Binding = strings.Repeat("x", n) }))
		if strings.HasSuffix(v.Binding, " bytes)") != cut {
			t.Errorf("a text of %d bytes ends with %q", n, v.Binding[len(v.Binding)-20:])
		}
	}
	// Golden values of many launches fit.
	m := genoa()
	g := m.Golden()
	g.LaunchDigests = nil
	for i := range 600 {
		g.LaunchDigests = append(g.LaunchDigests, measure.Digest{1, byte(i >> 8), byte(i)})
	}
	v, err := attest.Verify(t.Context(), m.Evidence(), g, options(m))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range v.Failures() {
		if c.Name == string(attest.CheckMeasurement) && !strings.HasSuffix(c.Expected, g.LaunchDigests[599].String()) {
			t.Errorf("expected digests end with %q", c.Expected[len(c.Expected)-40:])
		}
	}
}
