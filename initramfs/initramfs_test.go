package initramfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
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
		links := uint64(1)
		if f[1]&0o170000 == 0o040000 {
			links = 2 // its name, and the "." in it
		}
		if f[4] != links {
			t.Errorf("%q: found %d links, expected %d", name, f[4], links)
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
		"much data":    {[]File{{Path: "/p", Mode: fs.ModeDir, Data: make([]byte, 4096)}}, "found data in a d"},
		"device data":  {[]File{{Path: "/p", Mode: fs.ModeDevice | fs.ModeCharDevice, Data: []byte("x")}}, "found data"},
		"pipe data":    {[]File{{Path: "/p", Mode: fs.ModeNamedPipe, Data: []byte("x")}}, "expected a regular file"},
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
}

// The longest names and targets are taken: TestRefused has one byte more.
func TestLongest(t *testing.T) {
	name, target := "/"+strings.Repeat("a", 4095), strings.Repeat("b", 4095)
	got := parse(t, build(t, []File{{Path: name, Mode: fs.ModeSymlink | 0o777, Data: []byte(target)}}))
	if want := []entry{{name[1:], 0o120777, target, 0, 0}}; !slices.Equal(got, want) {
		t.Errorf("found %.40v, expected %.40v", got, want)
	}
}

// What a static /init needs is in the list itself, in the order of an archive.
func TestBase(t *testing.T) {
	var got []string
	for _, f := range Base() {
		got = append(got, f.Path)
	}
	if want := []string{"/dev", "/dev/console", "/dev/null", "/proc", "/sys"}; !slices.Equal(got, want) {
		t.Errorf("found %q, expected %q", got, want)
	}
}

var errDiskFull = errors.New("disk full")

// failing fails at one write, as a disk does that has room again afterwards.
type failing struct{ left int }

func (f *failing) Write(b []byte) (int, error) {
	if f.left--; f.left == 0 {
		return 0, errDiskFull
	}
	return len(b), nil
}

// A fault is never passed over, at whichever write it comes.
func TestFullDisk(t *testing.T) {
	all := &failing{}
	if err := Write(all, sample()); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= -all.left; n++ {
		if err := Write(&failing{left: n}, sample()); !errors.Is(err, errDiskFull) {
			t.Errorf("write %d of %d: found error %v, expected %v", n, -all.left, err, errDiskFull)
		}
	}
}

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
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if linked, err := FromDisk(link, "/opt"); err != nil || !bytes.Equal(build(t, linked), build(t, files)) {
		t.Errorf("link to the folder: %v, %v", linked, err)
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

// A file that has no name any more can be given by a descriptor's.
func TestFromDescriptor(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	if os.Remove(f.Name()) != nil {
		t.Skip("needs a system where an open file can be removed")
	}
	if _, err := os.Stat(name); err != nil {
		t.Skipf("needs /proc/self/fd: %v", err)
	}
	if files, err := FromDisk(name, "/init"); err != nil || len(files) != 1 || string(files[0].Data) != "x" {
		t.Errorf("found %v and error %v", files, err)
	}
}

// What cannot be read in a folder is an error, and no part of the folder is
// returned.
func TestFromDiskRefuses(t *testing.T) {
	socket := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(socket, "s"))
	if err != nil {
		t.Skipf("needs unix sockets: %v", err)
	}
	defer l.Close()

	// Deeper than a path may be long, so that root cannot read it either.
	deep := t.TempDir()
	root, err := os.OpenRoot(deep)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := root.MkdirAll(strings.Repeat(strings.Repeat("d", 200)+"/", 30), 0o700); err != nil {
		t.Skipf("needs a file system with paths of 6000 bytes: %v", err)
	}

	for dir, want := range map[string]string{socket: "expected a regular file", deep: "file name too long"} {
		if err := os.WriteFile(filepath.Join(dir, "a"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if files, err := FromDisk(dir, "/x"); err == nil || !strings.Contains(err.Error(), want) || files != nil {
			t.Errorf("found %d files and error %v, expected an error with %q", len(files), err, want)
		}
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
