//go:build unix

package attest

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
)

// A lock that another process holds, or a call that a signal interrupted, is
// tried again; anything else ends the wait. No file system at hand interrupts a
// call that does not wait, so the outcomes are given here.
func TestLockOutcome(t *testing.T) {
	for _, err := range []error{syscall.EWOULDBLOCK, syscall.EAGAIN, syscall.EINTR, os.NewSyscallError("flock", syscall.EINTR)} {
		if got := lockOutcome(err); !errors.Is(got, errLocked) {
			t.Errorf("%v: found %v, expected another try", err, got)
		}
	}
	for _, err := range []error{nil, syscall.ENOLCK, syscall.EBADF, syscall.ENOTSUP, fmt.Errorf("lock")} {
		if got := lockOutcome(err); !errors.Is(got, err) || errors.Is(got, errLocked) {
			t.Errorf("%v: found %v, expected the same", err, got)
		}
	}
}
