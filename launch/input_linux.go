package launch

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// seals keep a copy as it is for good: neither we nor a program that inherits the
// file can change its contents or its length, or take the seals off.
const seals = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL

// newCopy makes an empty memory file.
func newCopy(name string) (*os.File, error) {
	name = "evtpm-" + name
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memory file for a copy: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func seal(f *os.File) error {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("sealing the copy: %w", err)
	}
	return nil
}

func closeCopy(f *os.File) error { return f.Close() }

// ErrNotSealed says that a file could still be changed.
var ErrNotSealed = errors.New("not a sealed memory file")

// checkSealed refuses a file that could be changed by whoever else has it.
func checkSealed(f *os.File) error {
	found, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || found&seals != seals {
		return fmt.Errorf("%w: found seals %#x, expected %#x", ErrNotSealed, max(found, 0), seals)
	}
	return nil
}

// view shows the contents to use; they are gone when it returns.
func (in *Input) view(use func(data []byte) error) error {
	if in.File == nil {
		return fmt.Errorf("%s: %w", in.Name, os.ErrClosed)
	}
	// Private, since kernels before 6.7 refuse a shared mapping of what is sealed
	// against writing, even one for reading.
	data, err := unix.Mmap(int(in.File.Fd()), 0, int(in.Size), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("%s: mapping the copy: %w", in.Name, err)
	}
	defer unix.Munmap(data)
	return use(data)
}

// SealedFile makes a sealed memory file.
func SealedFile(name string, data []byte) (*os.File, error) {
	f, err := newCopy(name)
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(data); err == nil {
		err = seal(f)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
