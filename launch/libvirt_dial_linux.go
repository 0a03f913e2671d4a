package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/evtpm/evtpm/attest"
)

// A libvirtPlace is a libvirt that a URI leads to.
type libvirtPlace struct {
	driver  string // what the daemon is asked to open: qemu:///system
	session bool
	host    string // another machine; empty: this one
	user    string
	port    string
}

// parseLibvirtURI takes a URI that goodLibvirtURI has taken.
func parseLibvirtURI(uri string) (libvirtPlace, error) {
	if !goodLibvirtURI(uri) {
		return libvirtPlace{}, fmt.Errorf("found libvirt URI %q", clip(uri))
	}
	u, err := url.Parse(uri)
	if err != nil {
		return libvirtPlace{}, err
	}
	return libvirtPlace{
		driver: "qemu://" + u.Path, session: u.Path == "/session",
		host: u.Hostname(), user: u.User.Username(), port: u.Port(),
	}, nil
}

// checkLibvirtLaunch refuses what the user euid cannot launch through the spec's
// libvirt.
func checkLibvirtLaunch(s *Spec, euid int) error {
	if s.Backend != BackendLibvirt {
		return nil
	}
	p, err := parseLibvirtURI(s.Libvirt.URI)
	if err != nil {
		return err
	}
	var errs []error
	refuse := func(format string, args ...any) { errs = append(errs, fmt.Errorf("libvirt.uri: "+format, args...)) }
	switch {
	case p.host != "":
		if s.Platform == PlatformSim {
			refuse("found %s with platform sim, expected a libvirt on this machine: the simulated AMD-SP and the vTPM are here, and another machine's QEMU does not reach them", s.Libvirt.URI)
		}
		if s.Agent.Transport != TransportTCP {
			refuse("found %s with agent.transport %s, expected tcp: the agent's port is on the other machine", s.Libvirt.URI, s.Agent.Transport)
		}
	case p.session && euid == 0:
		refuse("found %s for root, expected qemu:///system: libvirt has sessions for other users alone", s.Libvirt.URI)
	}
	return errors.Join(errs...)
}

// defaultRuntimeDir is where a session's sockets are on systems with systemd.
func defaultRuntimeDir() string { return fmt.Sprintf("/run/user/%d", os.Geteuid()) }

// sockets returns where the daemons of a libvirt on this machine listen, the
// newer kind of daemon first. A daemon of the session listens in the folder
// libvirt of runtimeDir.
func (p libvirtPlace) sockets(root, runtimeDir string) []string {
	dir := filepath.Join(root, "/run/libvirt")
	if p.session {
		dir = filepath.Join(runtimeDir, "libvirt")
	}
	return []string{filepath.Join(dir, "virtqemud-sock"), filepath.Join(dir, "libvirt-sock")}
}

// connect connects to a daemon on this machine.
func (p libvirtPlace) connect(ctx context.Context, root, runtimeDir string) (conn net.Conn, err error) {
	for _, s := range p.sockets(root, runtimeDir) {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", s)
		if !notListening(err) {
			break
		}
	}
	return conn, err
}

// notListening reports whether a connection failed because no daemon is there.
func notListening(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// sessionIdle is how many seconds a daemon stays that nobody uses, as libvirt's
// own clients start it.
const sessionIdle = "120"

// dial connects to a daemon on this machine. Where none runs for the session, one
// is started, as libvirt's own clients do: it stays as long as it is used, and
// ends by itself.
func (p libvirtPlace) dial(ctx context.Context, runtimeDir string) (net.Conn, error) {
	conn, err := p.connect(ctx, "/", runtimeDir)
	if !p.session || !notListening(err) {
		return conn, err
	}
	program, lookErr := sessionDaemon(exec.LookPath)
	if lookErr != nil {
		return nil, fmt.Errorf("%w; and %w", err, lookErr)
	}
	cmd := exec.Command(program, "--timeout", sessionIdle)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // another's daemon may have been faster, and this one gone
		close(ended)
	}()
	for {
		conn, dialErr := p.connect(ctx, "/", runtimeDir)
		if dialErr == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s was started, and does not listen: %w", program, context.Cause(ctx))
		case <-ended:
			if conn, err := p.connect(ctx, "/", runtimeDir); err == nil {
				return conn, nil
			}
			return nil, fmt.Errorf("%s was started, and ended: %v", program, cmd.ProcessState)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// dialSSH connects to the daemon of another machine, through the user's own ssh
// and what libvirt has for this there. ssh must not ask for anything: nobody is
// there to answer. What it says goes to log.
func (p libvirtPlace) dialSSH(start func(*exec.Cmd) error, log io.Writer) (net.Conn, error) {
	conn, other, err := socketPair("ssh")
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
	cmd := exec.Command("ssh", append(args, "--", p.host, "virt-ssh-helper", p.driver)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = other, other, log
	if err := start(cmd); err != nil {
		conn.Close()
		return nil, err
	}
	go func() { _ = cmd.Wait() }() // its end ends the connection
	return conn, nil
}

// sessionDaemon finds the daemon that libvirt's own clients would start.
func sessionDaemon(lookPath func(string) (string, error)) (string, error) {
	for _, name := range []string{"virtqemud", "/usr/sbin/virtqemud", "libvirtd", "/usr/sbin/libvirtd"} {
		if path, err := lookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("neither virtqemud nor libvirtd is installed; on Debian: apt install libvirt-daemon libvirt-daemon-driver-qemu")
}

// refused says that there is no libvirt, or that it wants nothing of this user,
// and what to do. One that falls silent or ends is another matter.
func (p libvirtPlace) refused(uri string, err error) error {
	err = fmt.Errorf("libvirt at %s: %w; see whether this works: virsh -c %[1]s version", uri, err)
	if errors.Is(err, errLibvirtGone) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &classedError{class: attest.ClassHostNotCapable, err: err}
}
