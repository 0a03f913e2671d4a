package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Describe describes a process that is running now.
func Describe(name string, pid int) (Process, error) {
	start, _, err := startTime(pid)
	return Process{Name: name, PID: pid, Start: start}, err
}

// startTime reads when a process started, and whether it still runs: a zombie
// does not.
func startTime(pid int) (start uint64, runs bool, err error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false, err
	}
	// The second field is the name in parentheses, which can hold anything.
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	const state, starttime = 0, 19 // fields 3 and 22 of proc_pid_stat(5)
	if len(fields) <= starttime {
		return 0, false, fmt.Errorf("process %d: unexpected contents of its stat file", pid)
	}
	start, err = strconv.ParseUint(string(fields[starttime]), 10, 64)
	return start, fields[state][0] != 'Z' && fields[state][0] != 'X', err
}

// alive reports whether the process itself, not a later one of its number, runs.
func (p Process) alive() bool {
	if p.PID <= 0 {
		return false
	}
	start, runs, err := startTime(p.PID)
	return err == nil && runs && start == p.Start
}

// Kill ends the process and waits until it is gone. A process that is gone
// already, or that only has its number, is left alone.
func (p Process) Kill(wait time.Duration) error {
	if p.PID <= 1 {
		return nil
	}
	// The descriptor is taken first: from here on it means one process, and the
	// start time says whether that is ours.
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if !p.alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process %d: %w", p.PID, err)
	}
	deadline := time.Now().Add(wait)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("process %d (%s) does not end", p.PID, p.Name)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("process %d: %w", p.PID, err)
		}
		if n > 0 {
			return nil
		}
	}
}

// OfThread describes the process that a thread belongs to.
func OfThread(name string, thread int) (Process, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(thread) + "/status")
	if err != nil {
		return Process{}, err
	}
	for line := range bytes.Lines(data) {
		if value, ok := bytes.CutPrefix(line, []byte("Tgid:")); ok {
			pid, err := strconv.Atoi(string(bytes.TrimSpace(value)))
			if err != nil {
				return Process{}, fmt.Errorf("thread %d: %w", thread, err)
			}
			return Describe(name, pid)
		}
	}
	return Process{}, fmt.Errorf("thread %d: found no process that it belongs to", thread)
}

// HasArg reports whether an argument is one of the process's command line.
func (p Process) HasArg(arg string) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/cmdline")
	if err != nil {
		return false
	}
	for a := range bytes.SplitSeq(data, []byte{0}) {
		if string(a) == arg {
			return true
		}
	}
	return false
}

// FindArg finds a process that has an argument in its command line.
func FindArg(name, arg string) (Process, bool) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return Process{}, false
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, err := Describe(name, pid); err == nil && p.HasArg(arg) {
			return p, true
		}
	}
	return Process{}, false
}

// Wait returns when the process has ended.
func (p Process) Wait() {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	for p.alive() {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
