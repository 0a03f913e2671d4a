// Package wholefile writes files whole or not at all, for those that others read
// at any time: registries, caches, lock files, evidence.
package wholefile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Write writes the file at path, with the mode, out of what write writes. A
// reader, and a power cut, find the old contents or the new, never a part. After
// an error, be it write's, the old contents are there still and nothing else is
// left behind.
func Write(path string, mode fs.FileMode, write func(io.Writer) error) error {
	// In the same folder: a rename must not cross file systems.
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	err = errors.Join(write(tmp), tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// WriteBytes is [Write] of bytes that are at hand.
func WriteBytes(path string, mode fs.FileMode, data []byte) error {
	return Write(path, mode, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}
