package initramfs

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/evtpm/evtpm/inputfile"
)

// maxFile bounds one file that is added: kernel modules and agents take a few
// MiB.
const maxFile = 512 << 20

// FromDisk returns the entries for a file, or for a folder with all that it
// holds, to stand at dst in the guest. Permissions become 0755 for what anyone
// may execute and for folders, else 0644, so that the umask under which a file
// was made does not change the archive. Symbolic links inside a folder are kept
// as they are; src itself may be one.
func FromDisk(src, dst string) ([]File, error) {
	info, err := os.Stat(src)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		f, err := regular(src, dst)
		if err != nil {
			return nil, err
		}
		return []File{f}, nil
	}
	var out []File
	// The separator has a symbolic link followed.
	err = filepath.WalkDir(src+string(filepath.Separator), func(p string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(src, p)
		if err := errors.Join(err, relErr); err != nil {
			return err
		}
		to := path.Join(dst, filepath.ToSlash(rel))
		if to == "/" {
			return nil
		}
		f, err := member(p, to, d.Type())
		out = append(out, f)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// member reads one thing that a folder holds.
func member(src, dst string, t fs.FileMode) (File, error) {
	switch t {
	case fs.ModeDir:
		return File{Path: dst, Mode: fs.ModeDir | 0o755}, nil
	case fs.ModeSymlink:
		target, err := os.Readlink(src)
		return File{Path: dst, Mode: fs.ModeSymlink | 0o777, Data: []byte(target)}, err
	}
	return regular(src, dst)
}

// regular reads one regular file.
func regular(src, dst string) (File, error) {
	data, mode, err := inputfile.ReadMode(src, maxFile)
	f := File{Path: dst, Mode: 0o644, Data: data}
	if mode&0o111 != 0 {
		f.Mode = 0o755
	}
	return f, err
}
