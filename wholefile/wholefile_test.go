package wholefile_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
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
	missing := filepath.Join(dir, "missing", "file")
	if err := wholefile.WriteBytes(missing, 0o600, nil); err == nil || err.Error() != "open "+missing+": no such file or directory" {
		t.Errorf("error is %v where the folder is missing", err)
	}
	folder := filepath.Join(dir, "folder")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := wholefile.WriteBytes(folder, 0o600, nil); err == nil || !strings.HasPrefix(err.Error(), "write "+folder+": ") {
		t.Errorf("error is %v where a folder has the name", err)
	}
	alone(t, folder)
}

// What cannot be written is told under the file's own name, when it comes from
// write too.
func TestNameInErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	err := wholefile.Write(path, 0o600, func(w io.Writer) error {
		if _, err := io.WriteString(w, "text"); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil || len(entries) != 1 {
			t.Fatal(entries, err)
		}
		// So that its name cannot be changed.
		return os.Remove(filepath.Join(filepath.Dir(path), entries[0].Name()))
	})
	if want := "write " + path + ": no such file or directory"; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("error is %v, expected %s", err, want)
	}
}
