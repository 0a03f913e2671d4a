package machine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/evtpm/evtpm/launch/launchtest"
)

func testHome(t testing.TB) *Home {
	t.Helper()
	h, err := OpenHome(filepath.Join(t.TempDir(), "h"))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestL17_HomeIsPrivate: nobody else may enter the run directory.
func TestL17_HomeIsPrivate(t *testing.T) {
	h := testHome(t)
	info, err := os.Stat(h.Dir())
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	for _, mode := range []fs.FileMode{0o750, 0o701, 0o777} {
		if err := os.Chmod(h.Dir(), mode); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenHome(h.Dir()); err == nil || !strings.Contains(err.Error(), "expected 0700") {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
	if os.Geteuid() == 0 {
		other := t.TempDir()
		if err := errors.Join(os.Chmod(other, 0o700), os.Chown(other, 12345, -1)); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenHome(other); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
			t.Errorf("another user's directory: %v", err)
		}
	}
}

// TestC06_Links: a link in the place of a directory or a file is not followed.
func TestC06_Links(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(dir, "precious")
	if err := errors.Join(os.Mkdir(precious, 0o700), os.WriteFile(filepath.Join(precious, "file"), []byte("keep"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(precious, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenHome(filepath.Join(dir, "link")); err == nil {
		t.Error("a link is opened as the run directory")
	}
	h := testHome(t)
	if err := os.Symlink(precious, h.path("m")); err != nil {
		t.Fatal(err)
	}
	if _, err := h.claim("m"); err == nil {
		t.Error("a link is claimed as a machine's folder")
	}
	// Links in the folder are removed, not followed.
	c, err := h.claim("n")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"machine.json", "machine.json.tmp", "evidence.json", "dir"} {
		if err := os.Symlink(filepath.Join(precious, "file"), filepath.Join(c.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.writeFile("machine.json", []byte("new")); err != nil {
		t.Error(err)
	}
	if _, err := openLog(filepath.Join(c.dir, "evidence.json"), false); err == nil {
		t.Error("a log is opened through a link")
	}
	if err := c.remove(); err != nil {
		t.Error(err)
	}
	if data, err := os.ReadFile(filepath.Join(precious, "file")); err != nil || string(data) != "keep" {
		t.Errorf("found %q, %v", data, err)
	}
	// A link where the lock should be.
	if err := errors.Join(os.Mkdir(h.path("o"), 0o700), os.Symlink(filepath.Join(precious, "file"), h.path("o", fileLock))); err != nil {
		t.Fatal(err)
	}
	if _, err := h.claim("o"); err == nil {
		t.Error("a link is taken as the lock")
	}
}

// TestC05_Names: a name is no path.
func TestC05_Names(t *testing.T) {
	h := testHome(t)
	for _, name := range []string{"", "-a", "..", ".", "a/b", "../a", "/etc", "A", "a_b", "a.b", "~", "a%", "a:b", "a b", "ä", "a\x00", strings.Repeat("a", 64)} {
		if _, err := h.claim(name); err == nil || !strings.Contains(err.Error(), "machine name") {
			t.Errorf("claim %q: %v", name, err)
		}
		if _, err := h.Status(t.Context(), name); err == nil || !strings.Contains(err.Error(), "machine name") {
			t.Errorf("status %q: %v", name, err)
		}
		if err := h.Remove(name); err == nil || !strings.Contains(err.Error(), "machine name") {
			t.Errorf("remove %q: %v", name, err)
		}
		if _, err := h.OpenFile(name, "console.log"); err == nil || !strings.Contains(err.Error(), "machine name") {
			t.Errorf("open %q: %v", name, err)
		}
		if _, err := h.connect(t.Context(), name); err == nil || !strings.Contains(err.Error(), "machine name") {
			t.Errorf("connect %q: %v", name, err)
		}
	}
	if _, err := h.claim(strings.Repeat("a", 63)); err == nil {
		t.Log("63 characters fit")
	}
	if err := os.WriteFile(filepath.Join(h.dir, "outside"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := h.claim("m")
	if err != nil {
		t.Fatal(err)
	}
	defer c.remove()
	if _, err := h.OpenFile("m", "../outside"); err == nil {
		t.Error("a file outside of the folder is opened")
	}
}

// TestL14_PathTooLong: sockets have short paths; that is said before anything is
// made.
func TestL14_PathTooLong(t *testing.T) {
	h, err := OpenHome(filepath.Join(t.TempDir(), strings.Repeat("x", 80)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.claim("machine"); err == nil || !strings.Contains(err.Error(), "EVTPM_HOME") {
		t.Errorf("claim: %v", err)
	}
	if names, err := h.names(); err != nil || len(names) > 0 {
		t.Errorf("folders %v, %v", names, err)
	}
}

// TestL15_ClaimRace: whatever happens at the same time, a folder has one holder,
// and one that was removed has none.
func TestL15_ClaimRace(t *testing.T) {
	h := testHome(t)
	var holders, most atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 100 {
				c, err := h.claim("m")
				var busy *BusyError
				if errors.As(err, &busy) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if n := holders.Add(1); n > most.Load() {
					most.Store(n)
				}
				if err := c.writeFile("machine.json", []byte("{}")); err != nil {
					t.Error(err)
				}
				holders.Add(-1)
				if err := c.remove(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d holders at one time", most.Load())
	}
	if names, err := h.names(); err != nil || len(names) > 0 {
		t.Errorf("folders %v are left, %v", names, err)
	}
}

// TestHeldAsksWithoutTaking: to look whether a machine runs does not stand in the
// way of its launch.
func TestHeldAsksWithoutTaking(t *testing.T) {
	h := testHome(t)
	c, err := h.claim("m")
	if err != nil {
		t.Fatal(err)
	}
	if held, err := h.held("m"); err != nil || !held {
		t.Errorf("held %v, %v", held, err)
	}
	if err := c.release(); err != nil {
		t.Fatal(err)
	}
	if held, err := h.held("m"); err != nil || held {
		t.Errorf("held %v after its release, %v", held, err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = h.held("m")
				}
			}
		})
	}
	for range 200 {
		c, err := h.claim("m")
		if err != nil {
			t.Error(err)
			break
		}
		if err := c.release(); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
}

// TestL18_WriteFileWhole: a file that cannot be written whole leaves the one
// before it.
func TestL18_WriteFileWhole(t *testing.T) {
	h := testHome(t)
	c, err := h.claim("m")
	if err != nil {
		t.Fatal(err)
	}
	defer c.remove()
	if err := c.writeFile("a", []byte("first")); err != nil {
		t.Fatal(err)
	}
	// A directory in the way of the temporary file.
	if err := os.MkdirAll(filepath.Join(c.dir, "a.tmp", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.writeFile("a", []byte("second")); err == nil {
		t.Error("no error")
	}
	if data, err := os.ReadFile(filepath.Join(c.dir, "a")); err != nil || string(data) != "first" {
		t.Errorf("found %q, %v", data, err)
	}
	if err := os.RemoveAll(filepath.Join(c.dir, "a.tmp")); err != nil {
		t.Fatal(err)
	}
	// What a crash left of a temporary file is no hindrance.
	if err := os.WriteFile(filepath.Join(c.dir, "a.tmp"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.writeFile("a", []byte("second")); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("files %v, %v", entries, err)
	}
	if info, err := os.Stat(filepath.Join(c.dir, "a")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestL19_Records: a record that is cut short, of another version, of another
// machine or no record at all makes no machine trusted.
func TestL19_Records(t *testing.T) {
	good, err := json.Marshal(Record{Schema: RecordSchema, Name: "m", State: StateTrusted, Running: true, Verdict: &VerdictSummary{Result: "trusted"}})
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string][]byte{
		"empty":         {},
		"cut short":     good[:len(good)/2],
		"newer":         bytes.Replace(good, []byte("machine/v1"), []byte("machine/v2"), 1),
		"unknown field": bytes.Replace(good, []byte(`"name"`), []byte(`"more":1,"name"`), 1),
		"other name":    bytes.Replace(good, []byte(`"m"`), []byte(`"other"`), 1),
		"twice":         append(append([]byte{}, good...), good...),
		"no JSON":       []byte("\x00\xff"),
		"huge":          append(bytes.TrimSuffix(good, []byte("}")), []byte(`,"reason":"`+strings.Repeat("x", maxRecord)+`"}`)...),
		"a live one of a supervisor that is gone": good,
	}
	for name, data := range cases {
		h := testHome(t)
		if err := os.Mkdir(h.path("m"), 0o700); err != nil {
			t.Fatal(err)
		}
		launchtest.Write(t, h.path("m", fileMachine), data)
		r, err := h.Status(t.Context(), "m")
		if err != nil || r.State != StateDead || r.Running || r.Verdict != nil {
			t.Errorf("%s: found %+v, %v", name, r, err)
		}
		if list, err := h.List(t.Context()); err != nil || len(list) != 1 || list[0].State != StateDead {
			t.Errorf("%s: list %+v, %v", name, list, err)
		}
		if err := h.Remove("m"); err != nil {
			t.Errorf("%s: remove: %v", name, err)
		}
	}
	h := testHome(t)
	if _, err := h.Status(t.Context(), "m"); !errors.Is(err, ErrNoMachine) {
		t.Errorf("a machine that is not there: %v", err)
	}
	if err := h.Remove("m"); !errors.Is(err, ErrNoMachine) {
		t.Errorf("removing a machine that is not there: %v", err)
	}
	// A folder with nothing in it is a machine that was killed early.
	if err := os.Mkdir(h.path("m"), 0o700); err != nil {
		t.Fatal(err)
	}
	if r, err := h.Status(t.Context(), "m"); err != nil || r.State != StateDead {
		t.Errorf("an empty folder: %+v, %v", r, err)
	}
	// A stopped machine keeps its verdict.
	stopped, err := json.Marshal(Record{Schema: RecordSchema, Name: "m", State: StateStopped, Verdict: &VerdictSummary{Result: "trusted"}})
	if err != nil {
		t.Fatal(err)
	}
	launchtest.Write(t, h.path("m", fileMachine), stopped)
	if r, err := h.Status(t.Context(), "m"); err != nil || r.State != StateStopped || r.Verdict == nil {
		t.Errorf("a stopped machine: %+v, %v", r, err)
	}
}

func FuzzRecord(f *testing.F) {
	good, err := json.Marshal(Record{Schema: RecordSchema, Name: "m", State: StateTrusted})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"schema":"evtpm.machine/v1","name":"m","processes":[{"pid":-1,"start":18446744073709551615}]}`))
	f.Add([]byte("{"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, fileMachine), data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := readRecord(dir, "m")
		if (r == nil) == (err == nil) || r != nil && (r.Name != "m" || r.Schema != RecordSchema) {
			t.Errorf("record %+v, %v", r, err)
		}
	})
}

// TestBoundedLog: a log grows to two files of the limit's size and no more, and
// loses its oldest lines.
func TestBoundedLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := openLog(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	early, w := l.watch()
	if len(early) > 0 {
		t.Errorf("found %q in a new log", early)
	}
	line := bytes.Repeat([]byte("x"), 999)
	for i := range 3500 {
		if _, err := fmt.Fprintf(l, "%s\n", line); err != nil {
			t.Fatal(i, err)
		}
	}
	for _, name := range []string{path, path + ".1"} {
		info, err := os.Stat(name)
		if err != nil || info.Size() == 0 || info.Size() > logLimit {
			t.Errorf("%s: %v bytes, %v", name, info, err)
		}
	}
	if n := len(l.last(100)); n != 100 {
		t.Errorf("found the last %d bytes, expected 100", n)
	}
	tail, late := l.watch()
	if len(tail) != tailSize {
		t.Errorf("found a tail of %d bytes, expected %d", len(tail), tailSize)
	}
	if !w.dropped || late.dropped {
		t.Errorf("dropped for a watcher that does not read: %v, for one that is new: %v", w.dropped, late.dropped)
	}
	if _, err := l.Write([]byte("more")); err != nil || string(<-late.C) != "more" {
		t.Errorf("the watcher sees something else, %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, ok := <-late.C; ok {
		t.Error("the watcher outlives the log")
	}
	if _, err := l.Write([]byte("x")); err != nil {
		t.Errorf("writing to a closed log: %v", err)
	}
}

// TestL18_LogOnFullDisk: a log that cannot be written stops nobody, and its end
// can still be read.
func TestL18_LogOnFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("/dev/full is missing")
	}
	l := &boundedLog{path: "/nonexistent/log", file: full, watchers: map[*logWatcher]struct{}{}}
	for range 3 {
		if n, err := l.Write([]byte("hello")); n != 5 || err != nil {
			t.Errorf("wrote %d, %v", n, err)
		}
	}
	if got := string(l.last(10)); got != "hellohello" {
		t.Errorf("found %q", got)
	}
}
