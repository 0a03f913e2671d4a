// Package peak measures the memory of programs, for benchmarks.
package peak

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// Memory runs a program whose last act is to print, into a pipe that is full,
// and reads its peak memory while it waits there: what wait4 says of a child
// includes the memory of the process that started it.
func Memory(args []string) (int64, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	defer w.Close()
	if err := fill(w); err != nil {
		return 0, err
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	time.Sleep(500 * time.Millisecond)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	err = errors.Join(err, w.Close())
	go func() {
		for buf := make([]byte, 1<<16); ; {
			if _, err := r.Read(buf); err != nil {
				return
			}
		}
	}()
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return 0, err
	}
	for _, line := range bytes.Split(status, []byte("\n")) {
		if f := bytes.Fields(line); len(f) == 3 && string(f[0]) == "VmHWM:" {
			kib, err := strconv.ParseInt(string(f[1]), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("peak memory: the program had ended before it was looked at")
}

// fill writes to a pipe until it is full.
func fill(w *os.File) error {
	raw, err := w.SyscallConn()
	if err != nil {
		return err
	}
	page := make([]byte, 4096)
	var failed error
	err = raw.Control(func(fd uintptr) {
		if failed = syscall.SetNonblock(int(fd), true); failed != nil {
			return
		}
		for failed == nil {
			_, failed = syscall.Write(int(fd), page)
		}
		if errors.Is(failed, syscall.EAGAIN) {
			failed = syscall.SetNonblock(int(fd), false)
		}
	})
	return errors.Join(err, failed)
}
