package process

import (
	"errors"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// sleeper starts a process that does nothing.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Skip("sleep is not installed")
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

// TestL13_RecycledPID: a process of the same number that started at another time
// is a stranger, and is never killed.
func TestL13_RecycledPID(t *testing.T) {
	cmd := sleeper(t)
	p, err := Describe("sleep", cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	stranger := p
	stranger.Start++
	if stranger.alive() {
		t.Error("a stranger is taken for the process")
	}
	if err := stranger.Kill(time.Second); err != nil {
		t.Error(err)
	}
	if !p.alive() {
		t.Fatal("a stranger was killed")
	}
	go cmd.Wait()
	if err := p.Kill(5 * time.Second); err != nil {
		t.Error(err)
	}
	if p.alive() {
		t.Error("the process lives after it was killed")
	}
	if err := p.Kill(time.Second); err != nil {
		t.Errorf("killing what is gone: %v", err)
	}
	for _, p := range []Process{{}, {PID: 1}, {PID: -5}} {
		if err := p.Kill(time.Millisecond); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
}

// TestSpawnerChildrenDieWithIt: a child dies with the thread that made it, and so
// with the process.
func TestSpawnerChildrenDieWithIt(t *testing.T) {
	s := NewSpawner()
	cmd := exec.Command("sleep", "60")
	if err := s.Start(cmd); err != nil {
		t.Skip("sleep is not installed")
	}
	if pgid, err := syscall.Getpgid(cmd.Process.Pid); err != nil || pgid != cmd.Process.Pid {
		t.Errorf("process group %d, %v, expected its own", pgid, err)
	}
	runtime.GC() // nothing holds the thread but its goroutine
	time.Sleep(50 * time.Millisecond)
	if p, err := Describe("", cmd.Process.Pid); err != nil || !p.alive() {
		t.Fatalf("the child ended by itself, %v", err)
	}
	s.Close()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Errorf("ended by %v, expected SIGKILL", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the child outlives its thread")
	}
	if err := s2start(&exec.Cmd{SysProcAttr: &syscall.SysProcAttr{}}); err == nil {
		t.Error("attributes that would undo this are accepted")
	}
}

func s2start(cmd *exec.Cmd) error {
	s := NewSpawner()
	defer s.Close()
	return s.Start(cmd)
}
