package attest_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/evidence"
)

// TestWhatAFailureMakesImpossible: a check that cannot be made is failed, names
// the failure that is to blame, and has its class, which the exit code is made of.
func TestWhatAFailureMakesImpossible(t *testing.T) {
	for name, c := range map[string]struct {
		edit  func(*evidence.Evidence)
		cause attest.CheckName
		not   []attest.CheckName
	}{
		"no report": {
			func(ev *evidence.Evidence) { ev.Report = nil }, attest.CheckReportLength,
			[]attest.CheckName{attest.CheckReportSignature, attest.CheckChain, attest.CheckMeasurement, attest.CheckReportData, attest.CheckVMPL, attest.CheckQuoteClock, attest.CheckLifecycle},
		},
		"report of another version": {
			func(ev *evidence.Evidence) { ev.Report[0] = 9 }, attest.CheckReportVersion,
			[]attest.CheckName{attest.CheckReportSignature, attest.CheckMeasurement, attest.CheckQuoteClock, attest.CheckLifecycle},
		},
		"no manifest": {
			func(ev *evidence.Evidence) { ev.Manifest = nil }, attest.CheckManifest,
			[]attest.CheckName{attest.CheckEKBound},
		},
		"no EK": {
			func(ev *evidence.Evidence) { ev.EKPublic = nil }, attest.CheckEK,
			[]attest.CheckName{attest.CheckEKBound, attest.CheckQuoteClock, attest.CheckLifecycle},
		},
		"no AK": {
			func(ev *evidence.Evidence) { ev.AKPublic = nil }, attest.CheckAK,
			[]attest.CheckName{attest.CheckAKResident, attest.CheckQuoteSignature},
		},
		"no quote": {
			func(ev *evidence.Evidence) { ev.Quote = nil }, attest.CheckQuoteForm,
			[]attest.CheckName{attest.CheckQuoteNonce, attest.CheckPCRSelection, attest.CheckPCRDigest, attest.CheckQuoteClock, attest.CheckLifecycle},
		},
		"no signature": {
			func(ev *evidence.Evidence) { ev.QuoteSignature = nil }, attest.CheckQuoteSignature,
			[]attest.CheckName{attest.CheckPCRDigest},
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := judgeSeen(t, withEvidence(c.edit), registry(t))
			cause := check(t, v, c.cause)
			if cause.Status != attest.Failed || cause.Reason == string(attest.ReasonNotMade) {
				t.Errorf("the cause is %+v", cause)
			}
			blame := "not possible, since " + cause.Name + " failed: " + cause.Reason
			for _, n := range c.not {
				if got := check(t, v, n); got.Status != attest.Failed || got.Reason != string(attest.ReasonNotMade) || got.Class != cause.Class || got.Note != blame {
					t.Errorf("%+v, expected %q", got, blame)
				}
			}
		})
	}
}

// A registry that cannot be used leaves the clock unjudged, too, and is to blame.
func TestRegistryFaultIsToBlame(t *testing.T) {
	v := judgeSeen(t, genoa(), attest.NewFileRegistry(filepath.Join(t.TempDir(), "none", "eks.json")))
	c := check(t, v, attest.CheckQuoteClock)
	if c.Reason != string(attest.ReasonNotMade) || !strings.Contains(c.Note, "since lifecycle failed: "+string(attest.ReasonRegistry)) {
		t.Errorf("%+v", c)
	}
}

// A reader of the warnings alone learns that a bare report's measurement was
// compared with nothing.
func TestUnjudgedMeasurementIsWarnedOf(t *testing.T) {
	m := genoa()
	report := m.SignedReport([64]byte{1})
	const warning = "the measurement was not judged"
	v := bare(t, m, report, attest.Expect{}, nil)
	if !strings.Contains(strings.Join(v.Warnings, "\n"), warning) {
		t.Errorf("warnings are %q", v.Warnings)
	}
	v = bare(t, m, report, attest.Expect{Measurements: m.Golden().LaunchDigests}, nil)
	if strings.Contains(strings.Join(v.Warnings, "\n"), warning) {
		t.Errorf("warnings are %q", v.Warnings)
	}
}
