//go:build unix

package launch

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// checkOwner refuses a file that everybody can write, or that belongs to somebody
// else than its reader and root.
func checkOwner(path string, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("%s: %w: found mode %v, expected one that others cannot write (chmod o-w)", path, ErrUntrustedFile, fs.FileMode(info.Mode().Perm()))
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if self := os.Geteuid(); ok && st.Uid != 0 && int(st.Uid) != self {
		return fmt.Errorf("%s: %w: found owner %d, expected %d or root", path, ErrUntrustedFile, st.Uid, self)
	}
	return nil
}
