//go:build linux

package main

import (
	"path/filepath"
	"strings"
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
