package snpsim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/evtpm/evtpm/wholefile"
)

// makePrivate makes a directory of this user's alone; one that is there must be.
func makePrivate(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s: found a file, expected a directory", dir)
	}
	return checkPrivate(dir, info)
}

// writeFile writes a file of mode 0600 whole or not at all, for good.
func writeFile(path string, data []byte) error {
	if err := wholefile.WriteBytes(path, 0o600, data); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes names in a directory last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
