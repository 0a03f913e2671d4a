package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/qmp"
)

// start starts QEMU, stopped before its first instruction.
func (s *supervisor) start(ctx context.Context) (string, error) {
	tpm, err := s.platform.prepare(ctx)
	if err != nil {
		return "", err
	}
	if err := s.startQEMU(ctx, tpm); err != nil {
		return "", err
	}
	go s.watchEvents()
	return "QEMU " + s.monitor().Version().String(), nil
}

// startQEMU starts QEMU and waits for its greeting.
func (s *supervisor) startQEMU(ctx context.Context, tpm string) error {
	var sandboxErr error
	for _, noSandbox := range []bool{false, true} {
		q, conn, err := s.spawnQEMU(tpm, noSandbox)
		if err != nil {
			return err
		}
		s.qemu = q
		s.noteChild(q.Process)
		s.update(func(r *Record) { r.Running = true })
		// QEMU's end closes its side of the pair, so a QEMU that dies is noticed
		// at once and not when the deadline comes.
		mon, err := qmp.NewClient(ctx, conn)
		if err == nil {
			s.mu.Lock()
			s.mon = mon
			s.mu.Unlock()
			go s.watchQEMU(q)
			return nil
		}
		err = q.explain(err)
		q.kill()
		if !noSandbox && q.lacksSandbox() {
			s.emit(Event{Kind: EventWarning, Message: "this QEMU was built without sandbox support; it runs without"})
			sandboxErr = err
			continue
		}
		return errors.Join(sandboxErr, err)
	}
	return sandboxErr
}

// spawnQEMU starts a QEMU process.
func (s *supervisor) spawnQEMU(tpm string, noSandbox bool) (_ *child, monitor net.Conn, err error) {
	var open []io.Closer
	defer func() {
		if err != nil {
			for _, c := range open {
				c.Close()
			}
		}
	}()
	var files []*os.File
	pass := func(f *os.File) int {
		files = append(files, f)
		return 2 + len(files)
	}
	o := QEMUOptions{Dir: s.claim.dir, TPM: tpm, NoSandbox: noSandbox}
	o.File = func(in *Input) string { return fmt.Sprintf("/proc/self/fd/%d", pass(in.File)) }
	theirs := []*os.File{}
	pair := func(name string) (net.Conn, string, error) {
		conn, other, err := socketPair(name)
		if err != nil {
			return nil, "", err
		}
		open = append(open, conn)
		theirs = append(theirs, other)
		return conn, fmt.Sprintf("socket,fd=%d", pass(other)), nil
	}
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	if monitor, o.Monitor, err = pair("monitor"); err != nil {
		return nil, nil, err
	}
	var console, svsm net.Conn
	if s.plan.Spec.Console == ConsoleLog {
		if console, o.Console, err = pair("console"); err != nil {
			return nil, nil, err
		}
	}
	if s.plan.Spec.Platform == PlatformSim {
		if svsm, o.SVSM, err = pair("svsm"); err != nil {
			return nil, nil, err
		}
	}
	if _, page, err := s.plan.HashesPage(); err != nil {
		return nil, nil, err
	} else if page != nil {
		f, err := sealedFile("kernel-hashes", page)
		if err != nil {
			return nil, nil, err
		}
		theirs = append(theirs, f)
		o.HashesPage = fmt.Sprintf("/proc/self/fd/%d", pass(f))
	}
	line, err := s.plan.QEMUCommand(o)
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(line.Binary, line.Args...)
	cmd.ExtraFiles = files
	cmd.Dir = "/"
	q, err := s.spawnChild("qemu", cmd, s.qemuLog)
	if err != nil {
		return nil, nil, err
	}
	if console != nil {
		s.mu.Lock()
		s.consoleIO = console
		s.mu.Unlock()
		go func() {
			// Ends with QEMU.
			_, _ = io.Copy(s.console, console)
			console.Close()
		}()
	}
	if svsm != nil {
		s.platform.serve(svsm)
	}
	return q, monitor, nil
}

