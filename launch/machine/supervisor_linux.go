package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/process"
	"github.com/evtpm/evtpm/snpsim"
)

// Descriptors that a supervisor starts with, beside the standard ones.
const (
	fdControl = 3 // socket pair to the launcher
	fdLock    = 4 // the claim's lock
	fdInputs  = 5 // the plan's files, in their order
)

// jobSchema names the version of a job. Both sides are the same program; the
// version catches one that was replaced in between.
const jobSchema = "evtpm.job/v1"

// maxJob bounds a job: a plan, and a little more.
const maxJob = launch.MaxHandoverBytes + 1<<20

// A job is what a supervisor is to do: the first line that it is sent.
type job struct {
	Schema string `json:"schema"`
	// Began is when the launch did, in nanoseconds of CLOCK_MONOTONIC.
	Began int64           `json:"began"`
	Plan  json.RawMessage `json:"plan"`
	Files int             `json:"files"`
	// StateDir, RuntimeDir and Swtpm are those of [StartOptions].
	StateDir   string `json:"state_dir"`
	RuntimeDir string `json:"runtime_dir"`
	Swtpm      string `json:"swtpm,omitempty"`
	// Supervise is the command that this supervisor was started with.
	Supervise []string `json:"supervise"`
	// Boots is how often the guest has booted before: a machine that was reset,
	// and that nobody waits for.
	Boots int `json:"boots,omitempty"`
}

// Causes that end a supervisor's work.
var (
	errLauncherGone = errors.New("the launching process is gone")
	errStopped      = errors.New("stopped on request")
	errTerminated   = errors.New("the supervisor was told to end")
	errReset        = errors.New("the guest was reset")
)

// monotonic reads the clock that all processes of the system share, and that
// nobody sets.
func monotonic() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0
	}
	return ts.Nano()
}

// A supervisor owns one machine: QEMU, the vTPM and the folder.
type supervisor struct {
	job     *job
	plan    *launch.Plan
	attack  snpsim.Attack
	claim   *claim
	policy  *attest.Policy
	bundle  *attest.Bundle // nil: the spec names none
	spawner *process.Spawner
	events  *boundedLog
	console *boundedLog
	qemuLog *boundedLog

	ctx    context.Context
	cancel context.CancelCauseFunc
	ended  chan struct{} // closed when nothing runs any more and the record says so

	launcher     *outbox
	launcherDone chan struct{} // closed when the launcher has released the machine, or is gone
	control      net.Listener
	serving      sync.WaitGroup

	vm         hypervisor
	eventsDone chan struct{} // closed when QEMU will say nothing more
	mon        monitor
	consoleIO  net.Conn
	platform   platform

	attesting chan struct{} // holds a token while someone speaks to the agent

	mu        sync.Mutex
	released  bool // by the launcher: the machine is on its own
	finishing bool // too late for that
	refused   bool // unless it ended because it was refused
	record    Record
	boot      context.Context // ends with the guest's boot
	endBoot   context.CancelCauseFunc
	shutdown  string // QEMU's reason for its end

	writing sync.Mutex // held while the record is written
}

// Supervise owns one machine from start to end. It is the whole of a process
// that [Start] makes: descriptors 3 and up are as Start leaves them. It returns
// when the machine has ended and nothing of it runs any more. When ctx ends, it
// ends the machine.
//
// attack is what a malicious platform does in demonstrations, on the simulated
// platform alone; no spec can ask for it. The zero value is none.
func Supervise(ctx context.Context, attack snpsim.Attack) error {
	// Sockets that QEMU makes are for this user alone.
	unix.Umask(0o077)
	control, err := inherited(fdControl)
	if err != nil {
		return fmt.Errorf("supervise: %w; evtpm launch starts this", err)
	}
	conn, err := connOf(control)
	if err != nil {
		return fmt.Errorf("supervise: descriptor %d: %w; evtpm launch starts this", fdControl, err)
	}
	defer conn.Close()
	s, err := takeJob(conn, inherited)
	if err != nil {
		return fmt.Errorf("supervise: %w", err)
	}
	s.attack = attack
	return s.run(ctx)
}

