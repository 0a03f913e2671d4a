package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/libvirtd"
	"github.com/evtpm/evtpm/launch/process"
)

// StartOptions say how a machine is started.
type StartOptions struct {
	// Home is the run directory. Required.
	Home *Home
	// StateDir is a directory that outlives machines: the simulated platform's
	// root of trust, the registry of EKs. It is made when it is not there.
	// Required.
	StateDir string
	// Supervise is the command that calls [Supervise]: the program and its
	// arguments. Required.
	Supervise []string
	// Swtpm is the program that emulates the vTPM; empty is swtpm, in PATH.
	Swtpm string
	// RuntimeDir is the user's runtime directory, in which a libvirt of the
	// session listens: libvirt takes XDG_RUNTIME_DIR, else XDG_CACHE_HOME, else
	// .cache in the user's home directory. Empty: /run/user and the user's number.
	RuntimeDir string
	// Began is when the launch began; zero is now.
	Began time.Time
	// Events is called for everything that happens until the machine is
	// released, in order, from the goroutine that waits for the machine. Nil is
	// nobody.
	Events func(Event)
}

// closeTimeout is how long a supervisor may take to end everything.
const closeTimeout = 10 * time.Second

// errSilent says that the supervisor misses its own deadlines.
var errSilent = fmt.Errorf("the supervisor does not answer: %w", context.DeadlineExceeded)

// A Launch is a machine whose launch is under way. Until it is released the
// machine lives no longer than the process that launches it.
type Launch struct {
	// Name of the machine.
	Name string

	limit  time.Duration // of the first attestation
	claim  *claim
	conn   *lineConn
	cmd    *exec.Cmd
	exited chan struct{}
	events func(Event)
	phase  Phase
	silent bool // the supervisor misses its own deadlines
}

// Start starts a plan's machine and returns when its first instruction is being
// executed. The error is a *[PhaseError] or a *[BusyError]; when there is one,
// nothing of the machine is left.
func Start(ctx context.Context, plan *launch.Plan, o StartOptions) (_ *Launch, err error) {
	if o.Home == nil || o.StateDir == "" || len(o.Supervise) == 0 {
		return nil, errors.New("start: run directory, state directory and supervisor must be given")
	}
	if o.Began.IsZero() {
		o.Began = time.Now()
	}
	began := monotonic() - int64(time.Since(o.Began))
	if o.Events == nil {
		o.Events = func(Event) {}
	}
	j, files, err := makeJob(plan, o)
	if err != nil {
		return nil, &PhaseError{Phase: PhaseStart, Class: classOf(err), Err: err}
	}
	j.Began = began
	c, err := o.Home.claim(plan.Name)
	if err != nil {
		var busy *BusyError
		if errors.As(err, &busy) {
			return nil, err
		}
		return nil, &PhaseError{Phase: PhaseStart, Class: attest.ClassLaunch, Err: err}
	}
	t := plan.Spec.Timeouts
	l := &Launch{Name: plan.Name, limit: time.Duration(t.Boot+t.Attest) + closeTimeout, claim: c, events: o.Events, phase: PhaseStart, exited: make(chan struct{})}
	if err := cleanClaim(c); err != nil {
		return nil, errors.Join(&PhaseError{Phase: PhaseStart, Class: attest.ClassLaunch, Err: err}, c.release())
	}
	if l.conn, l.cmd, err = spawnSupervisor(o.Supervise, c, files); err != nil {
		return nil, errors.Join(&PhaseError{Phase: PhaseStart, Class: attest.ClassLaunch, Err: err}, c.remove())
	}
	go func() {
		_ = l.cmd.Wait() // what matters it has said by then
		close(l.exited)
	}()
	if err := l.conn.send(j); err != nil {
		return nil, l.abandon(fmt.Errorf("supervisor: %w", err))
	}
	// The supervisor keeps the deadlines. This one is for a supervisor that does
	// not.
	bound, cancel := context.WithTimeoutCause(ctx, time.Duration(plan.Spec.Timeouts.Start)+closeTimeout, errSilent)
	defer cancel()
	for runs := false; !runs; {
		r, err := l.next(bound)
		if err != nil {
			return nil, l.abandon(err)
		}
		runs = r.Record != nil
	}
	return l, nil
}

// makeJob prepares what the supervisor is given.
func makeJob(plan *launch.Plan, o StartOptions) (*job, []*os.File, error) {
	if err := plan.Spec.CheckLibvirt(os.Geteuid()); err != nil {
		return nil, nil, &classedError{class: attest.ClassMisuse, err: err}
	}
	data, files, err := plan.Handover()
	if err != nil {
		return nil, nil, err
	}
	// The programs are looked for here, where the user's PATH is.
	if plan.Spec.Backend == launch.BackendQEMU {
		if _, err := exec.LookPath(plan.Spec.QEMU.Binary); err != nil {
			return nil, nil, missing(err, "qemu-system-x86")
		}
	}
	if o.RuntimeDir == "" {
		o.RuntimeDir = libvirtd.DefaultRuntimeDir()
	}
	j := &job{Schema: jobSchema, Plan: data, Files: len(files), StateDir: o.StateDir, RuntimeDir: o.RuntimeDir, Supervise: o.Supervise}
	if plan.Spec.Platform == launch.PlatformSim {
		if o.Swtpm == "" {
			o.Swtpm = "swtpm"
		}
		if j.Swtpm, err = exec.LookPath(o.Swtpm); err != nil {
			return nil, nil, missing(err, "swtpm")
		}
	}
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("state directory: %w", err)
	}
	return j, files, nil
}