// sealedFile makes a sealed memory file.
func sealedFile(name string, data []byte) (*os.File, error) {
	f, err := newCopy(name)
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(data); err == nil {
		err = seal(f)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// socketPair makes two connected sockets: ours, and one for a child.
func socketPair(name string) (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair for %s: %w", name, err)
	}
	other := os.NewFile(uintptr(fds[1]), name)
	ours := os.NewFile(uintptr(fds[0]), name)
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		other.Close()
		return nil, nil, fmt.Errorf("socket pair for %s: %w", name, err)
	}
	return conn, other, nil
}

// cont runs the first instruction.
func (s *supervisor) cont() error {
	ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
	defer cancel()
	return s.monitor().Cont(ctx)
}

// monitor returns the connection to QEMU's monitor; nil before there is one.
func (s *supervisor) monitor() *qmp.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mon
}

// noteChild records a process, so that a later launch can tell whether it runs.
func (s *supervisor) noteChild(p Process) {
	s.update(func(r *Record) { r.Processes = append(r.Processes, p) })
}

// watchQEMU ends the machine when QEMU ends.
func (s *supervisor) watchQEMU(q *child) {
	<-q.exited
	// What QEMU said last is on its way.
	select {
	case <-s.eventsDone:
	case <-time.After(time.Second):
	}
	s.mu.Lock()
	reason := s.shutdown
	s.mu.Unlock()
	s.cancel(&vmEndedError{err: q.explain(errVMEnded), reason: reason, clean: q.clean()})
}

var errVMEnded = errors.New("the VM ended")

// A vmEndedError says that QEMU is gone.
type vmEndedError struct {
	err    error
	reason string // QEMU's, from its SHUTDOWN event
	clean  bool
}

func (e *vmEndedError) Error() string {
	if e.clean && e.reason != "" {
		return "the VM ended: " + shutdownReason(e.reason)
	}
	return e.err.Error()
}

// shutdownReason says in words what QEMU's ShutdownCause means (qapi/run-state).
func shutdownReason(cause string) string {
	switch cause {
	case "guest-shutdown":
		return "the guest shut down"
	case "guest-reset", "host-qmp-system-reset", "subsystem-reset":
		return "the guest was reset, and its vTPM is gone; launch it again (" + cause + ")"
	case "guest-panic":
		return "the guest panicked"
	case "host-qmp-quit", "host-signal", "host-ui":
		return "QEMU was told to end by someone else (" + cause + ")"
	}
	return cause
}

// watchEvents follows what QEMU says unasked.
func (s *supervisor) watchEvents() {
	defer close(s.eventsDone)
	for e := range s.monitor().Events() {
		var data struct {
			Guest  bool   `json:"guest"`
			Reason string `json:"reason"`
			Action string `json:"action"`
		}
		_ = json.Unmarshal(e.Data, &data) // what is missing stays empty
		switch e.Name {
		case "SHUTDOWN":
			s.mu.Lock()
			s.shutdown = data.Reason
			s.mu.Unlock()
			s.emit(Event{Kind: EventVM, Message: "shutdown: " + data.Reason})
			s.lose(fmt.Errorf("the VM ended: %s", shutdownReason(data.Reason)))
		case "RESET":
			s.emit(Event{Kind: EventVM, Message: "reset: " + data.Reason})
			s.reset()
		case "GUEST_PANICKED":
			s.emit(Event{Kind: EventVM, Message: "guest panicked: " + data.Action})
			s.lose(errors.New("the guest panicked"))
			s.notAttested("the guest panicked")
		case "STOP":
			s.paused()
		case "WATCHDOG", "MEMORY_FAILURE", "BLOCK_IO_ERROR":
			s.emit(Event{Kind: EventVM, Message: e.Name})
		}
	}
}

// paused looks why the vCPUs stand still. After a fault QEMU does not end: it
// waits, for ever, for someone to look.
func (s *supervisor) paused() {
	ctx, cancel := context.WithTimeout(s.ctx, quitTimeout)
	defer cancel()
	status, err := s.monitor().QueryStatus(ctx)
	if err != nil {
		return // QEMU's end is noticed elsewhere
	}
	s.emit(Event{Kind: EventVM, Message: "paused: " + status.Status})
	switch status.Status {
	case "internal-error", "io-error", "guest-panicked", "watchdog":
		s.cancel(fmt.Errorf("QEMU stopped the VM: %s", status.Status))
	}
}
