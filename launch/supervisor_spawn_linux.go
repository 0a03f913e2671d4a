package launch

import (
	"errors"
	"os/exec"
	"runtime"
	"syscall"
)

// A spawner starts processes that cannot outlive this one: the kernel kills them
// when it ends, however it ends.
//
// The kernel's rule (prctl(2), PR_SET_PDEATHSIG) is about the thread that made
// the child, not about the process. So one goroutine, on a thread of its own
// that it never leaves, makes them all.
type spawner struct {
	requests chan spawnRequest
}

type spawnRequest struct {
	cmd  *exec.Cmd
	done chan error
}

// newSpawner starts the thread. It runs until close, which must wait for the
// children's end: they die with it.
func newSpawner() *spawner {
	s := &spawner{requests: make(chan spawnRequest)}
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		for r := range s.requests {
			r.done <- r.cmd.Start()
		}
	}()
	return s
}

// start starts cmd in a process group of its own.
func (s *spawner) start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr != nil {
		return errors.New("process attributes are the spawner's")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	r := spawnRequest{cmd: cmd, done: make(chan error, 1)}
	s.requests <- r
	return <-r.done
}

func (s *spawner) close() { close(s.requests) }
