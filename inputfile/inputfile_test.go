package inputfile

import (
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
		t.Skipf("file system without sparse files: %v", err)
	}
	f.Close()
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Skipf("file system without symbolic links: %v", err)
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
