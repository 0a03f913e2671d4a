//go:build linux

package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// libvirtUser is who everything runs as when the tests run as root: libvirt has
// sessions for other users alone.
const libvirtUser = 65534

// A libvirtRig is a rig whose machines run through a libvirt of its own: a real
// daemon in session mode, as a user without rights.
type libvirtRig struct {
	*rig
	cred    *syscall.Credential
	runtime string // XDG_RUNTIME_DIR of evtpm
	daemon  *exec.Cmd
}

// newLibvirtRig makes of a rig one with libvirt, and starts the daemon.
func newLibvirtRig(t *testing.T, r *rig) *libvirtRig {
	t.Helper()
	l := idleLibvirtRig(t, r)
	l.startDaemon(t)
	t.Cleanup(l.stopDaemon)
	return l
}

// idleLibvirtRig makes of a rig one with libvirt, of which no daemon runs.
func idleLibvirtRig(t *testing.T, r *rig) *libvirtRig {
	t.Helper()
	need(t, "libvirtd", "virsh")
	l := &libvirtRig{rig: r, runtime: filepath.Join(r.dir, "run")}
	state, err := simState()
	if err != nil {
		t.Fatal(err)
	}
	r.state = filepath.Join(r.dir, "state")
	if err := os.CopyFS(r.state, os.DirFS(state)); err != nil {
		t.Fatal(err)
	}
	// virtlogd would outlive the daemon by two minutes.
	qemuConf := filepath.Join(r.dir, "conf/libvirt/qemu.conf")
	err = errors.Join(os.Mkdir(l.runtime, 0o700), os.MkdirAll(filepath.Dir(qemuConf), 0o700), os.Mkdir(filepath.Join(r.dir, "cache"), 0o700),
		os.WriteFile(qemuConf, []byte("stdio_handler = \"file\"\n"), 0o600),
		os.WriteFile(filepath.Join(r.dir, "libvirtd.conf"), []byte("log_outputs = \"3:stderr\"\n"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		l.cred = &syscall.Credential{Uid: libvirtUser, Gid: libvirtUser}
	}
	l.give(t)
	return l
}

// give makes everything in the rig the user's.
func (l *libvirtRig) give(t *testing.T) {
	t.Helper()
	if l.cred == nil {
		return
	}
	err := filepath.WalkDir(l.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(path, libvirtUser, libvirtUser)
		}
		if err == nil && strings.HasPrefix(path, l.state) {
			mode := fs.FileMode(0o600)
			if d.IsDir() {
				mode = 0o700
			}
			err = os.Chmod(path, mode) // os.CopyFS widens it
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (l *libvirtRig) environ(runtime string) []string {
	return []string{
		"PATH=" + l.dir + ":" + os.Getenv("PATH") + ":/usr/sbin", "HOME=" + l.dir, "XDG_RUNTIME_DIR=" + runtime,
		"XDG_CONFIG_HOME=" + filepath.Join(l.dir, "conf"), "XDG_CACHE_HOME=" + filepath.Join(l.dir, "cache"),
		"EVTPM_HOME=" + l.home, "EVTPM_STATE=" + l.state, "EVTPM_CI_MARK=" + os.Getenv("EVTPM_CI_MARK"),
	}
}

func (l *libvirtRig) daemonSocket() string {
	return filepath.Join(l.dir, "run/libvirt/libvirt-sock")
}

func (l *libvirtRig) startDaemon(t *testing.T) {
	t.Helper()
	cmd := exec.Command("libvirtd", "-f", filepath.Join(l.dir, "libvirtd.conf"))
	cmd.Env = l.environ(filepath.Join(l.dir, "run"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: l.cred, Pdeathsig: syscall.SIGKILL}
	log, err := os.OpenFile(filepath.Join(l.dir, "libvirtd.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l.daemon = cmd
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(l.daemonSocket()); err == nil {
			return
		}
		if time.Now().After(deadline) {
			said, _ := os.ReadFile(log.Name())
			t.Fatalf("libvirtd does not listen:\n%s", said)
		}
	}
}

// stopDaemon ends the daemon, however it is.
func (l *libvirtRig) stopDaemon() {
	if l.daemon == nil {
		return
	}
	_ = l.daemon.Process.Signal(syscall.SIGCONT)
	_ = l.daemon.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		_ = l.daemon.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		_ = l.daemon.Process.Kill()
		<-done
	}
	os.Remove(l.daemonSocket())
	l.daemon = nil
}

// command prepares a run of evtpm as the user.
func (l *libvirtRig) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(l.dir, "evtpm"), args...)
	cmd.Env = l.environ(l.runtime)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: l.cred}
	return cmd
}

// evtpm runs evtpm and returns its exit code and what it said.
func (l *libvirtRig) evtpm(args ...string) (int, string) {
	cmd := l.command(args...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return -1, err.Error()
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// virsh asks the daemon.
func (l *libvirtRig) virsh(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("virsh", append([]string{"-c", "qemu:///session"}, args...)...)
	cmd.Env = l.environ(filepath.Join(l.dir, "run"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: l.cred}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("virsh %v: %v: %s", args, err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// left lists what runs besides the daemon.
func (l *libvirtRig) left(within time.Duration) map[int]string {
	for deadline := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
		left := l.processes()
		for pid, line := range left {
			if program, _, _ := strings.Cut(line, " "); filepath.Base(program) == "libvirtd" {
				delete(left, pid)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
	}
}

// remove removes what is left of the machine. A supervisor that is ending holds
// its folder to the last.
func (l *libvirtRig) remove(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(endWait); ; time.Sleep(50 * time.Millisecond) {
		code, said := l.evtpm("rm", "m")
		if code == 0 {
			return
		}
		if !strings.Contains(said, "is running already") || time.Now().After(deadline) {
			t.Errorf("evtpm rm: exit code %d: %s", code, said)
			return
		}
	}
}

// nothingLeft fails the test when anything runs, lies about, or is known to
// libvirt.
func (l *libvirtRig) nothingLeft(t *testing.T) {
	t.Helper()
	if left := l.left(10 * time.Second); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	if files := l.files(); len(files) > 0 {
		t.Errorf("files are left: %v", files)
	}
	l.noDomains(t)
}

// noDomains waits until libvirt knows no domain any more.
func (l *libvirtRig) noDomains(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(endWait); ; time.Sleep(50 * time.Millisecond) {
		names := l.virsh(t, "list", "--all", "--name")
		if names == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("domains are left: %q", names)
			return
		}
	}
}

// bootLibvirtRig is a rig whose spec boots through the rig's own libvirt.
func bootLibvirtRig(t *testing.T, firmware, more string, modules ...string) *libvirtRig {
	t.Helper()
	need(t, "libvirtd", "virsh")
	return newLibvirtRig(t, bootAnywhere(t, firmware, more+"\nbackend: libvirt\n", modules...))
}

// bootAnywhere is a rig with a spec that boots, without files of the tree, which
// may lie where another user cannot look: they are copied to the rig.
func bootAnywhere(t *testing.T, firmware, more string, modules ...string) *rig {
	t.Helper()
	r := bootRig(t, firmware, more, modules...)
	spec, err := os.ReadFile(r.spec)
	if err != nil {
		t.Fatal(err)
	}
	for from, name := range map[string]string{e2eKernel: "vmlinuz", firmware: "OVMF.fd"} {
		if filepath.IsAbs(from) {
			continue // the system's
		}
		abs, err1 := filepath.Abs(from)
		data, err2 := os.ReadFile(from)
		if err := errors.Join(err1, err2, os.WriteFile(filepath.Join(r.dir, name), data, 0o600)); err != nil {
			t.Fatal(err)
		}
		spec = bytes.Replace(spec, []byte(abs), []byte(name), 1)
	}
	if err := os.WriteFile(r.spec, spec, 0o600); err != nil {
		t.Fatal(err)
	}
	return r
}
