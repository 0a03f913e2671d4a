// Package inputfile opens the files that a user names: firmware, kernels, keys,
// reports. It takes regular files alone, of a bounded size, so that a pipe, a
// device, a directory or a sparse terabyte ends in an error at once and not in a
// hang or an exhausted machine.
package inputfile

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Sizes that are enough for what they are named after.
const (
	MaxFirmware = 64 << 20
	MaxImage    = 512 << 20 // SVSM images
	MaxKernel   = 1 << 30
	MaxInitrd   = 4 << 30
	MaxDocument = 16 << 20 // JSON, YAML, XML, PEM
)

// Open opens a regular file of at most limit bytes for reading. The size is what the
// file had when it was opened.
func Open(path string, limit int64) (f *os.File, size int64, err error) {
	f, info, err := open(path, limit)
	if err != nil {
		return nil, 0, err
	}
	return f, info.Size(), nil
}

func open(path string, limit int64) (*os.File, fs.FileInfo, error) {
	// Looked at before it is opened: opening some devices does things.
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if err := check(path, info, limit); err != nil {
		return nil, nil, err
	}
	// Looked at again afterwards, since the name may by now be another file's;
	// the open itself must not wait for a pipe's writer.
	f, err := os.OpenFile(path, os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, nil, err
	}
	opened, err := checkOpen(path, f, limit)
	return f, opened, err
}

// checkOpen is check of a file that is open. What it refuses, it closes.
func checkOpen(path string, f *os.File, limit int64) (fs.FileInfo, error) {
	info, err := f.Stat()
	if err == nil {
		err = check(path, info, limit)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return info, nil
}

// check refuses what is no regular file, or too large.
func check(path string, info fs.FileInfo, limit int64) error {
	if m := info.Mode(); !m.IsRegular() {
		return fmt.Errorf("%s: found a %s, expected a regular file", path, kind(m))
	}
	if n := info.Size(); n > limit {
		return &TooLargeError{Path: path, Size: n, Limit: limit}
	}
	return nil
}

func kind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

// A TooLargeError says that a file is larger than anything of its kind.
type TooLargeError struct {
	Path        string
	Size, Limit int64
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%s: found %d bytes, expected at most %d", e.Path, e.Size, e.Limit)
}

// Read returns the contents of a regular file of at most limit bytes.
func Read(path string, limit int64) ([]byte, error) {
	data, _, err := ReadMode(path, limit)
	return data, err
}

// ReadMode is [Read], with the mode of the file that was read.
func ReadMode(path string, limit int64) ([]byte, fs.FileMode, error) {
	f, info, err := open(path, limit)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	data, err := contents(path, f, info.Size())
	return data, info.Mode(), err
}

// contents reads size bytes, which must be all.
func contents(path string, r io.Reader, size int64) ([]byte, error) {
	data := make([]byte, size)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, changed(path, err)
	}
	if err := atEnd(path, r); err != nil {
		return nil, err
	}
	return data, nil
}

// What SHA256 reads at a time, and how many of these are under way.
const (
	hashChunk   = 256 << 10
	hashBuffers = 4
)

// SHA256 returns the hash of a regular file of at most limit bytes, without
// holding it in memory.
func SHA256(path string, limit int64) ([sha256.Size]byte, error) {
	f, size, err := Open(path, limit)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	defer f.Close()
	return hash(path, f, size)
}

// hash hashes size bytes, which must be all.
func hash(path string, r io.Reader, size int64) (sum [sha256.Size]byte, err error) {
	// One reads while the other hashes: for a kernel, copying its bytes out of the
	// page cache takes an eighth of the time that hashing them does.
	full, free := make(chan []byte, hashBuffers), make(chan []byte, hashBuffers)
	for range min(hashBuffers, size/hashChunk+1) {
		free <- make([]byte, min(hashChunk, size))
	}
	var readErr error // set before full is closed
	go func() {
		defer close(full)
		for left := size; left > 0; {
			buf := <-free
			n, err := io.ReadFull(r, buf[:min(left, int64(len(buf)))])
			if err != nil {
				readErr = err
				return
			}
			full <- buf[:n]
			left -= int64(n)
		}
	}()
	h := sha256.New()
	for buf := range full {
		h.Write(buf)
		free <- buf[:cap(buf)]
	}
	if readErr != nil {
		return sum, changed(path, readErr)
	}
	if err := atEnd(path, r); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

// ReadAll reads a stream, such as standard input, of at most limit bytes.
func ReadAll(r io.Reader, name string, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: found more than %d bytes", name, limit)
	}
	return data, nil
}

// changed turns the end of a file that came too early into words.
func changed(path string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s: became shorter while it was read", path)
	}
	return err
}

// atEnd refuses a file that has more bytes than when it was opened.
func atEnd(path string, r io.Reader) error {
	n, err := r.Read(make([]byte, 1))
	if n > 0 {
		return fmt.Errorf("%s: became longer while it was read", path)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
