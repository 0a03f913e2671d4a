package libvirtd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/launch/process"
)

// DefaultRuntimeDir is where a session's sockets are on systems with systemd.
func DefaultRuntimeDir() string { return fmt.Sprintf("/run/user/%d", os.Geteuid()) }

// sockets returns where the daemons of a libvirt on this machine listen, the
// newer kind of daemon first. A daemon of the session listens in the folder
// libvirt of runtimeDir.
func (p Place) sockets(root, runtimeDir string) []string {
	dir := filepath.Join(root, "/run/libvirt")
	if p.Session {
		dir = filepath.Join(runtimeDir, "libvirt")
	}
	return []string{filepath.Join(dir, "virtqemud-sock"), filepath.Join(dir, "libvirt-sock")}
}

// Connect connects to a daemon on this machine.
func (p Place) Connect(ctx context.Context, root, runtimeDir string) (conn net.Conn, err error) {
	for _, s := range p.sockets(root, runtimeDir) {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", s)
		if !NotListening(err) {
			break
		}
	}
	return conn, err
}

// NotListening reports whether a connection failed because no daemon is there.
func NotListening(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// sessionIdle is how many seconds a daemon stays that nobody uses, as libvirt's
// own clients start it.
const sessionIdle = "120"

// Dial connects to a daemon on this machine. Where none runs for the session, one
// is started, as libvirt's own clients do: it stays as long as it is used, and
// ends by itself.
func (p Place) Dial(ctx context.Context, runtimeDir string) (net.Conn, error) {
	conn, err := p.Connect(ctx, "/", runtimeDir)
	if !p.Session || !NotListening(err) {
		return conn, err
	}
	program, lookErr := SessionDaemon(exec.LookPath)
	if lookErr != nil {
		return nil, fmt.Errorf("%w; and %w", err, lookErr)
	}
	// Of two that start at once one would find the other's, end, and find that it
	// does not listen yet.
	unlock, err := lockStart(ctx, runtimeDir, program)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if conn, err := p.Connect(ctx, "/", runtimeDir); !NotListening(err) {
		return conn, err
	}
	cmd := exec.Command(program, "--timeout", sessionIdle)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its state says how it ended
		close(ended)
	}()
	for {
		conn, dialErr := p.Connect(ctx, "/", runtimeDir)
		if dialErr == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s was started, and does not listen: %w", program, context.Cause(ctx))
		case <-ended:
			if conn, err := p.Connect(ctx, "/", runtimeDir); err == nil {
				return conn, nil
			}
			return nil, fmt.Errorf("%s was started, and ended: %v", program, cmd.ProcessState)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// lockStart waits until nobody else starts a daemon of the session. The file is the
// one that libvirt's own clients lock for this.
func lockStart(ctx context.Context, runtimeDir, program string) (unlock func(), err error) {
	dir := filepath.Join(runtimeDir, "libvirt")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, filepath.Base(program)+".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Len: 1})
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), context.Cause(ctx)), f.Close())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// DialSSH connects to the daemon of another machine, through the user's own ssh
// and what libvirt has for this there. ssh must not ask for anything: nobody is
// there to answer. What it says goes to log.
func (p Place) DialSSH(start func(*exec.Cmd) error, log io.Writer) (net.Conn, error) {
	conn, other, err := process.SocketPair("ssh")
	if err != nil {
		return nil, err
	}
	defer other.Close()
	args := []string{"-T", "-e", "none", "-o", "BatchMode=yes"}
	if p.port != "" {
		args = append(args, "-p", p.port)
	}
	if p.user != "" {
		args = append(args, "-l", p.user)
	}
	cmd := exec.Command("ssh", append(args, "--", p.Host, "virt-ssh-helper", p.Driver)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = other, other, log
	if err := start(cmd); err != nil {
		conn.Close()
		return nil, err
	}
	go func() { _ = cmd.Wait() }() // its end ends the connection
	return conn, nil
}

// SessionDaemon finds the daemon that libvirt's own clients would start.
func SessionDaemon(lookPath func(string) (string, error)) (string, error) {
	for _, name := range []string{"virtqemud", "/usr/sbin/virtqemud", "libvirtd", "/usr/sbin/libvirtd"} {
		if path, err := lookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("neither virtqemud nor libvirtd is installed; on Debian: apt install libvirt-daemon libvirt-daemon-driver-qemu")
}
