package machine

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/launch/process"
)

// A child is a process of the supervisor's.
type child struct {
	process.Process
	log    *boundedLog // what it says on its standard error
	exited chan struct{}
	state  *os.ProcessState // once it has exited
}

// spawnChild starts a process whose standard output and error go to a log.
func (s *supervisor) spawnChild(name string, cmd *exec.Cmd, log *boundedLog) (*child, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = w, w
	err = s.spawner.Start(cmd)
	w.Close()
	if err != nil {
		r.Close()
		return nil, err
	}
	c := &child{log: log, exited: make(chan struct{})}
	// A process that has ended already is a zombie, which still has its times.
	if c.Process, err = process.Describe(name, cmd.Process.Pid); err != nil {
		c.Process = process.Process{Name: name, PID: cmd.Process.Pid}
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(log, r)
	}()
	go func() {
		_ = cmd.Wait() // the state says it all
		c.state = cmd.ProcessState
		// What it said last is on its way. Somebody else who has the pipe must
		// not hold us up.
		select {
		case <-copied:
		case <-time.After(200 * time.Millisecond):
		}
		r.Close()
		close(c.exited)
	}()
	return c, nil
}

// kill ends the process and its group, and waits until it is gone.
func (c *child) kill() {
	select {
	case <-c.exited:
	default:
		// Not yet waited for: the number is still this process's.
		_ = unix.Kill(-c.PID, unix.SIGKILL)
	}
	<-c.exited
}

// clean reports whether the process has ended with exit code 0.
func (c *child) clean() bool {
	select {
	case <-c.exited:
		return c.state != nil && c.state.Success()
	default:
		return false
	}
}

// lacksSandbox reports whether a QEMU ended because it knows no -sandbox.
func (c *child) lacksSandbox() bool {
	select {
	case <-c.exited:
		return bytes.Contains(c.log.last(4096), []byte("sandbox"))
	default:
		return false
	}
}

// explain adds to an error how the process ended and what it said last. It
// waits a moment for the process's end: its sockets close a little earlier.
func (c *child) explain(err error) error {
	select {
	case <-c.exited:
	case <-time.After(500 * time.Millisecond):
	}
	said := strings.TrimSpace(string(c.log.last(2048)))
	select {
	case <-c.exited:
		err = &endedError{name: c.Name, state: fmt.Sprint(c.state), said: said}
	default:
		if said != "" {
			err = fmt.Errorf("%w; %s said: %s", err, c.Name, said)
		}
	}
	return err
}

// An endedError says how a process ended that should not have.
type endedError struct{ name, state, said string }

func (e *endedError) Error() string {
	if e.said == "" {
		return fmt.Sprintf("%s ended: %s", e.name, e.state)
	}
	return fmt.Sprintf("%s ended: %s: %s", e.name, e.state, e.said)
}
