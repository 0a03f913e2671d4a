//go:build unix

package attest

import (
	"errors"
	"os"
	"syscall"
)

// tryLock takes the lock of an open file, which closing it gives back.
func tryLock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EINTR) {
		return errLocked
	}
	return err
}
