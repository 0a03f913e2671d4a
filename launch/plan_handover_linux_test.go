package launch

import (
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/launch/launchtest"
	"github.com/evtpm/evtpm/measure"
)

// TestI13Changed: files that change after they were resolved change nothing.
func TestI13Changed(t *testing.T) {
	dir, s := planDir(t)
	p := resolve(t, s)
	before := p.Golden.LaunchDigests[0]
	for _, name := range []string{"OVMF.fd", "vmlinuz", "initrd.cpio"} {
		launchtest.Write(t, filepath.Join(dir, name), []byte("evil"))
	}
	data, files, err := p.Handover()
	if err != nil {
		t.Fatal(err)
	}
	q, err := TakePlan(data, dupAll(t, files))
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if q.Golden.LaunchDigests[0] != before {
		t.Errorf("found digest %s, expected %s", q.Golden.LaunchDigests[0], before)
	}
	kernel, err := q.Kernel.Bytes()
	if err != nil || sha256.Sum256(kernel) != p.Hashes.Kernel {
		t.Errorf("the kernel that would be started is not the one that was hashed (%v)", err)
	}
	if _, err := Resolve(t.Context(), s, ResolveOptions{}); err == nil {
		t.Error("found no error when the changed files were resolved")
	}
}

// dupAll makes descriptors of our own, as a child process has them.
func dupAll(t testing.TB, files []*os.File) []*os.File {
	t.Helper()
	var out []*os.File
	for _, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, os.NewFile(uintptr(fd), f.Name()))
	}
	return out
}

// TestHandover: a plan comes out of a handover as it went in, and nothing that
// was changed on the way does.
func TestHandover(t *testing.T) {
	dir, s := planDir(t, "id_block: {id_key: id.pem, author_key: author.pem}", "networks: [{type: user}]")
	launchtest.Key(t, filepath.Join(dir, "id.pem"))
	launchtest.Key(t, filepath.Join(dir, "author.pem"))
	p := resolve(t, s)
	data, files, err := p.Handover()
	if err != nil {
		t.Fatal(err)
	}
	q, err := TakePlan(data, dupAll(t, files))
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	ignoreFile := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".File" }, cmp.Ignore())
	if d := cmp.Diff(p, q, ignoreSource, ignoreFile); d != "" {
		t.Errorf("plan differs (-before +after):\n%s", d)
	}

	replace := func(old, new string) []byte {
		out := strings.Replace(string(data), old, new, 1)
		if out == string(data) {
			t.Fatalf("%q is not in the handed-over plan", old)
		}
		return []byte(out)
	}
	other := launchtest.Write(t, filepath.Join(dir, "other"), make([]byte, p.Firmware.Size))
	unsealed, err := os.Open(other)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := openInput(t.Context(), "firmware", other, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	swap := func(i int, f *os.File) []*os.File {
		out := slices.Clone(files)
		out[i] = f
		return out
	}
	for name, c := range map[string]struct {
		data  []byte
		files []*os.File
		want  string
	}{
		"other version":      {replace("evtpm.plan/v1", "evtpm.plan/v2"), files, `found "evtpm.plan/v2"`},
		"no spec":            {[]byte(`{"schema":"evtpm.plan/v1"}`), nil, "found no spec"},
		"unknown field":      {replace(`"spec"`, `"x":1,"spec"`), files, "not known"},
		"invalid spec":       {replace(`"count":1`, `"count":1000`), files, "found 1000, expected 1 to 512"},
		"other vCPU count":   {replace(`"count":1`, `"count":2`), files, "launch digest of the files is"},
		"other command line": {replace(`"cmdline":"quiet`, `"cmdline":"loud`), files, "launch digest of the files is"},
		"other kernel hash":  {replace(measure.HexBytes(p.Kernel.SHA256[:]).String(), strings.Repeat("00", 32)), files, "launch digest of the files is"},
		"a file too few":     {data, files[:2], "found 2 files, expected 3"},
		"files exchanged":    {data, []*os.File{files[1], files[0], files[2]}, "found"},
		"file not sealed":    {data, swap(0, unsealed), "not a sealed memory file"},
		"other firmware":     {data, swap(0, foreign.File), "firmware"},
		"slot unknown":       {replace(`"name":"kernel"`, `"name":"kernl"`), files, `found "kernl"`},
		"slot twice":         {replace(`"name":"kernel"`, `"name":"initrd"`), files, `found "initrd"`},
		"size":               {replace(`"size":6`, `"size":7`), files, "found 65536 bytes, expected 75536"},
		"no golden digests":  {replace(p.Golden.LaunchDigests[0].String(), strings.Repeat("0", 96)), files, "launch digest of the files is"},
		"not JSON":           {[]byte("x"), files, "invalid character"},
	} {
		before := openFiles(t)
		r, err := TakePlan(c.data, dupAll(t, c.files))
		if err == nil || r != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: found %v and error %v, expected one with %q", name, r != nil, err, c.want)
		}
		if after := openFiles(t); after != before {
			t.Errorf("%s: found %d open descriptors, expected %d", name, after, before)
		}
	}
	p.Close()
	if _, _, err := p.Handover(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("found %v for a closed plan, expected os.ErrClosed", err)
	}
}