// missing says what to do about a program that is not there.
func missing(err error, debian string) error {
	return &classedError{class: attest.ClassHostNotCapable,
		err: fmt.Errorf("%w; on Debian: apt install %s; see also: evtpm doctor", err, debian)}
}

func classOf(err error) attest.Class {
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return attest.Class(coded.ExitCode())
	}
	return attest.ClassLaunch
}

// spawnSupervisor starts a supervisor in a session of its own: what a terminal
// sends to this process's group does not reach it.
func spawnSupervisor(argv []string, c *claim, files []*os.File) (*lineConn, *exec.Cmd, error) {
	ours, theirs, err := process.SocketPair("supervisor")
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	log, err := os.OpenFile(filepath.Join(c.dir, fileSuper), os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		ours.Close()
		return nil, nil, err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = append([]*os.File{theirs, c.lock}, files...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, nil, fmt.Errorf("supervisor: %w", err)
	}
	return newLineConn(ours), cmd, nil
}

// next returns the next reply that is not an event.
func (l *Launch) next(ctx context.Context) (*reply, error) {
	stop := context.AfterFunc(ctx, func() { _ = l.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		r := new(reply)
		err := l.conn.receive(r, maxReply)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil:
			return nil, l.broken(err)
		case r.Error != nil:
			return nil, r.Error.error()
		case r.Event != nil:
			if r.Event.Kind == EventPhase {
				l.phase = r.Event.Phase.next()
			}
			l.events(*r.Event)
			continue
		}
		return r, nil
	}
}

// broken explains a supervisor that ended without a word.
func (l *Launch) broken(err error) error {
	select {
	case <-l.exited:
		err = fmt.Errorf("the supervisor ended: %v", l.cmd.ProcessState)
	case <-time.After(time.Second):
		err = fmt.Errorf("supervisor: %w", err)
	}
	if said, e := inputfile.Read(filepath.Join(l.claim.dir, fileSuper), maxRecord); e == nil && len(said) > 0 {
		err = fmt.Errorf("%w: %s", err, said[:min(len(said), 4096)])
	}
	return err
}

// FirstAttestation waits for the verdict on the first attestation. When the
// error is not nil, nothing of the machine is left. A machine that was refused
// has been ended, unless its spec keeps it; its records stay if it is released.
func (l *Launch) FirstAttestation(ctx context.Context) (*Outcome, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, l.limit, errSilent)
	defer cancel()
	for {
		r, err := l.next(ctx)
		if err != nil {
			return nil, l.abandon(err)
		}
		if r.Outcome != nil {
			return r.Outcome, nil
		}
	}
}

// Release leaves the machine on its own: it lives on when this process ends.
func (l *Launch) Release(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, closeTimeout, errSilent)
	defer cancel()
	if err := l.conn.send(request{Op: opRelease}); err != nil {
		return l.abandon(fmt.Errorf("supervisor: %w", err))
	}
	for {
		r, err := l.next(ctx)
		if err != nil {
			return l.abandon(err)
		}
		if r.Done {
			if r.Record != nil && !r.Record.Running {
				// It was refused and ended: what comes next shall find it so.
				select {
				case <-l.exited:
				case <-ctx.Done():
				}
			}
			c := l.claim
			l.claim = nil
			return errors.Join(l.conn.Close(), c.release())
		}
	}
}

// Close ends the machine and removes everything of it, records included. Nothing
// happens after Release, or after an error.
func (l *Launch) Close() error {
	if l.claim == nil {
		return nil
	}
	return l.end()
}

// abandon ends a launch that failed, and makes a PhaseError of the reason.
func (l *Launch) abandon(err error) error {
	var pe *PhaseError
	l.silent = errors.Is(err, errSilent)
	if !errors.As(err, &pe) {
		class := classOf(err)
		if errors.Is(err, context.DeadlineExceeded) {
			class = attest.ClassTimeout
		}
		err = &PhaseError{Phase: l.phase, Class: class, Err: err}
	}
	return errors.Join(err, l.end())
}

// end has the supervisor end everything, or ends the supervisor, with which
// everything ends; then removes what is left.
func (l *Launch) end() error {
	l.conn.Close()
	patience := closeTimeout
	if l.silent {
		patience = time.Second
	}
	select {
	case <-l.exited:
	case <-time.After(patience):
		_ = l.cmd.Process.Kill()
		<-l.exited
	}
	c := l.claim
	l.claim = nil
	if !sameFile(c.lock) {
		return c.release() // the supervisor has removed it
	}
	return errors.Join(cleanClaim(c), c.remove())
}
