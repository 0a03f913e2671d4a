package launch

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/evtpm/evtpm/launch/launchtest"
	"github.com/evtpm/evtpm/measure"
)

// TestLock: a lock agrees with the plan that it was made of, also after it was
// written and read.
func TestLock(t *testing.T) {
	dir, s := planDir(t, "id_block: {id_key: id.pem}", "host_data: "+strings.Repeat("0a", 32))
	launchtest.Key(t, filepath.Join(dir, "id.pem"))
	p := resolve(t, s)
	path := LockPath(filepath.Join(dir, "a.yaml"))
	if want := filepath.Join(dir, "a.lock"); path != want {
		t.Errorf("found path %s, expected %s", path, want)
	}
	if err := p.Lock().Write(path); err != nil {
		t.Fatal(err)
	}
	got, err := ReadLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(p.Lock(), got); d != "" {
		t.Errorf("lock differs (-written +read):\n%s", d)
	}
	if err := got.Check(p); err != nil {
		t.Error(err)
	}
	if p, err := Resolve(t.Context(), s, ResolveOptions{Frozen: got}); err != nil {
		t.Error(err)
	} else {
		p.Close()
	}
	if strings.Contains(readText(t, path), dir) {
		t.Error("the lock holds a path of this machine")
	}
	// Written again over the old one, and no other file left.
	if err := p.Lock().Write(path); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			t.Errorf("found %s, expected no temporary file", e.Name())
		}
	}
	if err := p.Lock().Write(filepath.Join(dir, "absent", "a.lock")); err == nil {
		t.Error("found no error when the folder is missing")
	}
	if err := os.Mkdir(filepath.Join(dir, "dir.lock"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := p.Lock().Write(filepath.Join(dir, "dir.lock")); err == nil {
		t.Error("found no error when a folder has the lock's name")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*lock*")); left != nil {
		t.Errorf("found %v after a failed write, expected nothing", left)
	}
}

func readText(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestLockDiffers: every difference is found and named, all of them at once.
func TestLockDiffers(t *testing.T) {
	_, s := planDir(t)
	lock := resolve(t, s).Lock()

	dir, s := planDir(t, "name: other", "cmdline: other", "policy: 0x20000", "host_data: "+strings.Repeat("0b", 32), "id_block: {id_key: id.pem}", "platform: snp")
	launchtest.Key(t, filepath.Join(dir, "id.pem"))
	launchtest.Write(t, filepath.Join(dir, "vmlinuz"), append(launchtest.Kernel(), 0))
	launchtest.Write(t, filepath.Join(dir, "initrd.cpio"), []byte("initrE"))
	before := openFiles(t)
	p, err := Resolve(t.Context(), s, ResolveOptions{Frozen: lock})
	if p != nil || !errors.Is(err, ErrLockDiffers) {
		t.Fatalf("found plan %v and error %v, expected ErrLockDiffers", p, err)
	}
	if after := openFiles(t); after != before {
		t.Errorf("found %d open descriptors, expected %d", after, before)
	}
	var named []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		what, _, _ := strings.Cut(line, " differs from the lock: found ")
		named = append(named, what)
	}
	want := []string{"kernel", "initrd", "cmdline", "name", "platform", "policy", "host data", "ID block", "launch digest"}
	if d := cmp.Diff(want, named); d != "" {
		t.Errorf("differences differ (-want +got):\n%s\n%v", d, err)
	}

	// An input that came or went.
	dir, s = planDir(t)
	s.Initrd, s.src = "", nil // as if the line were not there
	if err := lock.Check(resolve(t, s)); err == nil || !strings.Contains(err.Error(), "initrd differs from the lock: found none, locked SHA-256 ") {
		t.Errorf("found %v, expected the initrd to be missing", err)
	}
	// Firmware and host profile.
	fw := readText(t, filepath.Join(dir, "OVMF.fd"))
	launchtest.Write(t, filepath.Join(dir, "OVMF.fd"), []byte("\x00"+fw[1:]))
	q := resolve(t, s)
	q.HostProfile = ProfileKVMBSP
	for _, want := range []string{"firmware differs", "host profile differs"} {
		if err := lock.Check(q); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("found %v, expected %q in it", err, want)
		}
	}
	// Host data of zeros is none.
	zero, same := *lock, *lock
	zero.HostData = make(measure.HexBytes, 32)
	_, s = planDir(t)
	same.HostData = nil
	if err := errors.Join(zero.Check(resolve(t, s)), same.Check(resolve(t, s))); err != nil {
		t.Error(err)
	}
}

// TestParseLockRefuses: a lock that is not whole pins nothing.
func TestParseLockRefuses(t *testing.T) {
	_, s := planDir(t)
	good, err := resolve(t, s).Lock().Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseLock(good); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(l *Lock)
		want   string
	}{
		"schema":        {func(l *Lock) { l.Schema = "evtpm.lock/v2" }, `schema: found "evtpm.lock/v2"`},
		"name":          {func(l *Lock) { l.Name = "" }, "name: found nothing"},
		"platform":      {func(l *Lock) { l.Platform = "" }, "platform: found nothing"},
		"profile":       {func(l *Lock) { l.HostProfile = "" }, "host_profile: found nothing"},
		"digest (C-15)": {func(l *Lock) { l.LaunchDigest = measure.Digest{} }, "launch_digest: found zeros"},
		"host data":     {func(l *Lock) { l.HostData = []byte{1} }, "host_data: found 1 bytes"},
		"no inputs":     {func(l *Lock) { l.Inputs = nil }, "inputs: found 0"},
		"many inputs":   {func(l *Lock) { l.Inputs = slices.Repeat(l.Inputs, 10) }, "inputs: found 30"},
		"twice":         {func(l *Lock) { l.Inputs = append(l.Inputs, l.Inputs[0]) }, `inputs[3].name: found "firmware" twice`},
		"unknown":       {func(l *Lock) { l.Inputs[0].Name = "x" }, `inputs[0].name: found "x"`},
		"hash":          {func(l *Lock) { l.Inputs[0].SHA256 = nil }, "inputs[0].sha256: found 0 bytes"},
		"size":          {func(l *Lock) { l.Inputs[0].Size = 0 }, "inputs[0].size: found 0"},
	} {
		l, err := ParseLock(good)
		if err != nil {
			t.Fatal(err)
		}
		c.change(l)
		data, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseLock(data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: found %v, expected %q in it", name, err, c.want)
		}
		if _, err := l.Encode(); err == nil {
			t.Errorf("%s: a lock that would be refused is written", name)
		}
	}
	for name, data := range map[string]string{
		"unknown field": strings.Replace(string(good), `"schema"`, `"x": 1, "schema"`, 1),
		"twice":         strings.Replace(string(good), `"schema"`, `"schema": "x", "schema"`, 1),
		"other case":    strings.Replace(string(good), `"schema"`, `"Schema"`, 1),
		"empty":         "",
		"two":           string(good) + string(good),
		"large":         strings.Repeat(" ", maxLockBytes+1),
	} {
		if _, err := ParseLock([]byte(data)); err == nil {
			t.Errorf("%s: found no error", name)
		}
	}
	if _, err := ReadLock(t.TempDir()); err == nil {
		t.Error("found no error for a folder")
	}
}
