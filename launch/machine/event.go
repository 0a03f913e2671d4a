package machine

import (
	"fmt"
	"time"

	"github.com/evtpm/evtpm/attest"
)

// A Phase is a part of a launch, in the order in which they happen.
type Phase string

// Phases.
const (
	PhasePlan    Phase = "plan"    // inputs read, sealed, hashed; golden values computed
	PhaseStart   Phase = "start"   // QEMU started, stopped before the first instruction
	PhaseMeasure Phase = "measure" // the simulated AMD-SP has measured guest memory
	PhaseVTPM    Phase = "vtpm"    // a fresh vTPM with its EK
	PhaseBoot    Phase = "boot"    // from the first instruction to the agent's first word
	PhaseAttest  Phase = "attest"  // from the challenge to the evidence
	PhaseVerdict Phase = "verdict" // the evidence judged
	PhaseRun     Phase = "run"     // after the first verdict
	PhaseStop    Phase = "stop"    // the VM is being ended
)

// A State is where a machine is in its life.
type State string

// States. Dead and unresponsive are never recorded: who looks finds out.
const (
	StateStarting    State = "starting"     // not yet running
	StateBooting     State = "booting"      // running, the agent has said nothing yet
	StateAttesting   State = "attesting"    // first attestation under way
	StateTrusted     State = "trusted"      // running, first attestation passed
	StateRefused     State = "refused"      // first attestation failed
	StateNotAttested State = "not-attested" // running, but not what was attested: reset since, or never attested
	StateStopping    State = "stopping"     // being ended
	StateStopped     State = "stopped"      // ended in order
	StateFailed      State = "failed"       // ended by a fault
	StateDead        State = "dead"         // its supervisor was killed, and everything with it
	// StateUnresponsive: the supervisor is there, but does not answer.
	StateUnresponsive State = "unresponsive"
)

// An EventKind says what an [Event] tells.
type EventKind string

// Kinds of events.
const (
	EventPhase   EventKind = "phase"   // a phase was completed
	EventState   EventKind = "state"   // the machine's state changed
	EventVerdict EventKind = "verdict" // evidence was judged
	EventWarning EventKind = "warning" // something that a user should know
	EventError   EventKind = "error"   // the machine failed
	EventVM      EventKind = "vm"      // QEMU reported something: reset, shutdown, panic
)

// An Event is something that happened to a machine.
type Event struct {
	Time time.Time `json:"time"`
	// Elapsed is the time in seconds since the launch began.
	Elapsed float64   `json:"elapsed"`
	Kind    EventKind `json:"event"`
	Phase   Phase     `json:"phase,omitempty"`
	State   State     `json:"state,omitempty"`
	// Class is an error's or a verdict's.
	Class attest.Class `json:"class,omitempty"`
	// Message says it in words. Parts of it may come from QEMU or the guest:
	// quote it before it is shown.
	Message string `json:"message,omitempty"`
}

// A Timing says how far into a launch a phase was completed.
type Timing struct {
	Phase Phase `json:"phase"`
	// Elapsed is the time in seconds since the launch began.
	Elapsed float64 `json:"elapsed"`
}

// A PhaseError says in which phase of a machine's life what went wrong. Its
// class is the exit code of the command line.
type PhaseError struct {
	Phase Phase
	Class attest.Class
	Err   error
}

func (e *PhaseError) Error() string { return fmt.Sprintf("%s: %v", e.Phase, e.Err) }
func (e *PhaseError) Unwrap() error { return e.Err }

// ExitCode is the class as a number.
func (e *PhaseError) ExitCode() int { return int(e.Class) }

// A BusyError says that a machine of that name is there already.
type BusyError struct {
	Name string
	// PID of its supervisor; zero when not known.
	PID int
}

func (e *BusyError) Error() string {
	who := ""
	if e.PID != 0 {
		who = fmt.Sprintf(" (supervisor %d)", e.PID)
	}
	return fmt.Sprintf("machine %q is running already%s; stop it with: evtpm stop %s", e.Name, who, e.Name)
}

// ExitCode is that of a VM which could not be started.
func (e *BusyError) ExitCode() int { return int(attest.ClassLaunch) }

// next is the phase that follows.
func (p Phase) next() Phase {
	for i, q := range launchPhases[:len(launchPhases)-1] {
		if p == q {
			return launchPhases[i+1]
		}
	}
	return PhaseRun
}

// launchPhases are those of a launch in order.
var launchPhases = []Phase{PhasePlan, PhaseStart, PhaseMeasure, PhaseVTPM, PhaseBoot, PhaseAttest, PhaseVerdict}
