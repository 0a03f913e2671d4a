//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestE2ELibvirtLaunch is a machine's life as a domain of libvirt's, started by a
// user without rights.
func TestE2ELibvirtLaunch(t *testing.T) {
	l := bootLibvirtRig(t, e2eAmdSev, "", "button.ko.xz")
	code, said := l.evtpm("launch", l.spec)
	if code != 0 || !strings.Contains(said, "verdict: trusted (SIMULATED)") || !strings.Contains(said, "by libvirt 1") {
		t.Fatalf("exit code %d:\n%s", code, said)
	}
	if testing.Verbose() {
		fmt.Printf("launched   as a user without rights, in session mode: verdict: trusted (SIMULATED)\n")
	}
	if names := l.virsh(t, "list", "--name"); names != "m" {
		t.Errorf("libvirt runs %q, expected m", names)
	}
	home := filepath.Join(l.home, "m")
	golden, evidence := filepath.Join(home, "golden.json"), filepath.Join(home, "evidence.json")
	for _, step := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"ps"}, 0, "trusted (SIMULATED)"},
		{[]string{"attest", "m"}, 0, "verdict: trusted (SIMULATED)"},
		{[]string{"attest", "--connect", "unix:" + filepath.Join(home, "agent.sock"), "--golden", golden, "--trust-sim"}, 0, "verdict: trusted (SIMULATED)"},
		{[]string{"verify", "--trust-sim", "--golden", golden, evidence}, 0, "verdict: trusted (SIMULATED)"},
		{[]string{"logs", "m"}, 0, "m| "},
		{[]string{"events", "m"}, 0, "verdict"},
		{[]string{"launch", l.spec}, 8, "is running already"},
	} {
		if code, said := l.evtpm(step.args...); code != step.code || !strings.Contains(said, step.want) {
			t.Errorf("evtpm %s: exit code %d, expected %d, with %q:\n%s", strings.Join(step.args, " "), code, step.code, step.want, said)
		}
	}
	if code, said := l.evtpm("stop", "--grace", "2m", "m"); code != 0 {
		t.Errorf("stop: %s", said)
	}
	if code, said := l.evtpm("ps"); code != 0 || !strings.Contains(said, "stopped") || !strings.Contains(said, "the guest shut down") {
		_, events := l.evtpm("events", "m")
		t.Error(said, events)
	}
	if left := l.left(10 * time.Second); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	l.remove(t)
	l.nothingLeft(t)
}

// TestFaultLibvirtRun: what ends a machine that runs and was trusted, and what
// does not. EVTPM_FAULTS=all does everything, otherwise it is the first.
func TestFaultLibvirtRun(t *testing.T) {
	cases := []struct {
		name, what string
		state      string // afterwards
		says       string
		more       string // in the spec
	}{
		{"daemon silent", "stop-libvirtd", "trusted", "trusted", ""},
		{"daemon silent, killed", "stop-libvirtd", "trusted", "trusted", ""},
		{"daemon killed", "kill-libvirtd", "failed", "the connection to libvirt has ended", ""},
		{"destroyed", "destroy", "stopped", "QEMU was told to end by someone else", ""},
		{"reset", "reset", "stopped", "the guest was reset, and its vTPM is gone", ""},
		{"reset and restarted", "reset", "trusted", `"boots": 2`, "on_reset: restart"},
		{"QEMU killed", "kill-qemu", "failed", "the VM ended", ""},
		{"vTPM killed", "kill-swtpm", "failed", "the vTPM's process (swtpm) ended", ""},
		{"supervisor killed", "kill-supervisor", "dead", "its supervisor was killed", ""},
	}
	if !allFaults() {
		cases = cases[:1]
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l := bootLibvirtRig(t, e2eFirmware, "kernel_hashes: off\n"+c.more)
			if code, said := l.evtpm("launch", l.spec); code != 0 {
				t.Fatalf("exit code %d:\n%s", code, said)
			}
			began := time.Now()
			switch c.what {
			case "reset":
				l.virsh(t, "qemu-monitor-command", "m", `{"execute":"system_reset"}`)
			default:
				l.inflict(t, c.what)
			}
			said, state := "", `"state": "`+c.state+`"`
			for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
				if _, said = l.evtpm("ps", "-o", "json"); strings.Contains(said, state) && strings.Contains(said, c.says) || time.Now().After(deadline) {
					break
				}
			}
			if !strings.Contains(said, state) || !strings.Contains(said, c.says) {
				t.Errorf("found %s, expected %s, with %q", said, c.state, c.says)
			}
			end := []string{"stop", "m"}
			if c.name == "daemon silent, killed" {
				end = []string{"kill", "m"}
			}
			if code, said := l.evtpm(end...); code != 0 && c.state == "trusted" {
				t.Errorf("%s: exit code %d: %s", end[0], code, said)
			}
			if pid := l.role("qemu"); pid != 0 && c.state == "trusted" {
				t.Errorf("QEMU runs on after evtpm %s", end[0])
			}
			report("libvirt run      %-26s %-9s %6.2fs", c.what, c.state, time.Since(began).Seconds())
			switch c.what {
			case "stop-libvirtd":
				_ = l.daemon.Process.Signal(syscall.SIGCONT)
			case "kill-libvirtd":
				_ = l.daemon.Wait()
				os.Remove(l.daemonSocket())
				l.startDaemon(t)
			}
			if left := l.left(endWait); len(left) > 0 {
				t.Errorf("processes are left: %v", left)
			}
			l.remove(t)
			l.nothingLeft(t)
		})
	}
}

