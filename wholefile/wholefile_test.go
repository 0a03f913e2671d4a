package wholefile_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/evtpm/evtpm/wholefile"
)

// alone says that a folder has one name in it: no part of a file is left.
func alone(t *testing.T, path string) {
	t.Helper()
	names, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(names) != 1 {
		t.Errorf("found %v, %v, expected %s alone", names, err, filepath.Base(path))
	}
}

func holds(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("found %q, %v, expected %q", got, err, want)
	}
}

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, c := range []struct {
		text string
		mode os.FileMode
	}{{"first", 0o600}, {"second, and longer", 0o644}, {"", 0o600}} {
		if err := wholefile.WriteBytes(path, c.mode, []byte(c.text)); err != nil {
			t.Fatal(err)
		}
		holds(t, path, c.text)
		alone(t, path)
		if info, err := os.Stat(path); err != nil || info.Mode() != c.mode {
			t.Errorf("mode is %v, %v, expected %v", info.Mode(), err, c.mode)
		}
	}
}

// The contents come to an end halfway, as on a full disk.
func TestContentsThatBreakOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := wholefile.WriteBytes(path, 0o600, []byte("old")); err != nil {
		t.Fatal(err)
	}
	full := errors.New("no space left")
	err := wholefile.Write(path, 0o600, func(w io.Writer) error {
		if _, err := io.WriteString(w, "ne"); err != nil {
			t.Fatal(err)
		}
		// Whoever reads in between sees no part of it.
		holds(t, path, "old")
		return full
	})
	if !errors.Is(err, full) {
		t.Errorf("error is %v", err)
	}
	holds(t, path, "old")
	alone(t, path)
}

func TestPlacesWhereNoFileCanBe(t *testing.T) {
	dir := t.TempDir()
	if err := wholefile.WriteBytes(filepath.Join(dir, "missing", "file"), 0o600, nil); err == nil {
		t.Error("no error where the folder is missing")
	}
	folder := filepath.Join(dir, "folder")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := wholefile.WriteBytes(folder, 0o600, nil); err == nil {
		t.Error("no error where a folder has the name")
	}
	alone(t, folder)
}
