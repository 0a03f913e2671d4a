package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/process"
	"github.com/evtpm/evtpm/strictjson"
)

const (
	// killWait is how long a killed process may take to be gone.
	killWait = 5 * time.Second
	// statusWait is how long a supervisor may take to say how it is.
	statusWait = 2 * time.Second
	// maxRecord bounds what is read of a state file.
	maxRecord = 1 << 20
)

// ErrNoMachine is wrapped by errors about a machine that is not there.
var ErrNoMachine = errors.New("no such machine")

// record reads a machine's record as its supervisor last wrote it.
func (h *Home) record(name string) (*Record, error) {
	return readRecord(h.path(name), name)
}

func readRecord(dir, name string) (*Record, error) {
	path := filepath.Join(dir, fileMachine)
	data, err := inputfile.Read(path, maxRecord)
	if err != nil {
		return nil, err
	}
	var head struct {
		Schema string `json:"schema"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if head.Schema != RecordSchema {
		return nil, fmt.Errorf("%s: schema is %q, expected %q: another version of evtpm wrote it", path, head.Schema, RecordSchema)
	}
	r := new(Record)
	if err := strictjson.Unmarshal(data, r, maxRecord, path); err != nil {
		return nil, err
	}
	if r.Name != name {
		return nil, fmt.Errorf("%s: name is %q, expected %q", path, r.Name, name)
	}
	return r, nil
}

// Status says how a machine is. Its supervisor is asked; what is on disk counts
// only for a machine that has none any more.
func (h *Home) Status(ctx context.Context, name string) (Record, error) {
	if err := checkName(name); err != nil {
		return Record{}, err
	}
	if _, err := os.Lstat(h.path(name)); errors.Is(err, fs.ErrNotExist) {
		return Record{}, fmt.Errorf("%w: %q", ErrNoMachine, name)
	}
	held, err := h.held(name)
	if err != nil {
		return Record{}, err
	}
	if held {
		ctx, cancel := context.WithTimeout(ctx, statusWait)
		defer cancel()
		for held {
			r, err := h.ask(ctx, name, request{Op: opStatus})
			if err == nil && r.Record != nil {
				return *r.Record, nil
			}
			// It may have ended meanwhile.
			stillHeld, heldErr := h.held(name)
			if heldErr != nil {
				return Record{}, heldErr
			}
			held = stillHeld
			if held && errors.Is(err, errNoSupervisor) {
				// Being started or being removed: no socket yet, or no more.
				return Record{Schema: RecordSchema, Name: name, State: StateStarting}, nil
			}
			if !held || !errors.Is(err, errHungUp) || !pause(ctx) {
				break
			}
			// It ended while it was asked, and the guest's next boot has another.
		}
	}
	r, err := h.record(name)
	if r == nil {
		r = &Record{Schema: RecordSchema, Name: name}
	}
	switch {
	case held:
		r.State = StateUnresponsive
		r.Reason = fmt.Sprintf("supervisor %d does not answer; end it with: evtpm stop --force %s", r.Supervisor.PID, name)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		r.State, r.Reason = StateDead, err.Error()
	case err != nil || r.Running || r.State == StateStarting:
		r.State, r.Running, r.Verdict = StateDead, false, nil
		r.Reason = "its supervisor was killed; the next launch, or evtpm rm, cleans up"
	}
	return *r, nil
}

// List says how every machine is, in the order of their names.
func (h *Home) List(ctx context.Context) ([]Record, error) {
	names, err := h.names()
	if err != nil {
		return nil, err
	}
	// All at once: one that does not answer must not hold up the others.
	out := make([]Record, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			r, err := h.Status(ctx, name)
			if err != nil && !errors.Is(err, ErrNoMachine) {
				r = Record{Schema: RecordSchema, Name: name, State: StateDead, Reason: err.Error()}
			}
			out[i] = r
		})
	}
	wg.Wait()
	return slices.DeleteFunc(out, func(r Record) bool { return r.Name == "" }), nil
}

// errNoSupervisor says that nobody listens on control.sock.
var errNoSupervisor = errors.New("its supervisor does not run")

// errHungUp says that a supervisor ended while it was asked: the machine has
// ended, or another supervisor takes its place.
var errHungUp = errors.New("its supervisor hung up")

// connect connects to a machine's supervisor.
func (h *Home) connect(ctx context.Context, name string) (*lineConn, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(h.path(name)); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %q", ErrNoMachine, name)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", h.path(name, sockControl))
	if err != nil {
		return nil, fmt.Errorf("machine %q: %w", name, errNoSupervisor)
	}
	return newLineConn(conn), nil
}

// ask makes a request and returns the last reply.
func (h *Home) ask(ctx context.Context, name string, q request) (*reply, error) {
	c, err := h.connect(ctx, name)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	r := new(reply)
	err = c.send(q)
	if err == nil {
		err = c.receive(r, maxReply)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("machine %q: %w", name, context.Cause(ctx))
	case err != nil:
		return nil, fmt.Errorf("machine %q: %w: %w", name, errHungUp, err)
	}
	if r.Error != nil {
		return nil, r.Error.error()
	}
	return r, nil
}

// notRunning says how a machine is that does not run.
func (h *Home) notRunning(ctx context.Context, name string) error {
	r, err := h.Status(ctx, name)
	if err != nil {
		return err
	}
	return &classedError{class: attest.ClassLaunch, err: fmt.Errorf("machine %q does not run: %s", name, r.State)}
}

// Attest has a running machine's supervisor make a new challenge.
func (h *Home) Attest(ctx context.Context, name string) (*Outcome, error) {
	r, err := h.ask(ctx, name, request{Op: opAttest})
	if errors.Is(err, errNoSupervisor) || errors.Is(err, errHungUp) && h.ending(ctx, name) {
		err = h.notRunning(ctx, name)
	}
	if err != nil {
		return nil, err
	}
	if r.Outcome == nil {
		return nil, fmt.Errorf("machine %q: its supervisor answered something else", name)
	}
	return r.Outcome, nil
}

// Console connects to a running machine's serial console: first come the last
// 64 KiB of output, then what follows. What is written is typed.
func (h *Home) Console(ctx context.Context, name string) (net.Conn, error) {
	c, err := h.connect(ctx, name)
	if errors.Is(err, errNoSupervisor) {
		err = h.notRunning(ctx, name)
	}
	if err != nil {
		return nil, err
	}
	r := new(reply)
	if err = c.send(request{Op: opConsole}); err == nil {
		err = c.receive(r, maxReply)
	}
	if err == nil && r.Error != nil {
		err = r.Error.error()
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, c.SetDeadline(time.Time{})
}

// Stop ends a running machine: the guest is asked to shut down and given grace
// for it, such as [Record.Grace], then the VM is ended. Its records stay.
func (h *Home) Stop(ctx context.Context, name string, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, grace+closeTimeout)
	defer cancel()
	for {
		_, err := h.ask(ctx, name, request{Op: opStop, Grace: launch.Duration(grace)})
		if err == nil {
			return h.awaitFree(ctx, name)
		}
		held, heldErr := h.held(name)
		switch {
		case heldErr != nil:
			return heldErr
		case !held:
			return nil
		case !errors.Is(err, errHungUp) && !errors.Is(err, errNoSupervisor):
			return err
		}
		// It is just being started, or started anew after a reset.
		if !pause(ctx) {
			return fmt.Errorf("machine %q: %w", name, err)
		}
	}
}

// pause waits a moment. It returns false when ctx has ended.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(10 * time.Millisecond):
		return true
	}
}

// ending waits until a machine that hung up has ended. It returns false when the
// machine goes on, with another supervisor.
func (h *Home) ending(ctx context.Context, name string) bool {
	ctx, cancel := context.WithTimeout(ctx, statusWait)
	defer cancel()
	return h.awaitFree(ctx, name) == nil
}

// awaitFree waits until nobody holds a machine's folder.
func (h *Home) awaitFree(ctx context.Context, name string) error {
	for {
		held, err := h.held(name)
		if err != nil || !held {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("machine %q: its supervisor does not end: %w", name, context.Cause(ctx))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Kill ends a machine at once, whether its supervisor answers or not.
func (h *Home) Kill(ctx context.Context, name string) error {
	r, err := h.record(name)
	if err != nil {
		return fmt.Errorf("machine %q: %w", name, err)
	}
	// Its children die with it.
	if err := r.Supervisor.Kill(killWait); err != nil {
		return err
	}
	if err := r.killLeft(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	return h.awaitFree(ctx, name)
}

// Remove removes what is left of a machine that does not run.
func (h *Home) Remove(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if _, err := os.Lstat(h.path(name)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %q", ErrNoMachine, name)
	}
	c, err := h.claim(name)
	if err != nil {
		return err
	}
	return errors.Join(cleanClaim(c), c.remove())
}

// clean removes what an earlier machine of the name left: processes that should
// have died with its supervisor, and everything in the folder.
func cleanClaim(c *claim) error {
	var errs []error
	if r, err := readRecord(c.dir, filepath.Base(c.dir)); err == nil {
		errs = append(errs, r.killLeft())
	}
	return errors.Join(append(errs, c.clear())...)
}

// killLeft ends processes that should have ended with their supervisor. A
// domain's QEMU does so by libvirt's doing, if that answers.
func (r *Record) killLeft() error {
	var errs []error
	for _, p := range r.Processes {
		errs = append(errs, p.Kill(killWait))
	}
	if r.Domain != "" {
		if p, ok := process.FindArg("qemu", r.Domain); ok {
			errs = append(errs, p.Kill(killWait))
		}
	}
	return errors.Join(errs...)
}

// OpenFile opens a file of a machine's folder for reading: logs, evidence,
// verdict, golden values.
func (h *Home) OpenFile(name, file string) (io.ReadCloser, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	f, err := os.Open(h.path(name, filepath.Base(file)))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(h.path(name)); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %q", ErrNoMachine, name)
		}
	}
	return f, err
}
