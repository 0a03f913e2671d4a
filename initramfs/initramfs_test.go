package initramfs

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func build(t *testing.T, files []File) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := Write(&buf, files); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func sample() []File {
	return append(Base(),
		File{Path: "/init", Mode: 0o755, Data: []byte("#!/bin/true\n")},
		File{Path: "/lib/modules/a/b.ko", Mode: 0o644, Data: []byte("12345")},
		File{Path: "/lib64", Mode: fs.ModeSymlink | 0o777, Data: []byte("lib")},
		File{Path: "/empty", Mode: 0o600},
	)
}

// The archive is the same whatever the order of the files.
func TestDeterministic(t *testing.T) {
	want := build(t, sample())
	files := sample()
	slices.Reverse(files)
	if !bytes.Equal(build(t, files), want) {
		t.Error("another order of files gives another archive")
	}
	if len(want)%blockSize != 0 {
		t.Errorf("%d bytes, expected a multiple of %d", len(want), blockSize)
	}
}

// entry is what an independent reader found.
type entry struct {
	name         string
	mode         uint64
	data         string
	major, minor uint64
}

// parse reads an archive by the format's description alone.
func parse(t *testing.T, b []byte) []entry {
	t.Helper()
	var out []entry
	inodes := map[uint64]bool{}
	for o := 0; ; {
		if o+110 > len(b) || string(b[o:o+6]) != "070701" {
			t.Fatalf("no header at %d", o)
		}
		var f [13]uint64
		for i := range f {
			v, err := strconv.ParseUint(string(b[o+6+8*i:o+14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			f[i] = v
		}
		name := string(b[o+110 : o+110+int(f[11])])
		o = (o + 110 + len(name) + 3) &^ 3
		data := string(b[o : o+int(f[6])])
		o = (o + len(data) + 3) &^ 3
		if name == "TRAILER!!!\x00" {
			if strings.Trim(string(b[o:]), "\x00") != "" {
				t.Fatal("found data after the trailer")
			}
			return out
		}
		if !strings.HasSuffix(name, "\x00") || f[2] != 0 || f[3] != 0 || f[5] != 0 || f[12] != 0 || inodes[f[0]] {
			t.Errorf("%q: %v", name, f)
		}
		inodes[f[0]] = true
		out = append(out, entry{strings.TrimSuffix(name, "\x00"), f[1], data, f[9], f[10]})
	}
}

func TestContents(t *testing.T) {
	want := []entry{
		{"dev", 0o040755, "", 0, 0},
		{"dev/console", 0o020600, "", 5, 1},
		{"dev/null", 0o020666, "", 1, 3},
		{"empty", 0o100600, "", 0, 0},
		{"init", 0o100755, "#!/bin/true\n", 0, 0},
		{"lib", 0o040755, "", 0, 0},
		{"lib/modules", 0o040755, "", 0, 0},
		{"lib/modules/a", 0o040755, "", 0, 0},
		{"lib/modules/a/b.ko", 0o100644, "12345", 0, 0},
		{"lib64", 0o120777, "lib", 0, 0},
		{"proc", 0o040555, "", 0, 0},
		{"sys", 0o040555, "", 0, 0},
	}
	if got := parse(t, build(t, sample())); !slices.Equal(got, want) {
		t.Errorf("entries\n%v, expected\n%v", got, want)
	}
}

func TestRefused(t *testing.T) {
	reg := func(p string) File { return File{Path: p, Mode: 0o644} }
	for name, tc := range map[string]struct {
		files []File
		want  string
	}{
		"relative":     {[]File{reg("init")}, "expected an absolute path"},
		"not shortest": {[]File{reg("/a/../init")}, "expected an absolute path in its shortest form"},
		"slash":        {[]File{reg("/a/")}, "shortest form"},
		"root":         {[]File{{Path: "/", Mode: fs.ModeDir}}, "shortest form"},
		"NUL":          {[]File{reg("/a\x00b")}, "NUL"},
		"trailer":      {[]File{reg("/TRAILER!!!")}, "ends an archive"},
		"long":         {[]File{reg("/" + strings.Repeat("a", 4096))}, "found 4097 bytes"},
		"twice":        {[]File{reg("/a"), reg("/a")}, "/a: found twice"},
		"below a file": {[]File{reg("/a"), reg("/a/b")}, "/a/b: lies below /a, which is no directory"},
		"pipe":         {[]File{{Path: "/p", Mode: fs.ModeNamedPipe}}, "expected a regular file"},
		"block device": {[]File{{Path: "/p", Mode: fs.ModeDevice}}, "expected a regular file"},
		"setuid":       {[]File{{Path: "/p", Mode: fs.ModeSetuid | 0o755}}, "expected a regular file"},
		"empty link":   {[]File{{Path: "/p", Mode: fs.ModeSymlink}}, "without a target"},
		"long link":    {[]File{{Path: "/p", Mode: fs.ModeSymlink, Data: make([]byte, 4096)}}, "target of 4096 bytes"},
		"folder data":  {[]File{{Path: "/p", Mode: fs.ModeDir, Data: []byte("x")}}, "found data"},
	} {
		var buf bytes.Buffer
		if err := Write(&buf, tc.files); err == nil || !strings.Contains(err.Error(), tc.want) || buf.Len() != 0 {
			t.Errorf("%s: %v, %d bytes written", name, err, buf.Len())
		}
	}
	// All mistakes at once.
	if err := Write(&bytes.Buffer{}, []File{reg("x"), reg("y")}); err == nil || strings.Count(err.Error(), "expected") != 2 {
		t.Errorf("two mistakes: %v", err)
	}
	if err := Write(failing{}, sample()); !errors.Is(err, errDiskFull) {
		t.Errorf("a full disk: %v", err)
	}
}

var errDiskFull = errors.New("disk full")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errDiskFull }

func TestFromDisk(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]fs.FileMode{"run": 0o700, "sub/data": 0o600} {
		p := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(p), 0o700)
		if err := os.WriteFile(p, []byte(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../run", filepath.Join(dir, "sub/link")); err != nil {
		t.Fatal(err)
	}
	files, err := FromDisk(dir, "/opt")
	if err != nil {
		t.Fatal(err)
	}
	want := []entry{
		{"opt", 0o040755, "", 0, 0},
		{"opt/run", 0o100755, "run", 0, 0},
		{"opt/sub", 0o040755, "", 0, 0},
		{"opt/sub/data", 0o100644, "sub/data", 0, 0},
		{"opt/sub/link", 0o120777, "../run", 0, 0},
	}
	if got := parse(t, build(t, files)); !slices.Equal(got, want) {
		t.Errorf("entries\n%v, expected\n%v", got, want)
	}
	if files, err := FromDisk(filepath.Join(dir, "run"), "/init"); err != nil || len(files) != 1 || files[0].Path != "/init" || files[0].Mode != 0o755 {
		t.Errorf("one file: %v, %v", files, err)
	}
	if files, err = FromDisk(dir, "/"); err != nil || len(files) != 4 {
		t.Errorf("folder at the root: %v, %v", files, err)
	}
	if _, err := FromDisk(filepath.Join(dir, "none"), "/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := FromDisk("/dev/null", "/x"); err == nil || !strings.Contains(err.Error(), "expected a regular file") {
		t.Errorf("device: %v", err)
	}
}

// FuzzWrite checks that what is accepted can be read back, name by name.
func FuzzWrite(f *testing.F) {
	f.Add("/init", []byte("x"), "/lib/modules/a.ko", []byte{}, uint32(0o755))
	f.Add("/a", []byte("x"), "/a/b", []byte("yy"), uint32(0))
	f.Add("/TRAILER!!!", []byte{}, "/\x00", []byte{}, uint32(1<<31))
	f.Fuzz(func(t *testing.T, p1 string, d1 []byte, p2 string, d2 []byte, mode uint32) {
		files := []File{{Path: p1, Mode: fs.FileMode(mode), Data: d1}, {Path: p2, Mode: 0o644, Data: d2}}
		var buf bytes.Buffer
		if Write(&buf, files) != nil {
			return
		}
		got := map[string]string{}
		for _, e := range parse(t, buf.Bytes()) {
			got["/"+e.name] = e.data
		}
		for _, w := range files {
			if data, ok := got[w.Path]; !ok || data != string(w.Data) {
				t.Errorf("%q: found %q, expected %q", w.Path, data, w.Data)
			}
		}
	})
}
