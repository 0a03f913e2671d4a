package attest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/measure"
)

// A Sighting is what a registry keeps of one launch: which EK it had, under
// which report id, and how far its TPM's clock had come.
type Sighting struct {
	// EK is the SHA-256 of the EK's TPMT_PUBLIC.
	EK       measure.HexBytes `json:"ek"`
	ReportID measure.HexBytes `json:"report_id"`
	// BootID is the guest's; one that is longer than any kernel's is its SHA-256.
	BootID string `json:"boot_id"`
	// Clock is the TPM's, in milliseconds.
	Clock        uint64    `json:"clock"`
	ResetCount   uint32    `json:"reset_count"`
	RestartCount uint32    `json:"restart_count"`
	Time         time.Time `json:"time"`
}

// A Registry remembers the EKs of earlier launches. An ephemeral vTPM has a new
// EK at every launch; one that comes back is no ephemeral vTPM, or a copy.
type Registry interface {
	// Observe calls judge with the earlier sightings that have the new one's EK
	// or boot id, and keeps the new one if judge returns true. No other Observe
	// of the registry, in whatever process, comes between.
	Observe(ctx context.Context, s Sighting, judge func(earlier []Sighting) bool) error
}

// maxBootID bounds what a registry keeps of a boot id, which is for the guest to
// choose. Linux's has 36 bytes.
const maxBootID = 64

// sightingOf makes the sighting of evidence.
func sightingOf(r *Report, ek *tpmPublic, q *tpmQuote, ev *evidence.Evidence, now time.Time) Sighting {
	sum := sha256.Sum256(ek.raw)
	boot := ev.BootID
	if len(boot) > maxBootID {
		boot = fmt.Sprintf("%x", sha256.Sum256([]byte(boot)))
	}
	return Sighting{
		EK: sum[:], ReportID: r.ReportID[:], BootID: boot,
		Clock: q.clock, ResetCount: q.resetCount, RestartCount: q.restartCount, Time: now.UTC(),
	}
}

// checkLifecycle compares a sighting with earlier ones: EK and boot id may come
// back with the same report id only.
func checkLifecycle(s Sighting, earlier []Sighting) Check {
	for _, e := range earlier {
		if e.EK.String() == s.EK.String() && e.ReportID.String() != s.ReportID.String() {
			return fail(CheckLifecycle, ReasonEKReused, "an EK never seen in another launch",
				fmt.Sprintf("EK %s, seen under report id %s at %s, now under %s", s.EK, e.ReportID, e.Time.Format(time.RFC3339), s.ReportID))
		}
		if s.BootID != "" && e.BootID == s.BootID && e.ReportID.String() != s.ReportID.String() {
			return fail(CheckLifecycle, ReasonReportID, "report id "+e.ReportID.String()+" for this boot", s.ReportID.String())
		}
	}
	return pass(CheckLifecycle, "report id "+s.ReportID.String())
}

// checkClock compares the TPM's counters with those last seen for the EK. They
// may stand still in saved evidence that is judged again, not run backwards. Nor
// may an ephemeral vTPM be reset: it lives as long as the launch, and its PCRs
// would start anew in a guest that goes on.
func checkClock(s Sighting, earlier []Sighting) Check {
	found := fmt.Sprintf("reset count %d, restart count %d, clock %d ms", s.ResetCount, s.RestartCount, s.Clock)
	for _, e := range earlier {
		if e.EK.String() != s.EK.String() {
			continue
		}
		if s.ResetCount > e.ResetCount && e.ReportID.String() == s.ReportID.String() {
			return fail(CheckQuoteClock, ReasonTPMReset, fmt.Sprintf("reset count %d", e.ResetCount), found)
		}
		back := s.ResetCount < e.ResetCount ||
			s.ResetCount == e.ResetCount && (s.RestartCount < e.RestartCount || s.Clock < e.Clock)
		if back {
			return fail(CheckQuoteClock, ReasonClockBackwards,
				fmt.Sprintf("at least reset count %d, restart count %d, clock %d ms", e.ResetCount, e.RestartCount, e.Clock), found)
		}
	}
	return pass(CheckQuoteClock, found)
}
