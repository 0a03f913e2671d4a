//go:build unix

package attest

import (
	"errors"
	"os"
	"syscall"
)

// tryLock takes the lock of an open file, which closing it gives back.
func tryLock(f *os.File) error {
	return lockOutcome(syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB))
}

// lockOutcome is errLocked where another try may do: another process holds the
// lock, or a signal came while a file system in the network was asked for it.
func lockOutcome(err error) error {
	if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EINTR) {
		return errLocked
	}
	return err
}
