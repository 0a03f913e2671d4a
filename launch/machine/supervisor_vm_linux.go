package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/evtpm/evtpm/launch/process"
	"github.com/evtpm/evtpm/qmp"
)

// start starts the VM, stopped before its first instruction.
func (s *supervisor) start(ctx context.Context) (string, error) {
	tpm, err := s.platform.prepare(ctx)
	if err != nil {
		return "", err
	}
	message, err := s.vm.start(ctx, tpm)
	if err != nil {
		return "", err
	}
	go s.watchEvents()
	return message + imageRuns(s.plan), s.plan.ReadBack(ctx, s.monitor(), s.vm.opened())
}

// cont runs the first instruction.
func (s *supervisor) cont() error {
	ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
	defer cancel()
	if err := s.vm.resume(ctx); err != nil {
		return err
	}
	return s.plan.CheckLaunched(ctx, s.monitor())
}

// monitor returns the way to QEMU's monitor; nil before there is one.
func (s *supervisor) monitor() monitor {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mon
}

func (s *supervisor) setMonitor(m monitor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mon = m
}

// takeConsole logs what the console says, and types on it, until it closes.
func (s *supervisor) takeConsole(console net.Conn) {
	s.mu.Lock()
	s.consoleIO = console
	s.mu.Unlock()
	go func() {
		_, _ = io.Copy(s.console, console)
		console.Close()
	}()
}

// noteChild records a process, so that a later launch can tell whether it runs.
func (s *supervisor) noteChild(p process.Process) {
	s.update(func(r *Record) { r.Processes = append(r.Processes, p) })
}

// hasShutDown reports whether QEMU has said that it ends, and why.
func (s *supervisor) hasShutDown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shutdown != ""
}

// vmEnded ends the machine: its VM is gone. clean says that it ended in order.
func (s *supervisor) vmEnded(err error, clean bool) {
	// What QEMU said last is on its way.
	select {
	case <-s.eventsDone:
	case <-time.After(time.Second):
	}
	s.mu.Lock()
	reason := s.shutdown
	s.mu.Unlock()
	s.cancel(&vmEndedError{err: err, reason: reason, clean: clean})
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
			first := s.shutdown == ""
			if first {
				s.shutdown = data.Reason
			}
			s.mu.Unlock()
			if !first {
				continue // whoever heard the first has ended QEMU
			}
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
	status, err := qmp.Commands{Executor: s.monitor()}.QueryStatus(ctx)
	if err != nil {
		return // QEMU's end is noticed elsewhere
	}
	s.emit(Event{Kind: EventVM, Message: "paused: " + status.Status})
	switch status.Status {
	case "internal-error", "io-error", "guest-panicked", "watchdog":
		s.cancel(fmt.Errorf("QEMU stopped the VM: %s", status.Status))
	}
}
