//go:build !linux

package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// newCopy makes an empty temporary file, nameless where the system has such.
// VMs are launched on Linux alone; elsewhere a plan is only measured.
func newCopy(name string) (*os.File, error) {
	f, err := os.CreateTemp("", "evtpm-"+name+"-*")
	if err != nil {
		return nil, fmt.Errorf("temporary file for a copy: %w", err)
	}
	// Where an open file cannot be removed, closeCopy removes it.
	_ = os.Remove(f.Name())
	return f, nil
}

func seal(*os.File) error { return nil }

func closeCopy(f *os.File) error {
	err := f.Close()
	if e := os.Remove(f.Name()); e != nil && !errors.Is(e, os.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

// ErrNotSealed says that a file could still be changed.
var ErrNotSealed = errors.New("not a sealed memory file")

func checkSealed(*os.File) error { return ErrNotSealed }

// view shows the contents to use.
func (in *Input) view(use func(data []byte) error) error {
	if in.File == nil {
		return fmt.Errorf("%s: %w", in.Name, os.ErrClosed)
	}
	data := make([]byte, in.Size)
	if _, err := io.ReadFull(io.NewSectionReader(in.File, 0, in.Size), data); err != nil {
		return fmt.Errorf("%s: reading the copy: %w", in.Name, err)
	}
	return use(data)
}
