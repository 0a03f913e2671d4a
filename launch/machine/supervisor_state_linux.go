package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/attest"
)

// newBoot begins a boot of the guest: what is attested holds until it ends.
func (s *supervisor) newBoot() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.endBoot != nil {
		s.endBoot(errReset)
	}
	s.boot, s.endBoot = context.WithCancelCause(s.ctx)
	return s.boot
}

// lose ends the boot: nothing that was attested holds any more.
func (s *supervisor) lose(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.endBoot != nil {
		s.endBoot(cause)
	}
}

// reset is what follows when the guest was reset: its vTPM is another one.
func (s *supervisor) reset() {
	s.newBoot()
	s.update(func(r *Record) { r.Boots++ })
	s.notAttested("the guest was reset: its vTPM is another one; attest it anew with: evtpm attest " + s.plan.Name)
}

func (s *supervisor) notAttested(reason string) {
	s.update(func(r *Record) {
		if r.Running && r.State != StateStopping {
			r.State, r.Reason, r.Verdict = StateNotAttested, reason, nil
		}
	})
	s.emit(Event{Kind: EventState, State: StateNotAttested, Message: reason})
	_ = s.write() // write tells the user
}

// snapshot returns the record as it is now.
func (s *supervisor) snapshot() Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.record
	r.Processes = slices.Clone(r.Processes)
	r.Timings = slices.Clone(r.Timings)
	return r
}

func (s *supervisor) update(change func(*Record)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.record)
	s.record.Updated = time.Now().UTC()
}

// write writes the record to its file. An error is told as a warning too, since
// what is on disk is then out of date: who asks the supervisor gets the truth.
func (s *supervisor) write() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	data, err := json.MarshalIndent(s.snapshot(), "", "  ")
	if err == nil {
		err = s.claim.writeFile(fileMachine, append(data, '\n'))
	}
	if err != nil {
		s.emit(Event{Kind: EventWarning, Message: err.Error()})
		return fmt.Errorf("record: %w", err)
	}
	return nil
}

func (s *supervisor) elapsed() float64 {
	return float64(monotonic()-s.job.Began) / float64(time.Second)
}

// emit tells of an event: in the folder, and to the launcher while there is one.
func (s *supervisor) emit(e Event) {
	e.Time = time.Now().UTC()
	e.Elapsed = s.elapsed()
	if data, err := json.Marshal(e); err == nil && s.events != nil {
		_, _ = s.events.Write(append(data, '\n'))
	}
	s.launcher.put(reply{Event: &e})
}

// enter begins a phase, done completes it.
func (s *supervisor) enter(p Phase) { s.update(func(r *Record) { r.Phase = p }) }

func (s *supervisor) done(p Phase, message string) {
	s.update(func(r *Record) { r.Timings = append(r.Timings, Timing{Phase: p, Elapsed: s.elapsed()}) })
	s.emit(Event{Kind: EventPhase, Phase: p, Message: message})
}

// A timeoutError says that a phase took too long.
type timeoutError struct{ after time.Duration }

func (e *timeoutError) Error() string { return fmt.Sprintf("no end within %v", e.after) }

// within bounds a phase.
func (s *supervisor) within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, &timeoutError{d})
}

// failed is the error of a phase.
func (s *supervisor) failed(p Phase, err error) error {
	var pe *PhaseError
	if errors.As(err, &pe) {
		return err
	}
	class := attest.ClassLaunch
	var timeout *timeoutError
	var coded interface{ ExitCode() int }
	switch {
	case errors.As(err, &timeout), errors.Is(err, context.DeadlineExceeded):
		class = attest.ClassTimeout
	case errors.As(err, &coded) && coded.ExitCode() > 0:
		class = attest.Class(coded.ExitCode())
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, unix.ENOENT):
		class = attest.ClassHostNotCapable
	}
	return &PhaseError{Phase: p, Class: class, Err: err}
}

// failedIn is the error of a phase that ran under ctx: why the context ended is
// the cause of whatever failed after that.
func (s *supervisor) failedIn(ctx context.Context, p Phase, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		var timeout *timeoutError
		switch {
		case errors.Is(err, cause): // says it already
		case errors.As(cause, &timeout):
			err = fmt.Errorf("%w: %w", cause, err)
		default:
			err = cause
		}
	}
	return s.failed(p, err)
}
