package initramfs

import (
	"errors"
	"fmt"
	"io"
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
	root, err := filepath.EvalSymlinks(src)
	if err != nil {
		return nil, err
	}
	var out []File
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		to := path.Join(dst, filepath.ToSlash(rel))
		switch {
		case d.IsDir():
			if to != "/" {
				out = append(out, File{Path: to, Mode: fs.ModeDir | 0o755})
			}
			return nil
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			out = append(out, File{Path: to, Mode: fs.ModeSymlink | 0o777, Data: []byte(target)})
			return nil
		}
		f, err := regular(p, to)
		if err != nil {
			return err
		}
		out = append(out, f)
		return nil
	})
	return out, err
}

// regular reads one regular file.
func regular(src, dst string) (File, error) {
	f, size, err := inputfile.Open(src, maxFile)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	data, err := io.ReadAll(io.LimitReader(f, size+1))
	if err == nil && int64(len(data)) != size {
		err = errors.New("changed while it was read")
	}
	if err != nil {
		return File{}, fmt.Errorf("%s: %w", src, err)
	}
	mode := fs.FileMode(0o644)
	if info.Mode()&0o111 != 0 {
		mode = 0o755
	}
	return File{Path: dst, Mode: mode, Data: data}, nil
}
