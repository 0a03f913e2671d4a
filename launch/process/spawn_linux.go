package process

import (
	"errors"
	"os/exec"
	"runtime"
	"syscall"
)

// A Spawner starts processes that cannot outlive this one: the kernel kills them
// when it ends, however it ends.
//
// The kernel's rule (prctl(2), PR_SET_PDEATHSIG) is about the thread that made
// the child, not about the process. So one goroutine, on a thread of its own
// that it never leaves, makes them all.
type Spawner struct {
	requests chan spawnRequest
}

type spawnRequest struct {
	cmd  *exec.Cmd
	done chan error
}

// NewSpawner starts the thread. It runs until Close, which must wait for the
// children's end: they die with it.
func NewSpawner() *Spawner {
	s := &Spawner{requests: make(chan spawnRequest)}
	go s.run()
	return s
}

// run makes the children that are asked for, until Close.
func (s *Spawner) run() {
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
	if syscall.Gettid() == syscall.Getpid() {
		// The process's first thread alone does not end: the runtime parks it, and
		// what it made would live on. While it is held here, another goroutine
		// gets another thread.
		taken := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(taken)
			s.serve()
		}()
		<-taken
		runtime.UnlockOSThread()
		return
	}
	s.serve()
}

func (s *Spawner) serve() {
	for r := range s.requests {
		r.done <- r.cmd.Start()
	}
}

// Start starts cmd in a process group of its own.
func (s *Spawner) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr != nil {
		return errors.New("process attributes are the spawner's")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	r := spawnRequest{cmd: cmd, done: make(chan error, 1)}
	s.requests <- r
	return <-r.done
}

// Close ends the thread, and with it every child that still runs.
func (s *Spawner) Close() { close(s.requests) }
