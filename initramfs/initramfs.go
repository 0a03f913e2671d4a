// Package initramfs writes initramfs archives that are the same, byte for byte,
// whenever their contents are: an initramfs is measured (kernel hashes, PCR 9),
// so its digest must follow from its files alone. Order, times, owners and inode
// numbers are fixed.
//
// The format is "newc" cpio, uncompressed, as Linux's
// Documentation/driver-api/early-userspace/buffer-format.rst describes it.
package initramfs

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"
)

// A newc header is the magic and 13 fields of eight hexadecimal digits; the
// name with its NUL follows and is padded to four bytes, as is the data.
const (
	magic      = "070701"
	headerSize = 6 + 13*8
	trailer    = "TRAILER!!!"

	// blockSize is what the archive is padded to, as cpio does.
	blockSize = 512

	// maxName is the kernel's PATH_MAX, with the NUL: the kernel skips entries
	// with longer names, silently.
	maxName = 4096
)

// File types of the mode field (POSIX).
const (
	modeDir     = 0o040000
	modeCharDev = 0o020000
	modeRegular = 0o100000
	modeSymlink = 0o120000
)

// File is one entry. Owner and group are root, the time is zero.
type File struct {
	// Path is absolute in the guest: "/init".
	Path string

	// Mode holds the type (regular, directory, symbolic link or character
	// device) and the permission bits. No other bits are taken.
	Mode fs.FileMode

	// Data is a regular file's content, or a symbolic link's target.
	Data []byte

	// Major and Minor number a device.
	Major, Minor uint32
}

// Base returns what the kernel and a static /init need before anything is
// mounted: mount points, the console and the null device.
func Base() []File {
	return []File{
		{Path: "/dev", Mode: fs.ModeDir | 0o755},
		{Path: "/dev/console", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1},
		{Path: "/dev/null", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666, Major: 1, Minor: 3},
		{Path: "/proc", Mode: fs.ModeDir | 0o555},
		{Path: "/sys", Mode: fs.ModeDir | 0o555},
	}
}

// Write writes an archive of the files, sorted by path. Parent directories that
// are not among them are added with mode 0755. A path may occur only once, and
// only below a directory.
func Write(w io.Writer, files []File) error {
	files, err := complete(files)
	if err != nil {
		return err
	}
	a := &archive{w: w}
	for i, f := range files {
		if err := a.entry(f, uint32(i+1)); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return a.end()
}

// complete checks the files, adds parents and sorts.
func complete(files []File) ([]File, error) {
	var errs []error
	seen := map[string]fs.FileMode{}
	out := slices.Clone(files)
	for _, f := range files {
		if err := check(f); err != nil {
			errs = append(errs, err)
			continue
		}
		if _, ok := seen[f.Path]; ok {
			errs = append(errs, fmt.Errorf("%s: found twice", f.Path))
		}
		seen[f.Path] = f.Mode
	}
	for _, f := range files {
		for dir := path.Dir(f.Path); dir != "/" && dir != "."; dir = path.Dir(dir) {
			mode, ok := seen[dir]
			switch {
			case !ok:
				seen[dir] = fs.ModeDir | 0o755
				out = append(out, File{Path: dir, Mode: seen[dir]})
			case !mode.IsDir():
				errs = append(errs, fmt.Errorf("%s: lies below %s, which is no directory", f.Path, dir))
			}
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	// A directory sorts before what it holds.
	slices.SortFunc(out, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	return out, nil
}

func check(f File) error {
	switch {
	case !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/":
		return fmt.Errorf("path %q: expected an absolute path in its shortest form, such as /etc/motd", f.Path)
	case strings.ContainsRune(f.Path, 0):
		return fmt.Errorf("path %q: found a NUL byte", f.Path)
	case f.Path[1:] == trailer:
		return fmt.Errorf("path %q: is the name that ends an archive", f.Path)
	case len(f.Path) > maxName: // its slash goes, a NUL comes
		return fmt.Errorf("path %.20q...: found %d bytes, expected at most %d", f.Path, len(f.Path), maxName)
	}
	const device = fs.ModeDevice | fs.ModeCharDevice
	switch t := f.Mode &^ fs.ModePerm; {
	case t == 0 && uint64(len(f.Data)) > math.MaxUint32:
		return fmt.Errorf("%s: found %d bytes, expected less than 4 GiB", f.Path, len(f.Data))
	case t == 0:
	case t == fs.ModeSymlink && len(f.Data) == 0:
		return fmt.Errorf("%s: found a symbolic link without a target", f.Path)
	case t == fs.ModeSymlink && len(f.Data) >= maxName:
		return fmt.Errorf("%s: found a target of %d bytes, expected less than %d", f.Path, len(f.Data), maxName)
	case t == fs.ModeSymlink:
	case (t == fs.ModeDir || t == device) && len(f.Data) > 0:
		return fmt.Errorf("%s: found data in a %s", f.Path, f.Mode)
	case t == fs.ModeDir, t == device:
	default:
		return fmt.Errorf("%s: found mode %s, expected a regular file, directory, symbolic link or character device", f.Path, f.Mode)
	}
	return nil
}

// posixMode is the mode field's value.
func posixMode(m fs.FileMode) uint32 {
	perm := uint32(m.Perm())
	switch {
	case m.IsDir():
		return modeDir | perm
	case m&fs.ModeSymlink != 0:
		return modeSymlink | perm
	case m&fs.ModeCharDevice != 0:
		return modeCharDev | perm
	}
	return modeRegular | perm
}

// archive writes entries and counts the bytes, for padding.
type archive struct {
	w io.Writer
	n int64
}

func (a *archive) entry(f File, ino uint32) error {
	links := uint32(1)
	if f.Mode.IsDir() {
		links = 2
	}
	return a.write(f.Path[1:], [13]uint32{
		ino, posixMode(f.Mode), 0, 0, links, 0, uint32(len(f.Data)), 0, 0, f.Major, f.Minor,
	}, f.Data)
}

// write writes one entry. fields are in the order of the format: inode, mode,
// uid, gid, links, mtime, file size, device major and minor, rdev major and
// minor, name size (set here), checksum (zero in this format).
func (a *archive) write(name string, fields [13]uint32, data []byte) error {
	fields[11] = uint32(len(name) + 1)
	head := make([]byte, 0, headerSize+len(name)+4)
	head = append(head, magic...)
	for _, f := range fields {
		head = fmt.Appendf(head, "%08x", f)
	}
	head = append(head, name...)
	head = append(head, 0)
	if err := a.padded(head, 4); err != nil {
		return err
	}
	return a.padded(data, 4)
}

// padded writes b, then zeros up to a multiple of align.
func (a *archive) padded(b []byte, align int64) error {
	n, err := a.w.Write(b)
	a.n += int64(n)
	if err != nil {
		return err
	}
	pad := -a.n & (align - 1)
	n, err = a.w.Write(make([]byte, pad))
	a.n += int64(n)
	return err
}

func (a *archive) end() error {
	if err := a.write(trailer, [13]uint32{4: 1}, nil); err != nil {
		return err
	}
	return a.padded(nil, blockSize)
}
