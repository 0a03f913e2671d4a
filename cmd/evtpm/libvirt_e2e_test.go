//go:build linux

package main

import (
	"os"
	"path/filepath"
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
	l.evtpm("rm", "m")
	l.nothingLeft(t)
}

// TestE2ELibvirtLoses: what ends a machine that runs and was trusted, and what
// does not. EVTPM_FAULTS=all does everything, otherwise it is the first.
func TestE2ELibvirtLoses(t *testing.T) {
	cases := []struct {
		name, what string
		state      string // afterwards
		says       string
	}{
		{"daemon silent", "stop-libvirtd", "trusted", "trusted"},
		{"daemon killed", "kill-libvirtd", "failed", "the connection to libvirt has ended"},
		{"destroyed", "destroy", "stopped", "QEMU was told to end by someone else"},
		{"reset", "reset", "stopped", "the guest was reset, and its vTPM is gone"},
		{"QEMU killed", "kill-qemu", "failed", "the VM ended"},
		{"vTPM killed", "kill-swtpm", "failed", "the vTPM's process (swtpm) ended"},
		{"supervisor killed", "kill-supervisor", "dead", "its supervisor was killed"},
	}
	if !allFaults() {
		cases = cases[:1]
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l := bootLibvirtRig(t, e2eFirmware, "kernel_hashes: off")
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
			said := ""
			for deadline := time.Now().Add(endWait); ; time.Sleep(50 * time.Millisecond) {
				if _, said = l.evtpm("ps"); strings.Contains(said, c.state) && strings.Contains(said, c.says) || time.Now().After(deadline) {
					break
				}
			}
			if !strings.Contains(said, c.state) || !strings.Contains(said, c.says) {
				t.Errorf("found %s, expected %s, with %q", said, c.state, c.says)
			}
			if code, said := l.evtpm("stop", "m"); code != 0 && c.state == "trusted" {
				t.Errorf("stop: exit code %d: %s", code, said)
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
			if code, said := l.evtpm("rm", "m"); code != 0 {
				t.Errorf("rm: exit code %d: %s", code, said)
			}
			l.nothingLeft(t)
		})
	}
}
