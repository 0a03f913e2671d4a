package launch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/evtpm/evtpm/measure/fromvm"
)

// nobody is who the daemon runs as when the tests run as root: as root it would
// be the system's.
const nobody = 65534

// A session is a libvirt daemon in session mode, in a folder of its own.
type session struct {
	dir  string
	cred *syscall.Credential
}

// emulator is a QEMU that forgets what it is told of SEV-SNP, so that a domain
// with it runs as one without.
func (s *session) emulator() string { return filepath.Join(s.dir, "qemu-without-snp") }

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

func (s *session) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + s.dir, "XDG_RUNTIME_DIR=" + s.dir + "/run",
		"XDG_CONFIG_HOME=" + s.dir + "/conf", "XDG_CACHE_HOME=" + s.dir + "/cache",
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred}
	return cmd
}

// start starts the daemon and returns what ends it.
func (s *session) start(t *testing.T) (stop func()) {
	t.Helper()
	var log bytes.Buffer
	cmd := s.command("libvirtd", "-f", filepath.Join(s.dir, "libvirtd.conf"))
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(s.dir, "run/libvirt/libvirt-sock")
	for range 400 {
		if _, err := os.Stat(socket); err == nil {
			return func() {
				cmd.Process.Signal(syscall.SIGTERM)
				cmd.Wait()
				os.Remove(socket)
			}
		}
		time.Sleep(25 * time.Millisecond)
	}
	cmd.Process.Kill()
	cmd.Wait()
	t.Fatalf("libvirtd does not listen after 10 s:\n%s", &log)
	return nil
}

