package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/launch/launchtest"
)

// TestI13Sealed: nobody can change a copy, neither through our descriptor nor by
// opening it anew, as QEMU does; and reading it by its path gives what was hashed.
func TestI13Sealed(t *testing.T) {
	path := launchtest.Write(t, filepath.Join(t.TempDir(), "in"), []byte("contents"))
	in, err := openInput(t.Context(), "kernel", path, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := in.File.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("write: found %v, expected EPERM", err)
	}
	for _, size := range []int64{0, 100} {
		if err := in.File.Truncate(size); !errors.Is(err, unix.EPERM) {
			t.Errorf("truncate to %d: found %v, expected EPERM", size, err)
		}
	}
	if _, err := unix.Mmap(int(in.File.Fd()), 0, 8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); !errors.Is(err, unix.EPERM) {
		t.Errorf("shared writable mapping: found %v, expected EPERM", err)
	}
	self := fmt.Sprintf("/proc/self/fd/%d", in.File.Fd())
	if f, err := os.OpenFile(self, os.O_RDWR, 0); err == nil {
		if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("write after opening anew: found %v, expected EPERM", err)
		}
		f.Close()
	}
	if _, err := unix.FcntlInt(in.File.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE); !errors.Is(err, unix.EPERM) {
		t.Errorf("more seals: found %v, expected EPERM", err)
	}
	got, err := os.ReadFile(self)
	if err != nil || string(got) != "contents" {
		t.Errorf("found %q and %v, expected the contents", got, err)
	}
	if err := checkSealed(in.File); err != nil {
		t.Error(err)
	}
	flags, err := unix.FcntlInt(in.File.Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("found descriptor flags %#x and %v, expected close-on-exec", flags, err)
	}
}

// TestCheckSealed: files that could change are told apart.
func TestCheckSealed(t *testing.T) {
	regular, err := os.Open(launchtest.Write(t, filepath.Join(t.TempDir(), "a"), []byte("x")))
	if err != nil {
		t.Fatal(err)
	}
	defer regular.Close()
	open, err := newCopy("a")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if _, err := unix.FcntlInt(open.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]*os.File{"regular file": regular, "half sealed": open} {
		if err := checkSealed(f); !errors.Is(err, ErrNotSealed) {
			t.Errorf("%s: found %v, expected ErrNotSealed", name, err)
		}
	}
}

// TestI01Special: pipes and devices end at once.
func TestI01Special(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, "/dev/zero"} {
		done := make(chan error, 1)
		go func() {
			_, err := openInput(t.Context(), "kernel", path, 1<<20)
			done <- err
		}()
		select {
		case err := <-done:
			if err == nil {
				t.Errorf("%s: found no error", path)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: still waiting", path)
		}
	}
}
