package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Files of a machine's folder.
const (
	fileLock     = "lock"         // held by the supervisor
	fileMachine  = "machine.json" // Record
	fileGolden   = "golden.json"
	fileEvidence = "evidence.json" // the latest
	fileVerdict  = "verdict.json"  // on that evidence
	fileEvents   = "events.jsonl"
	fileConsole  = "console.log"
	fileQEMU     = "qemu.log"       // QEMU's standard error
	fileSuper    = "supervisor.log" // the supervisor's standard error: empty unless it broke
	sockControl  = "control.sock"   // the supervisor answers
	sockAgent    = "agent.sock"     // the guest agent answers, through QEMU
	sockQMP      = "qmp.sock"       // QEMU's monitor, for people
)

// maxSunPath is the room for a path in struct sockaddr_un, without its NUL.
const maxSunPath = 107

// A Home is the run directory: it has one folder for each machine.
type Home struct{ dir string }

// OpenHome opens the run directory dir, which is made when it is not there. It
// must be a directory, not a link to one, that belongs to this user and that
// nobody else can enter.
func OpenHome(dir string) (*Home, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	f, err := openPrivateDir(dir)
	if err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	return &Home{dir: dir}, f.Close()
}

// Dir returns the absolute path of the run directory.
func (h *Home) Dir() string { return h.dir }

func (h *Home) path(name string, file ...string) string {
	return filepath.Join(append([]string{h.dir, name}, file...)...)
}

// CheckHome looks at the run directory dir without making it: whether a machine
// of that name can have its sockets in it, and whether it is this user's alone.
// The error wraps fs.ErrNotExist when the directory is not there yet.
func CheckHome(dir, name string) error {
	if err := roomForSockets(dir, name); err != nil {
		return err
	}
	f, err := openPrivateDir(dir)
	if err != nil {
		return err
	}
	return f.Close()
}

func roomForSockets(dir, name string) error {
	if n := len(filepath.Join(dir, name, sockControl)); n > maxSunPath {
		return fmt.Errorf("%s: the path of a socket in it would be %d bytes long, expected at most %d; choose a shorter EVTPM_HOME", dir, n, maxSunPath)
	}
	return nil
}

// openPrivateDir opens a directory that is ours alone.
func openPrivateDir(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("%s: found a file or a link, expected a directory", dir)
	case err != nil:
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), dir)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	if uid := os.Geteuid(); int(st.Uid) != uid {
		f.Close()
		return nil, fmt.Errorf("%s: belongs to user %d, expected %d", dir, st.Uid, uid)
	}
	if mode := st.Mode & 0o777; mode&0o077 != 0 {
		f.Close()
		return nil, fmt.Errorf("%s: found mode %04o, expected 0700; anyone who can enter it could speak for a machine: chmod 700 %s", dir, mode, dir)
	}
	return f, nil
}

// checkName refuses what is no machine's name, before it becomes part of a path.
func checkName(name string) error {
	ok := name != "" && len(name) <= 63 && name[0] != '-'
	for _, c := range []byte(name) {
		ok = ok && ('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-')
	}
	if !ok {
		return fmt.Errorf("machine name %q: expected lower-case letters, digits and hyphens, at most 63", name)
	}
	return nil
}

// names lists the folders of machines, whatever is in them.
func (h *Home) names() ([]string, error) {
	entries, err := os.ReadDir(h.dir)
	if err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && checkName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// A claim is a machine's folder, held by its lock: as long as any process has
// the lock file open through this claim, nobody else can have one.
type claim struct {
	dir  string
	lock *os.File
}

// claim takes the folder of a machine, which is made when it is not there. A
// folder that another process holds is a BusyError.
//
// The lock is one of the open file (OFD), not of the process: it passes to the
// supervisor with the descriptor, and ends with the last copy of it, however its
// holders end. Others can ask whether it is held without taking it.
func (h *Home) claim(name string) (*claim, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	dir := h.path(name)
	if err := roomForSockets(h.dir, name); err != nil {
		return nil, fmt.Errorf("run directory %w", err)
	}
	// Another process may be removing the folder: what was locked can be gone
	// by then, and the next round makes it anew.
	for range 100 {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("run directory: %w", err)
		}
		f, err := openPrivateDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("run directory: %w", err)
		}
		fd, err := unix.Openat(int(f.Fd()), fileLock, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		f.Close()
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("run directory: %w", &fs.PathError{Op: "open", Path: filepath.Join(dir, fileLock), Err: err})
		}
		lock := os.NewFile(uintptr(fd), filepath.Join(dir, fileLock))
		err = unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			lock.Close()
			busy := &BusyError{Name: name}
			if r, err := h.record(name); err == nil {
				busy.PID = r.Supervisor.PID
			}
			return nil, busy
		}
		if err != nil {
			lock.Close()
			return nil, fmt.Errorf("run directory: lock %s: %w", lock.Name(), err)
		}
		if sameFile(lock) {
			return &claim{dir: dir, lock: lock}, nil
		}
		lock.Close()
	}
	return nil, fmt.Errorf("run directory: %s is removed as fast as it is made", dir)
}

// sameFile reports whether an open file still is what its path leads to.
func sameFile(f *os.File) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(f.Name())
	return err == nil && os.SameFile(a, b)
}

// held reports whether some process holds the folder of a machine.
func (h *Home) held(name string) (bool, error) {
	f, err := os.OpenFile(h.path(name, fileLock), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
		return false, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return l.Type != unix.F_UNLCK, nil
}

// release gives the folder up, and leaves what is in it.
func (c *claim) release() error { return c.lock.Close() }

// clear removes everything but the lock from the folder, except the files named.
func (c *claim) clear(keep ...string) error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.Name() != fileLock && !slices.Contains(keep, e.Name()) {
			errs = append(errs, os.RemoveAll(filepath.Join(c.dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// remove removes the folder and gives it up.
func (c *claim) remove() error {
	err := c.clear()
	if err == nil {
		err = os.Remove(c.lock.Name())
	}
	if err == nil {
		// Not empty means that another process has claimed the folder since.
		if err = os.Remove(c.dir); errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return errors.Join(err, c.lock.Close())
}

// writeFile writes a file of the folder whole or not at all, even when the power
// fails.
func (c *claim) writeFile(name string, data []byte) (err error) {
	path := filepath.Join(c.dir, name)
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp)
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	d, err := os.Open(c.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
