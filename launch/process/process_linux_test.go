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
		t.Fatalf("sleep does not start: %v", err)
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
// with the process. Many at once, so that one of them meets the process's first
// thread, which the runtime never ends.
func TestSpawnerChildrenDieWithIt(t *testing.T) {
	var spawners [32]*Spawner
	var children [32]*exec.Cmd
	for i := range spawners {
		spawners[i], children[i] = NewSpawner(), exec.Command("sleep", "60")
		if err := spawners[i].Start(children[i]); err != nil {
			t.Fatalf("sleep does not start: %v", err)
		}
		t.Cleanup(func() { children[i].Process.Kill() })
		pid := children[i].Process.Pid
		if pgid, err := syscall.Getpgid(pid); err != nil || pgid != pid {
			t.Errorf("process group %d, %v, expected its own", pgid, err)
		}
	}
	runtime.GC() // nothing holds a thread but its goroutine
	time.Sleep(50 * time.Millisecond)
	ended := make(chan error, len(children))
	for i, cmd := range children {
		if p, err := Describe("", cmd.Process.Pid); err != nil || !p.alive() {
			t.Fatalf("a child ended by itself, %v", err)
		}
		go func() { ended <- cmd.Wait() }()
		spawners[i].Close()
	}
	deadline := time.After(10 * time.Second)
	for i := range children {
		select {
		case err := <-ended:
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Errorf("ended by %v, expected SIGKILL", err)
			}
		case <-deadline:
			t.Fatalf("%d children outlive their threads", len(children)-i)
		}
	}
}

// TestSpawnerKeepsItsAttributes: a command that would undo this is refused.
func TestSpawnerKeepsItsAttributes(t *testing.T) {
	s := NewSpawner()
	defer s.Close()
	if err := s.Start(&exec.Cmd{SysProcAttr: &syscall.SysProcAttr{}}); err == nil {
		t.Error("attributes that would undo this are accepted")
	}
}
