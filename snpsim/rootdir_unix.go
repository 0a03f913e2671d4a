//go:build unix

package snpsim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// checkPrivate refuses what others can read or write: they could sign reports.
func checkPrivate(path string, info fs.FileInfo) error {
	want := fs.FileMode(0o600)
	if info.IsDir() {
		want = 0o700
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%s: found mode %04o, expected %04o: others could sign reports with what is in it; chmod %o %s", path, mode, want, want, path)
	}
	return nil
}

// tryLock takes the lock of an open file, which closing it gives back.
func tryLock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EINTR) {
		return errLocked
	}
	return err
}