// TestE2ELibvirtSSH: a URI of another machine goes through ssh and libvirt's own
// helper there. The other machine is this one, behind a program in the place of
// ssh; its libvirt is real, and refuses what it has no hardware for.
func TestE2ELibvirtSSH(t *testing.T) {
	need(t, "libvirtd", "virt-ssh-helper")
	r := mustRig(t, fakeSettings{}, "")
	ssh := func(script string) {
		if err := os.WriteFile(filepath.Join(r.dir, "ssh"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	spec := `version: 1
name: m
platform: snp
backend: libvirt
libvirt: {uri: "qemu+ssh://me@other:2222/session"}
firmware: {path: OVMF.fd}
cpu: {model: EPYC-v4}
networks: [{type: user}]
agent: {transport: tcp, address: "127.0.0.1:7600"}
`
	if err := os.WriteFile(r.spec, []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	ssh(`echo "$*" >` + filepath.Join(r.dir, "ssh-args") + "\n" + `while [ "$1" != -- ]; do shift; done; shift 2; exec "$@"`)
	l := newLibvirtRig(t, r)
	code, said := l.evtpm("launch", l.spec)
	if code != 9 || !strings.Contains(said, "does not support virt type 'kvm'") {
		t.Errorf("exit code %d, expected 9 and libvirt's refusal:\n%s", code, said)
	}
	args, err := os.ReadFile(filepath.Join(r.dir, "ssh-args"))
	if want := "-T -e none -o BatchMode=yes -p 2222 -l me -- other virt-ssh-helper qemu:///session\n"; err != nil || string(args) != want {
		t.Errorf("ssh was called with %q (%v), expected %q", args, err, want)
	}
	l.nothingLeft(t)
	ssh("echo 'Host key verification failed.' >&2; exit 255")
	if code, said := l.evtpm("launch", l.spec); code != 9 || !strings.Contains(said, "ssh: Host key verification failed.") {
		t.Errorf("exit code %d, expected 9 and what ssh said:\n%s", code, said)
	}
	l.nothingLeft(t)
}

// TestE2ELibvirtNames: a domain that is not ours is never touched, whatever its
// name.
func TestE2ELibvirtNames(t *testing.T) {
	need(t, "libvirtd", "virsh", "qemu-system-x86_64", "swtpm")
	r := mustRig(t, fakeSettings{}, "")
	r.realQEMU(t)
	spec, err := os.ReadFile(r.spec)
	if err != nil {
		t.Fatal(err)
	}
	other := `<domain type='qemu'><name>m</name><memory unit='MiB'>64</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><controller type='usb' model='none'/></devices></domain>`
	err = errors.Join(os.WriteFile(r.spec, append(spec, "backend: libvirt\n"...), 0o600), os.WriteFile(filepath.Join(r.dir, "other.xml"), []byte(other), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	l := newLibvirtRig(t, r)
	for _, running := range []bool{false, true} {
		want := "shut off"
		if running {
			l.virsh(t, "start", "m")
			want = "running"
		} else {
			l.virsh(t, "define", filepath.Join(r.dir, "other.xml"))
		}
		uuid := l.virsh(t, "domuuid", "m")
		if code, said := l.evtpm("launch", l.spec); code != 8 || !strings.Contains(said, "domain 'm' already exists with uuid "+uuid) {
			t.Errorf("exit code %d, expected 8 and that the name is taken:\n%s", code, said)
		}
		if state := l.virsh(t, "domstate", uuid); state != want {
			t.Errorf("the other domain is %q, expected %q", state, want)
		}
	}
	l.virsh(t, "destroy", "m")
	l.virsh(t, "undefine", "m")
	l.nothingLeft(t)
}

// systemLibvirt runs a system-wide libvirt, configured as it comes, with nothing
// of this machine's: in a mount namespace with folders of its own, which end with
// it. Its arguments are a folder, and what to run beside it.
const systemLibvirt = `set -eu
mount --make-rprivate /
for d in /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do mount -t tmpfs tmpfs "$d"; done
mkdir -m 755 /run/libvirt "$1/etc"
cat >"$1/etc/libvirtd.conf" <<'C'
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:stderr"
C
printf 'stdio_handler = "file"\ncgroup_controllers = [ ]\n' >"$1/etc/qemu.conf"
mount --bind "$1/etc" /etc/libvirt
libvirtd 2>"$1/libvirtd.log" &
daemon=$!
for i in $(seq 600); do
  [ -S /run/libvirt/libvirt-sock ] && break
  sleep 0.05
done
chmod 777 /run/libvirt/libvirt-sock
status=0
eval "$2" || status=$?
virsh -c qemu:///system list --all --name | grep . && status=77
kill "$daemon"
wait "$daemon" || true
exit "$status"
`

// TestE2ELibvirtSystem: through a system-wide libvirt, whose QEMU would be another
// user's, a machine runs as the user who launches it, and takes its files and
// sockets where they are: root, and a user without rights who may connect.
func TestE2ELibvirtSystem(t *testing.T) {
	need(t, "libvirtd", "virsh", "unshare", "setpriv")
	if os.Geteuid() != 0 {
		t.Skip("needs root: a system-wide libvirt of its own")
	}
	// The daemon looks at every QEMU of the machine first.
	r := bootAnywhere(t, e2eAmdSev, "backend: libvirt\nlibvirt: {uri: 'qemu:///system'}")
	spec, err := os.ReadFile(r.spec)
	if err == nil {
		err = os.WriteFile(r.spec, bytes.Replace(spec, []byte("timeouts: {"), []byte("timeouts: {start: 10m, "), 1), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	l := idleLibvirtRig(t, r)
	run := fmt.Sprintf(`setpriv --reuid=%[3]d --regid=%[3]d --clear-groups %[1]s/evtpm launch --rm %[2]s`, r.dir, r.spec, libvirtUser)
	who := []string{"a user without rights"}
	if os.Getenv("EVTPM_LIBVIRT") == "all" {
		run += fmt.Sprintf(` && EVTPM_HOME=%[1]s/h0 EVTPM_STATE=%[1]s/s0 %[1]s/evtpm launch --rm --allow-untrusted-file %[2]s`, r.dir, r.spec)
		who = append(who, "root")
	}
	cmd := exec.Command("unshare", "-m", "--propagation", "private", "bash", "-c", systemLibvirt, "bash", r.dir, run)
	cmd.Env = l.environ(l.runtime)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "verdict: trusted (SIMULATED)") != len(who) || strings.Count(string(out), "by libvirt 1") != len(who) {
		daemon, _ := os.ReadFile(filepath.Join(r.dir, "libvirtd.log"))
		t.Errorf("%v\n%s\nlibvirtd:\n%s", err, out, daemon)
	}
	for _, w := range who {
		if testing.Verbose() && !t.Failed() {
			fmt.Printf("launched   as %s, in system mode: verdict: trusted (SIMULATED)\n", w)
		}
	}
	r.nothingLeft(t)
}

// TestE2ELibvirtDaemon: where no libvirt of the session runs, launches start one,
// once.
func TestE2ELibvirtDaemon(t *testing.T) {
	need(t, "libvirtd", "virsh", "qemu-system-x86_64", "swtpm")
	r := mustRig(t, fakeSettings{}, "")
	r.realQEMU(t)
	spec, err := os.ReadFile(r.spec)
	if err != nil {
		t.Fatal(err)
	}
	before, _, _ := strings.Cut(string(spec), "timeouts: ")
	text := before + "timeouts: {start: 5m, boot: 2s}\nbackend: libvirt\n"
	other := filepath.Join(r.dir, "n.yaml")
	err = errors.Join(os.WriteFile(r.spec, []byte(text), 0o600), os.WriteFile(other, []byte(strings.Replace(text, "name: m", "name: n", 1)), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	l := idleLibvirtRig(t, r)
	said := make(chan string, 2)
	for _, spec := range []string{r.spec, other} {
		go func() {
			// The guest does nothing: the launch ends when that is clear.
			code, out := l.evtpm("launch", spec)
			said <- fmt.Sprintf("exit code %d:\n%s", code, out)
		}()
	}
	for range 2 {
		if out := <-said; !strings.Contains(out, "exit code 10") || !strings.Contains(out, "by libvirt 1") {
			t.Errorf("expected a VM that was started by libvirt, and said nothing; found %s", out)
		}
	}
	data, err := os.ReadFile(filepath.Join(l.dir, "run/libvirt/libvirtd.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.HasSuffix(strings.TrimSuffix(string(line), "\x00"), "libvirtd\x00--timeout\x00120") {
		t.Errorf("the daemon's command line is %q (%v), expected libvirtd --timeout 120", line, err)
	}
	l.nothingLeft(t)
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}
