package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/evtpm/evtpm/launch"
)

// Deadlines of a machine's end.
const (
	quitTimeout  = 2 * time.Second
	replyTimeout = 5 * time.Second
)

// finish ends everything, says how it ended, and leaves the folder as it should
// be: gone when the launch failed, with its records when the machine was on its
// own or was refused.
func (s *supervisor) finish(cause error) {
	s.cancel(cause)
	var refused *refusedError
	isRefused := errors.As(cause, &refused)
	s.mu.Lock()
	keep := s.released || isRefused
	s.finishing, s.refused = true, isRefused
	s.mu.Unlock()

	s.teardown()
	if s.restarts(cause) {
		err := s.succeed()
		if err == nil {
			return
		}
		cause = s.failed(PhaseRun, fmt.Errorf("the guest was reset, and could not be started anew: %w", err))
	}
	state, reason := endState(cause)
	s.update(func(r *Record) {
		r.Running, r.Processes = false, nil
		r.State, r.Reason = state, reason
		if state == StateFailed {
			r.Class = toWire(cause).Class
		}
	})
	if keep && s.record.Schema != "" {
		s.emit(Event{Kind: EventState, State: state, Message: reason})
		_ = s.write()
	}
	close(s.ended)
	if isRefused {
		// The launcher says whether the records stay.
		<-s.launcherDone
		s.mu.Lock()
		keep = s.released
		s.mu.Unlock()
	}
	if s.control != nil {
		s.control.Close()
	}
	// Those who watch the console end with it.
	for _, l := range []*boundedLog{s.console, s.qemuLog} {
		if l != nil {
			l.Close()
		}
	}
	waitFor(&s.serving, replyTimeout)
	if s.events != nil {
		s.events.Close()
	}
	if keep {
		os.Remove(filepath.Join(s.claim.dir, sockControl))
	} else {
		_ = s.claim.clear() // the launcher, who holds the lock too, removes the rest
	}
	if !isRefused && !keep {
		s.launcher.put(reply{Error: toWire(cause)})
	}
	s.launcher.close()
	if !keep {
		_ = s.claim.remove()
	}
}

// restarts reports whether the machine goes on with another VM.
func (s *supervisor) restarts(cause error) bool {
	for _, over := range []error{errStopped, errTerminated, errLauncherGone} {
		if errors.Is(cause, over) {
			return false
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.released && s.record.State != StateStopping && s.plan.Spec.OnReset == launch.OnResetRestart && isReset(s.shutdown)
}

// isReset reports whether QEMU ended because its guest was to start again.
func isReset(cause string) bool {
	switch cause {
	case "guest-reset", "host-qmp-system-reset", "subsystem-reset":
		return true
	}
	return false
}

// succeed starts a supervisor for the guest's next boot, which takes over the
// folder and the plan. A fresh process has nothing of the boot before.
func (s *supervisor) succeed() error {
	next := *s.job
	next.Boots = s.snapshot().Boots
	s.emit(Event{Kind: EventState, State: StateNotAttested, Message: "the guest was reset: its vTPM is gone, and another is made"})
	if s.control != nil {
		s.control.Close()
	}
	_, files, err := s.plan.Handover()
	if err != nil {
		return err
	}
	conn, cmd, err := spawnSupervisor(next.Supervise, s.claim, files)
	if err != nil {
		return err
	}
	defer conn.Close()
	err = conn.send(next)
	if err == nil {
		err = conn.SetReadDeadline(time.Now().Add(closeTimeout))
	}
	if err == nil {
		err = conn.receive(new(reply), maxReply)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	return err
}

// endState is the state that a cause leaves a machine in.
func endState(cause error) (State, string) {
	var refused *refusedError
	var ended *vmEndedError
	switch {
	case errors.As(cause, &refused):
		return StateRefused, cause.Error()
	case errors.Is(cause, errStopped), errors.Is(cause, errTerminated):
		return StateStopped, cause.Error()
	case errors.As(cause, &ended) && ended.clean:
		return StateStopped, cause.Error()
	}
	return StateFailed, cause.Error()
}

// teardown ends every process and removes what only they used.
func (s *supervisor) teardown() {
	s.vm.end()
	if s.consoleIO != nil {
		s.consoleIO.Close()
	}
	if s.platform != nil {
		s.platform.close()
	}
	// The thread must outlive the children that it made; by now there are none.
	s.spawner.Close()
	for _, name := range []string{sockAgent, sockQMP} {
		os.Remove(filepath.Join(s.claim.dir, name))
	}
}

// waitFor waits for a group, but not for ever.
func waitFor(wg interface{ Wait() }, d time.Duration) {
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(d):
	}
}
