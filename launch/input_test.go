package launch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/launch/launchtest"
)

// TestInput: the copy is what the file held, and stays it.
func TestInput(t *testing.T) {
	for _, size := range []int{1, copyChunk - 1, copyChunk, 3*copyChunk + 17} {
		want := bytes.Repeat([]byte("abcdefg"), size)[:size]
		path := launchtest.Write(t, filepath.Join(t.TempDir(), "in"), want)
		in, err := openInput(t.Context(), "kernel", path, int64(size))
		if err != nil {
			t.Fatal(err)
		}
		// I-13: what happens to the file afterwards does not matter.
		launchtest.Write(t, path, []byte("something else"))
		got, err := in.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("size %d: the copy differs from what the file held", size)
		}
		if in.SHA256 != sha256.Sum256(want) || in.Size != int64(size) || in.Name != "kernel" || in.Path != path {
			t.Errorf("size %d: found %+v", size, in)
		}
		if err := errors.Join(in.Close(), in.Close()); err != nil {
			t.Error(err)
		}
		if _, err := in.Bytes(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("found %v after Close, expected os.ErrClosed", err)
		}
	}
	var none *Input
	if err := none.Close(); err != nil {
		t.Error(err)
	}
}

// TestI01Inputs: what is no regular file, empty or too large is refused.
func TestI01Inputs(t *testing.T) {
	dir := t.TempDir()
	empty := launchtest.Write(t, filepath.Join(dir, "empty"), nil)
	large := launchtest.Write(t, filepath.Join(dir, "large"), make([]byte, 101))
	for path, want := range map[string]string{
		empty:                        "empty file",
		large:                        "expected at most 100",
		dir:                          "directory",
		filepath.Join(dir, "absent"): "no such file",
	} {
		in, err := openInput(t.Context(), "kernel", path, 100)
		if err == nil || !strings.Contains(err.Error(), want) || in != nil {
			t.Errorf("%s: found %v and error %v, expected one with %q", path, in, err, want)
		}
	}
	var tooLarge *inputfile.TooLargeError
	if _, err := openInput(t.Context(), "kernel", large, 100); !errors.As(err, &tooLarge) {
		t.Errorf("found %v, expected a TooLargeError", err)
	}
}

// TestInputCancelled: a copy ends with its context.
func TestInputCancelled(t *testing.T) {
	path := launchtest.Write(t, filepath.Join(t.TempDir(), "in"), make([]byte, 1<<20))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := openInput(ctx, "kernel", path, 1<<20); !errors.Is(err, context.Canceled) {
		t.Errorf("found %v, expected context.Canceled", err)
	}
}

// openFiles lists this process's open descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc/self/fd, where descriptors are counted")
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