func (s *session) virsh(t *testing.T, args ...string) []byte {
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

// snpSession starts a daemon that believes its QEMU and its host to have SEV-SNP:
// what it learned of them is kept in a file, and changed there. The same goes for
// a program that tests have in QEMU's place, [session.emulator].
func snpSession(t *testing.T) *session {
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
	s := &session{dir: dir}
	for _, d := range []string{"run", "conf", "cache"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "libvirtd.conf"), []byte("log_outputs = \"3:stderr\"\n"))
	if os.Geteuid() == 0 {
		s.cred = &syscall.Credential{Uid: nobody, Gid: nobody}
		for _, name := range []string{"", "run", "conf", "cache", "libvirtd.conf"} {
			if err := os.Chown(filepath.Join(dir, name), nobody, nobody); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(s.emulator(), []byte(withoutSNP), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.emulator(), 0o755); err != nil {
		t.Fatal(err)
	}
	stop := s.start(t)
	for _, emulator := range []string{"/usr/bin/qemu-system-x86_64", s.emulator()} {
		s.virsh(t, "domcapabilities", "--virttype", "qemu", "--emulatorbin", emulator, "--machine", "q35")
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

// options gathers the options of a command line by name.
func options(args []string) map[string][]string {
	out := make(map[string][]string)
	for i, a := range args {
		if strings.HasPrefix(a, "-") && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
			out[a] = append(out[a], args[i+1])
		}
	}
	return out
}

// jsonOption returns the JSON values of an option that have the key with the
// value.
func jsonOption(values []string, key, value string) []map[string]any {
	var out []map[string]any
	for _, v := range values {
		var m map[string]any
		if json.Unmarshal([]byte(v), &m) == nil && m[key] == value {
			out = append(out, m)
		}
	}
	return out
}

// TestE2ELibvirtConverts: libvirt makes of each domain the command line that we
// give QEMU ourselves, in everything that is measured or confidential, and in the
// devices.
func TestE2ELibvirtConverts(t *testing.T) {
	s := snpSession(t)
	for name, p := range domainCases(t) {
		if p.Spec.Networks != nil || p.Spec.Vsock != nil {
			continue // libvirt opens the host's devices already here
		}
		t.Run(name, func(t *testing.T) {
			domain, err := p.LibvirtDomain(LibvirtOptions{Dir: "/run/evtpm/demo"})
			if err != nil {
				t.Fatal(err)
			}
			// Without KVM there are no domains of its type.
			text := strings.Replace(string(domain), `<domain type="kvm"`, `<domain type="qemu"`, 1)
			path := write(t, filepath.Join(s.dir, "domain.xml"), []byte(text))
			if err := os.Chmod(path, 0o644); err != nil {
				t.Fatal(err)
			}
			line := string(s.virsh(t, "domxml-to-native", "qemu-argv", path))
			theirs := words(t, line)
			theirs = theirs[slices.IndexFunc(theirs, func(w string) bool { return strings.HasPrefix(w, "/") }):]
			command, err := p.QEMUCommand(QEMUOptions{Dir: "/run/evtpm/demo"})
			if err != nil {
				t.Fatal(err)
			}
			ours := append([]string{command.Binary}, command.Args...)

			a, b := options(ours), options(theirs)
			for _, option := range []string{"-bios", "-kernel", "-initrd", "-append", "-cpu"} {
				if d := cmp.Diff(a[option], b[option]); d != "" {
					t.Errorf("%s differs (-ours +theirs):\n%s", option, d)
				}
			}
			if p.SVSM == nil && p.Spec.Platform == PlatformSNP {
				our, err1 := fromvm.QEMUArgs(ours)
				their, err2 := fromvm.QEMUArgs(theirs)
				if err1 != nil || err2 != nil {
					t.Fatalf("reading the command lines: %v, %v", err1, err2)
				}
				if d := cmp.Diff(our, their, cmpopts.IgnoreFields(fromvm.VM{}, "Warnings")); d != "" {
					t.Errorf("what is measured differs (-ours +theirs):\n%s", d)
				}
			}
			sev := func(options map[string][]string) any {
				found := jsonOption(options["-object"], "qom-type", "sev-snp-guest")
				for _, f := range found {
					delete(f, "id")
					if f["kernel-hashes"] == false {
						delete(f, "kernel-hashes") // the default
					}
					if f["author-key-enabled"] == false {
						delete(f, "author-key-enabled")
					}
				}
				return found
			}
			if d := cmp.Diff(sev(a), sev(b)); d != "" {
				t.Errorf("sev-snp-guest differs (-ours +theirs):\n%s", d)
			}
			if d := cmp.Diff(jsonOption(a["-object"], "qom-type", "igvm-cfg"), jsonOption(b["-object"], "qom-type", "igvm-cfg")); d != "" {
				t.Errorf("igvm-cfg differs (-ours +theirs):\n%s", d)
			}
			memory := func(options map[string][]string) string {
				for _, m := range jsonOption(options["-object"], "qom-type", "memory-backend-memfd") {
					return fmt.Sprint(m["size"], m["share"], m["hugetlb"], m["hugetlbsize"])
				}
				return "none"
			}
			if memory(a) != memory(b) {
				t.Errorf("memory: ours is %s, theirs %s", memory(a), memory(b))
			}
			joined := strings.Join(theirs, " ")
			for _, bad := range []string{"pflash", "smm=on", "-global isa-debugcon", "virtio-balloon", "VGA", "usb-"} {
				if strings.Contains(joined, bad) {
					t.Errorf("found %q in libvirt's command line:\n%s", bad, line)
				}
			}
			machine := strings.Join(b["-machine"], ",")
			for _, want := range []string{"smm=off", "q35"} {
				if !strings.Contains(machine, want) {
					t.Errorf("found machine %q, expected %s in it", machine, want)
				}
			}
			var ports []string
			for _, d := range jsonOption(b["-device"], "driver", "virtserialport") {
				ports = append(ports, fmt.Sprintf("nr=%v,name=%v", d["nr"], d["name"]))
			}
			for _, d := range a["-device"] {
				switch {
				case strings.HasPrefix(d, "virtserialport,"):
					nr, rest, _ := strings.Cut(strings.TrimPrefix(d, "virtserialport,bus=serial0.0,"), ",")
					_, name, _ := strings.Cut(rest, "name=")
					if want := nr + ",name=" + name; !slices.Contains(ports, want) {
						t.Errorf("found ports %q, expected %s", ports, want)
					}
				case strings.HasPrefix(d, "loader,"):
					if !slices.Contains(b["-device"], d) {
						t.Errorf("found devices %q, expected %s", b["-device"], d)
					}
				case strings.HasPrefix(d, "tpm-crb,"):
					if len(jsonOption(b["-device"], "driver", "tpm-crb")) != 1 || !slices.Contains(b["-tpmdev"], "emulator,id=tpm-tpm0,chardev=chrtpm") {
						t.Errorf("found TPMs %q, expected one emulator", b["-tpmdev"])
					}
				}
			}
			if p.Spec.Platform == PlatformSNP && len(b["-tpmdev"]) != 0 {
				t.Errorf("found TPMs %q of the host in a confidential VM, expected none", b["-tpmdev"])
			}
			if !t.Failed() {
				tell("converted  %-24s %d options of libvirt's, the same as ours in all that is measured or confidential", name, len(theirs))
			}
		})
	}
}

// words splits what virsh prints, which is quoted for a shell.
func words(t *testing.T, line string) []string {
	t.Helper()
	var out []string
	var word strings.Builder
	quoted, started := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\'':
			quoted, started = !quoted, true
		case quoted:
			word.WriteByte(c)
		case c == '\\' && i+1 < len(line):
			i++
			if line[i] != '\n' {
				word.WriteByte(line[i])
				started = true
			}
		case c == ' ' || c == '\n':
			if started {
				out = append(out, word.String())
				word.Reset()
				started = false
			}
		default:
			word.WriteByte(c)
			started = true
		}
	}
	if quoted {
		t.Fatalf("found an open quote in %s", line)
	}
	return out
}
