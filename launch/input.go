package launch

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/evtpm/evtpm/inputfile"
)

// An Input is a file of a spec as it was when it was read: a private copy that
// nothing can change, and the copy's hash. What becomes of the file afterwards
// does not matter.
type Input struct {
	// Name says which input it is: "firmware", "svsm", "kernel", "initrd", "policy",
	// "bundle".
	Name string
	// Path is where it came from, for people.
	Path string
	// Size of the copy in bytes.
	Size int64
	// SHA256 is the hash of the copy.
	SHA256 [sha256.Size]byte
	// File is the copy: on Linux a memory file sealed against every change, which
	// another program opens as /proc/self/fd/N. Elsewhere, where nothing is
	// launched, a temporary file of ours alone.
	File *os.File
}

// copyChunk is what is read, hashed and written at a time, and small enough to
// stay in a processor's cache between the three.
const copyChunk = 128 << 10

// openInput opens the regular file at path once, and copies and hashes what it
// holds: at least one byte, at most limit. The caller closes the input.
func openInput(ctx context.Context, name, path string, limit int64) (*Input, error) {
	f, size, err := inputfile.Open(path, limit)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size == 0 {
		return nil, fmt.Errorf("%s: found an empty file", path)
	}
	in := &Input{Name: name, Path: path, Size: size}
	h := sha256.New()
	if in.File, err = newCopy(name); err != nil {
		return nil, err
	}
	// Without the files' own ways to copy, which would move bytes past the hash.
	dst, src := struct{ io.Writer }{in.File}, &tee{ctx: ctx, r: io.LimitReader(f, size), h: h}
	n, err := io.CopyBuffer(dst, src, make([]byte, min(size, copyChunk)))
	if err == nil && n != size {
		err = fmt.Errorf("became shorter while it was read: found %d bytes, expected %d", n, size)
	}
	if err == nil {
		err = seal(in.File)
	}
	if err != nil {
		in.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if n, _ := f.Read(make([]byte, 1)); n > 0 {
		in.Close()
		return nil, fmt.Errorf("%s: became longer while it was read", path)
	}
	h.Sum(in.SHA256[:0])
	return in, nil
}

// tee is a reader that hashes what passes and ends with its context.
type tee struct {
	ctx context.Context
	r   io.Reader
	h   hash.Hash
}

func (t *tee) Read(p []byte) (int, error) {
	if err := t.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := t.r.Read(p)
	t.h.Write(p[:n])
	return n, err
}

// Bytes returns the contents, in memory of the caller's own.
func (in *Input) Bytes() ([]byte, error) {
	out := make([]byte, in.Size)
	err := in.view(func(data []byte) error {
		copy(out, data)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Close gives the copy back. It may be called twice, and on nil.
func (in *Input) Close() error {
	if in == nil || in.File == nil {
		return nil
	}
	f := in.File
	in.File = nil
	return closeCopy(f)
}
