package launchtest

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/evtpm/evtpm/launch/libvirtd"
)

// Nobody is who the daemon runs as when the tests run as root: as root it would
// be the system's.
const Nobody = 65534

// A Session is a libvirt daemon in session mode, in a folder of its own.
type Session struct {
	Dir  string
	cred *syscall.Credential
}

// Emulator is a QEMU that forgets what it is told of SEV-SNP, so that a domain
// with it runs as one without.
func (s *Session) Emulator() string { return filepath.Join(s.Dir, "qemu-without-snp") }

const withoutSNP = `#!/bin/bash
args=()
while [ $# -gt 0 ]; do
  case "$1" in
    -object) case "$2" in *sev-snp-guest*) shift 2; continue ;; esac ;;
    -machine) args+=("$1" "${2/,confidential-guest-support=lsec0/}"); shift 2; continue ;;
  esac
  args+=("$1"); shift
done
exec /usr/bin/qemu-system-x86_64 "${args[@]}"
`

func (s *Session) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + s.Dir, "XDG_RUNTIME_DIR=" + s.Dir + "/run",
		"XDG_CONFIG_HOME=" + s.Dir + "/conf", "XDG_CACHE_HOME=" + s.Dir + "/cache",
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred}
	return cmd
}

// start starts the daemon and returns what ends it.
func (s *Session) start(t *testing.T) (stop func()) {
	t.Helper()
	var log bytes.Buffer
	cmd := s.command("libvirtd", "-f", filepath.Join(s.Dir, "libvirtd.conf"))
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(s.Dir, "run/libvirt/libvirt-sock")
	for range 2400 {
		if _, err := os.Stat(socket); err == nil {
			return func() {
				_ = cmd.Process.Signal(syscall.SIGTERM)
				cmd.Wait()
				os.Remove(socket)
			}
		}
		time.Sleep(25 * time.Millisecond)
	}
	cmd.Process.Kill()
	cmd.Wait()
	t.Fatalf("libvirtd does not listen after a minute:\n%s", &log)
	return nil
}

// Virsh runs virsh on the session.
func (s *Session) Virsh(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := s.command("virsh", append([]string{"-c", "qemu:///session"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("virsh %v: %v\n%s", args, err, &stderr)
	}
	return out
}

// SNPSession starts a daemon that believes its QEMU and its host to have SEV-SNP:
// what it learned of them is kept in a file, and changed there. The same goes for
// a program that tests have in QEMU's place, [Session.Emulator].
func SNPSession(t *testing.T) *Session {
	t.Helper()
	for _, program := range []string{"libvirtd", "virsh", "qemu-system-x86_64"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed", program)
		}
	}
	// Not t.TempDir: its path can be too long for a socket, and closed to others.
	dir, err := os.MkdirTemp("", "lv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &Session{Dir: dir}
	for _, d := range []string{"run", "conf", "cache"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	Write(t, filepath.Join(dir, "libvirtd.conf"), []byte("log_outputs = \"3:stderr\"\n"))
	if os.Geteuid() == 0 {
		s.cred = &syscall.Credential{Uid: Nobody, Gid: Nobody}
		for _, name := range []string{"", "run", "conf", "cache", "libvirtd.conf"} {
			if err := os.Chown(filepath.Join(dir, name), Nobody, Nobody); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(s.Emulator(), []byte(withoutSNP), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.Emulator(), 0o755); err != nil {
		t.Fatal(err)
	}
	stop := s.start(t)
	for _, emulator := range []string{"/usr/bin/qemu-system-x86_64", s.Emulator()} {
		s.Virsh(t, "domcapabilities", "--virttype", "qemu", "--emulatorbin", emulator, "--machine", "q35")
	}
	stop()
	caches, err := filepath.Glob(filepath.Join(dir, "cache/libvirt/qemu/cache/capabilities/*.xml"))
	if err != nil || len(caches) == 0 {
		t.Fatalf("found no capabilities in libvirt's cache (%v)", err)
	}
	for _, path := range caches {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(string(data), "<version>", "<flag name='sev-guest'/><flag name='sev-snp-guest'/><version>", 1)
		text = strings.Replace(text, "</qemuCaps>", "<sev><cbitpos>51</cbitpos><reducedPhysBits>1</reducedPhysBits><pdh>AAAA</pdh>"+
			"<certChain>AAAA</certChain><cpu0Id>AAAA</cpu0Id><maxGuests>99</maxGuests><maxESGuests>400</maxESGuests></sev></qemuCaps>", 1)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(s.start(t))
	return s
}

// Connect connects to the session's daemon as a supervisor does.
func (s *Session) Connect(t *testing.T) *libvirtd.Conn {
	t.Helper()
	conn, err := net.Dial("unix", filepath.Join(s.Dir, "run/libvirt/libvirt-sock"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := libvirtd.NewConn(t.Context(), conn, "qemu:///session")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}