// inherited takes a descriptor that this process was started with, and keeps it
// from those that it starts. Its name is the path of the file.
func inherited(fd int) (*os.File, error) {
	unix.CloseOnExec(fd)
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// takeJob reads the job, and takes the descriptors that belong to it. When it
// fails, the machine's folder is gone.
func takeJob(conn *lineConn, take func(fd int) (*os.File, error)) (_ *supervisor, err error) {
	lock, err := take(fdLock)
	if err != nil {
		return nil, err
	}
	c, j := &claim{dir: filepath.Dir(lock.Name()), lock: lock}, new(job)
	defer func() {
		// What is left of a machine that was reset is its last supervisor's.
		if err != nil && j.Boots == 0 && sameFile(lock) {
			err = errors.Join(err, c.remove())
		}
	}()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, err
	}
	if err := conn.receive(j, maxJob); err != nil {
		return nil, fmt.Errorf("job: %w", err)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	if j.Schema != jobSchema {
		return nil, fmt.Errorf("job: schema is %q, expected %q", j.Schema, jobSchema)
	}
	var files []*os.File
	for i := range j.Files {
		f, err := take(fdInputs + i)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	s := &supervisor{
		job:          j,
		claim:        c,
		ended:        make(chan struct{}),
		eventsDone:   make(chan struct{}),
		launcher:     newOutbox(conn),
		launcherDone: make(chan struct{}),
		attesting:    make(chan struct{}, 1),
		spawner:      process.NewSpawner(),
	}
	if s.plan, err = launch.TakePlan(j.Plan, files); err != nil {
		return nil, s.refuse(err)
	}
	s.vm = newHypervisor(s)
	if in := s.plan.Policy; in != nil {
		text, err := in.Bytes()
		if err != nil {
			return nil, s.refuse(err)
		}
		if s.policy, err = attest.ParsePolicy(text, in.Path); err != nil {
			return nil, s.refuse(err)
		}
	}
	if in := s.plan.Bundle; in != nil {
		data, err := in.Bytes()
		if err != nil {
			return nil, s.refuse(err)
		}
		if s.bundle, err = attest.ParseBundle(data); err != nil {
			return nil, s.refuse(err)
		}
	}
	return s, nil
}

// refuse tells the launcher why there is no machine.
func (s *supervisor) refuse(err error) error {
	s.launcher.put(reply{Error: toWire(&PhaseError{Phase: PhaseStart, Class: attest.ClassLaunch, Err: err})})
	s.launcher.close()
	return err
}

// run is the machine's life.
func (s *supervisor) run(ctx context.Context) error {
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	defer s.cancel(nil)
	defer context.AfterFunc(ctx, func() { s.cancel(errTerminated) })()
	if s.job.Boots == 0 {
		go s.watchLauncher()
	} else {
		s.released = true
		close(s.launcherDone)
		s.launcher.put(reply{Done: true}) // the last supervisor may go
	}

	err := s.open()
	if err == nil {
		err = s.launch()
	}
	if err == nil {
		<-s.ctx.Done()
		err = context.Cause(s.ctx)
	}
	s.finish(err)
	return nil
}

// open makes what the machine keeps in its folder.
func (s *supervisor) open() (err error) {
	self, err := process.Describe("supervisor", os.Getpid())
	if err != nil {
		return s.failed(PhaseStart, err)
	}
	now := time.Now().UTC()
	s.record = Record{
		Schema: RecordSchema, Name: s.plan.Name, Platform: s.plan.Spec.Platform,
		State: StateStarting, Phase: PhaseStart, Created: now, Updated: now, Supervisor: self, Boots: s.job.Boots,
	}
	for _, d := range s.plan.Spec.Disks {
		if !d.ReadOnly {
			s.record.Grace = s.plan.Spec.Timeouts.Stop
		}
	}
	if again := s.job.Boots > 0; again {
		s.record.State, s.record.Reason = StateNotAttested, "the guest was reset: another vTPM is being made and attested"
		if old, err := readRecord(s.claim.dir, s.plan.Name); err == nil {
			s.record.Created = old.Created
		}
	}
	for _, l := range []struct {
		log  **boundedLog
		name string
	}{{&s.events, fileEvents}, {&s.console, fileConsole}, {&s.qemuLog, fileQEMU}} {
		if *l.log, err = openLog(filepath.Join(s.claim.dir, l.name), s.job.Boots > 0); err != nil {
			return s.failed(PhaseStart, err)
		}
	}
	golden, err := s.plan.Golden.Encode()
	if err != nil {
		return s.failed(PhaseStart, err)
	}
	if err := s.claim.writeFile(fileGolden, golden); err != nil {
		return s.failed(PhaseStart, err)
	}
	if err := s.write(); err != nil {
		return s.failed(PhaseStart, err)
	}
	if s.control, err = net.Listen("unix", filepath.Join(s.claim.dir, sockControl)); err != nil {
		return s.failed(PhaseStart, err)
	}
	go s.serve()
	return nil
}

// launch takes the machine from nothing to its first verdict. It returns nil
// when the VM stays.
func (s *supervisor) launch() error {
	t := s.plan.Spec.Timeouts
	ctx, cancel := s.within(s.ctx, time.Duration(t.Start))
	defer cancel()
	var err error
	if s.platform, err = newPlatform(s); err != nil {
		return s.failed(PhaseStart, err)
	}
	for _, step := range []struct {
		phase Phase
		do    func(context.Context) (string, error)
	}{
		{PhaseStart, s.start},
		{PhaseMeasure, s.platform.measure},
		{PhaseVTPM, s.platform.vtpm},
	} {
		s.enter(step.phase)
		message, err := step.do(ctx)
		if err != nil {
			return s.failedIn(ctx, step.phase, err)
		}
		if message != "" {
			s.done(step.phase, message)
		}
	}
	cancel()

	boot := s.newBoot()
	s.update(func(r *Record) {
		r.Phase, r.Agent = PhaseBoot, s.agentAddress().String()
		if r.Boots++; r.Boots == 1 {
			r.State = StateBooting
		}
	})
	if err := s.cont(); err != nil {
		return s.failedIn(s.ctx, PhaseBoot, err)
	}
	if err := s.write(); err != nil {
		return s.failedIn(s.ctx, PhaseBoot, err)
	}
	record := s.snapshot()
	s.launcher.put(reply{Record: &record})

	a, err := s.firstAttestation(boot)
	if err != nil {
		return err
	}
	refused := !a.Verdict.Trusted() && s.plan.Spec.Attestation.OnRefused == launch.OnRefusedStop
	s.mu.Lock()
	s.refused = refused // before the launcher hears of it and releases the machine
	s.mu.Unlock()
	s.launcher.put(reply{Outcome: a})
	if refused {
		return &refusedError{a}
	}
	return context.Cause(s.ctx)
}

// refusedError ends a machine whose first attestation was refused.
type refusedError struct{ a *Outcome }

func (e *refusedError) Error() string { return "the first attestation was refused" }
