package inputfile

import (
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	want := []byte(strings.Repeat("0123456789abcdef", 20000))
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path, int64(len(want)))
	if err != nil || string(got) != string(want) {
		t.Errorf("found %d bytes and error %v, expected %d bytes", len(got), err, len(want))
	}
	sum, err := SHA256(path, int64(len(want)))
	if err != nil || sum != sha256.Sum256(want) {
		t.Errorf("found hash %x and error %v, expected %x", sum, err, sha256.Sum256(want))
	}
	var large *TooLargeError
	if _, err := Read(path, int64(len(want))-1); !errors.As(err, &large) {
		t.Errorf("found error %v, expected a TooLargeError", err)
	}
	if _, err := SHA256(path, int64(len(want))-1); !errors.As(err, &large) {
		t.Errorf("found error %v, expected a TooLargeError", err)
	}
}

// A file that may not be read says so, to root too.
func TestNotAllowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, nil, 0); err != nil {
		t.Fatal(err)
	}
	if f, err := os.Open(path); err == nil { // root's right
		f.Close()
		path = "/proc/sys/vm/compact_memory" // for writing alone, whoever asks
		if _, err := os.Stat(path); err != nil {
			t.Skip("needs /proc/sys/vm/compact_memory, a file that root may not read, or a user who is not root")
		}
	}
	if _, _, err := Open(path, 1); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("found error %v, expected %v", err, fs.ErrPermission)
	}
}

// What took a regular file's name just before it was opened is refused, and closed.
func TestFileThatTookTheName(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{dir: "found a directory", large: "found 5 bytes, expected at most 4"} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := checkOpen(path, f, 4); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("found error %v, expected one with %q", err, want)
		}
		// It is closed by now, and cannot be looked at.
		if _, err := checkOpen(path, f, 5); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("found error %v, expected %v", err, fs.ErrClosed)
		}
	}
}

// A file that is not what it was when it was opened, or that a disk does not give,
// has neither contents nor a hash.
func TestFilesThatChange(t *testing.T) {
	fault := errors.New("I/O error")
	shorter := errors.New("file: became shorter while it was read")
	longer := errors.New("file: became longer while it was read")
	text := func(s string) func() io.Reader { return func() io.Reader { return strings.NewReader(s) } }
	for name, c := range map[string]struct {
		file func() io.Reader
		size int64
		want error
	}{
		"shorter":          {text("1234"), 5, shorter},
		"empty":            {text(""), 5, shorter},
		"longer":           {text("123456"), 5, longer},
		"longer than none": {text("1"), 0, longer},
		"fault":            {func() io.Reader { return iotest.ErrReader(fault) }, 5, fault},
		"fault at the end": {func() io.Reader { return io.MultiReader(strings.NewReader("12345"), iotest.ErrReader(fault)) }, 5, fault},
		// It goes on after the fault as if nothing had been.
		"fault in between": {func() io.Reader { return iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("12345"))) }, 5, iotest.ErrTimeout},
	} {
		for what, read := range map[string]func(io.Reader) error{
			"contents": func(r io.Reader) error { _, err := contents("file", r, c.size); return err },
			"hash":     func(r io.Reader) error { _, err := hash("file", r, c.size); return err },
		} {
			if err := read(c.file()); err == nil || !errors.Is(err, c.want) && err.Error() != c.want.Error() {
				t.Errorf("%s: %s: found error %v, expected %v", name, what, err, c.want)
			}
		}
	}
}

// TestI01Kinds: what is no regular file, or larger than memory, ends in an error
// at once.
func TestI01Kinds(t *testing.T) {
	dir := t.TempDir()
	sparse := filepath.Join(dir, "sparse")
	f, err := os.Create(sparse)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(1 << 40); err != nil {
		t.Skipf("needs a file system with sparse files: %v", err)
	}
	f.Close()
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Skipf("needs a file system with symbolic links: %v", err)
	}
	cases := map[string]string{dir: "directory", sparse: "at most", loop: "", filepath.Join(dir, "absent"): "no such file", "": ""}
	for path, want := range specialFiles(t, dir) {
		cases[path] = want
	}
	for path, want := range cases {
		for name, read := range map[string]func() error{
			"Read":   func() error { _, err := Read(path, MaxFirmware); return err },
			"SHA256": func() error { _, err := SHA256(path, MaxKernel); return err },
		} {
			done := make(chan error, 1)
			go func() { done <- read() }()
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s(%q): found error %v, expected one with %q", name, path, err, want)
				}
			case <-time.After(5 * time.Second):
				t.Fatalf("%s(%q): still waiting", name, path)
			}
		}
	}
}

func TestReadAll(t *testing.T) {
	if _, err := ReadAll(strings.NewReader("12345"), "standard input", 4); err == nil || !strings.Contains(err.Error(), "more than 4 bytes") {
		t.Errorf("found error %v, expected one about 4 bytes", err)
	}
	if got, err := ReadAll(strings.NewReader("1234"), "standard input", 4); err != nil || string(got) != "1234" {
		t.Errorf("found %q and error %v, expected 1234", got, err)
	}
	fault := errors.New("I/O error")
	if _, err := ReadAll(iotest.ErrReader(fault), "standard input", 4); !errors.Is(err, fault) || !strings.HasPrefix(err.Error(), "standard input: ") {
		t.Errorf("found error %v, expected %v", err, fault)
	}
}

// Kinds of which there may be no file here.
func TestKind(t *testing.T) {
	for m, want := range map[fs.FileMode]string{
		fs.ModeDir:                        "directory",
		fs.ModeNamedPipe:                  "named pipe",
		fs.ModeSocket:                     "socket",
		fs.ModeDevice:                     "device",
		fs.ModeDevice | fs.ModeCharDevice: "device",
		fs.ModeIrregular:                  "special file",
	} {
		if got := kind(m); got != want {
			t.Errorf("%v: found %q, expected %q", m, got, want)
		}
	}
}

// TestSHA256: the hash is the file's, however much of it is under way at a time.
func TestSHA256(t *testing.T) {
	for _, size := range []int{0, 1, hashChunk - 1, hashChunk, hashChunk + 1, (2*hashBuffers+1)*hashChunk + 17} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(i >> 3 * 7)
		}
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if sum, err := SHA256(path, int64(size)); err != nil || sum != sha256.Sum256(data) {
			t.Errorf("%d bytes: found %x (%v)", size, sum, err)
		}
	}
}
