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
// left behind. Errors name path, whatever the file was called when they happened.
func Write(path string, mode fs.FileMode, write func(io.Writer) error) error {
	// In the same folder: a rename must not cross file systems.
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return named(path, err)
	}
	err = errors.Join(write(namedWriter{tmp, path}), named(path, tmp.Chmod(mode)), named(path, tmp.Sync()), named(path, tmp.Close()))
	if err == nil {
		err = named(path, os.Rename(tmp.Name(), path))
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name())) // of what is left, by its name
	}
	return nil
}

// named has an error of the file that becomes path name that.
func named(path string, err error) error {
	var e *fs.PathError
	var l *os.LinkError
	switch {
	case errors.As(err, &e):
		return &fs.PathError{Op: e.Op, Path: path, Err: e.Err}
	case errors.As(err, &l):
		return &fs.PathError{Op: "write", Path: path, Err: l.Err}
	}
	return err
}

// namedWriter writes a file that becomes path.
type namedWriter struct {
	w    io.Writer
	path string
}

func (n namedWriter) Write(p []byte) (int, error) {
	k, err := n.w.Write(p)
	return k, named(n.path, err)
}

// WriteBytes is [Write] of bytes that are at hand.
func WriteBytes(path string, mode fs.FileMode, data []byte) error {
	return Write(path, mode, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}
