package launch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"
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
	if s.qemu != nil {
		s.endQEMU()
	}
	if s.mon != nil {
		s.mon.Close()
	}
	if s.consoleIO != nil {
		s.consoleIO.Close()
	}
	if s.platform != nil {
		s.platform.close()
	}
	// The thread must outlive the children that it made; by now there are none.
	s.spawner.close()
	for _, name := range []string{sockAgent, sockQMP} {
		os.Remove(filepath.Join(s.claim.dir, name))
	}
}

// endQEMU lets QEMU write what it holds of disks, then kills it.
func (s *supervisor) endQEMU() {
	if s.mon != nil {
		ctx, cancel := context.WithTimeout(context.Background(), quitTimeout)
		defer cancel()
		if s.mon.Quit(ctx) == nil {
			select {
			case <-s.qemu.exited:
			case <-ctx.Done():
			}
		}
	}
	s.qemu.kill()
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
