//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What scripts/setup puts where.
const (
	e2eKernel   = "../../build/kernel/vmlinuz"
	e2eFirmware = "/usr/share/ovmf/OVMF.fd"
	e2eAmdSev   = "../../build/firmware/OVMF.amdsev.fd"
)

// bootRig is a rig with a spec that boots: real QEMU, firmware and kernel, and
// our agent as /init.
func bootRig(t *testing.T, firmware, more string, modules ...string) *rig {
	t.Helper()
	need(t, "qemu-system-x86_64", "swtpm")
	for _, f := range []string{e2eKernel, firmware} {
		if _, err := os.Stat(f); err != nil {
			t.Skipf("%s is missing: run scripts/setup test", f)
		}
	}
	r := mustRig(t, fakeSettings{}, "")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", filepath.Join(r.dir, "agent"), "../evtpm-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	args := []string{"initramfs", "--agent", filepath.Join(r.dir, "agent"), "-o", filepath.Join(r.dir, "initrd")}
	for _, m := range modules {
		found, err := filepath.Glob("../../build/kernel/lib/modules/*/kernel/drivers/*/" + m)
		if err != nil || len(found) != 1 {
			t.Skipf("kernel module %s: found %q: run scripts/setup test", m, found)
		}
		args = append(args, "--add", found[0]+":/lib/modules/"+m)
	}
	if code, said := r.evtpm(args...); code != 0 {
		t.Fatal(said)
	}
	kernel, err1 := filepath.Abs(e2eKernel)
	firmware, err2 := filepath.Abs(firmware)
	spec := fmt.Sprintf(`version: 1
name: m
platform: sim
firmware: {path: %s}
kernel: %s
initrd: initrd
cmdline: console=ttyS0 quiet loglevel=0
cpu: {model: qemu64}
memory: 256M
timeouts: {boot: 10m, attest: 2m}
%s
`, firmware, kernel, more)
	if err := errors.Join(err1, err2, os.WriteFile(r.spec, []byte(spec), 0o600)); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestE2ELaunch is a machine's life, with nothing in it that is not real but the
// AMD-SP and the SVSM.
func TestE2ELaunch(t *testing.T) {
	r := bootRig(t, e2eFirmware, "kernel_hashes: off")
	cmd := r.command("launch", "-o", "json", r.spec)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, said.String())
	}
	var doc launchDoc
	if err := json.Unmarshal(out, &doc); err != nil {
		t.Fatal(err)
	}
	if !doc.Verdict.Trusted() || doc.Verdict.Platform != "sim" || !doc.Verdict.Live || len(doc.Timings) != 7 || len(doc.Golden) == 0 {
		t.Errorf("found %s", out)
	}
	for _, want := range []string{"booted", "verdict: trusted (SIMULATED)", "evtpm stop m"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("%q is not in\n%s", want, said.String())
		}
	}
	home := filepath.Join(r.home, "m")
	golden, evidence, saved := filepath.Join(home, "golden.json"), filepath.Join(home, "evidence.json"), filepath.Join(r.dir, "saved.json")
	for _, step := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"ps"}, 0, "trusted (SIMULATED)"},
		{[]string{"attest", "m"}, 0, "verdict: trusted (SIMULATED)"},
		{[]string{"attest", "--connect", "unix:" + filepath.Join(home, "agent.sock"), "--golden", golden, "--trust-sim", "--save", saved}, 0, "verdict: trusted (SIMULATED)"},
		{[]string{"verify", "--trust-sim", "--golden", golden, saved}, 0, "verdict: trusted (SIMULATED)"},
		{[]string{"verify", "--golden", golden, evidence}, 2, "verdict: refused"},
		{[]string{"logs", "m"}, 0, "m| "},
		{[]string{"logs", "-o", "json", "m"}, 0, `{"machine":"m","source":"guest","at":`},
		{[]string{"events", "m"}, 0, "verdict"},
		{[]string{"launch", r.spec}, 8, "is running already"},
	} {
		if code, said := r.evtpm(step.args...); code != step.code || !strings.Contains(said, step.want) {
			t.Errorf("evtpm %s: exit code %d, expected %d, with %q:\n%s", strings.Join(step.args, " "), code, step.code, step.want, said)
		}
	}
	if code, said := r.evtpm("stop", "m"); code != 0 {
		t.Errorf("stop: %s", said)
	}
	if left := r.gone(endWait); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	if code, said := r.evtpm("attest", "m"); code != 8 || !strings.Contains(said, "does not run: stopped") {
		t.Errorf("attest after stop: exit code %d: %s", code, said)
	}
	r.evtpm("rm", "m")
	r.nothingLeft(t)
}

// TestE2EPowerdown: the guest is asked to shut down, and does.
func TestE2EPowerdown(t *testing.T) {
	r := bootRig(t, e2eAmdSev, "", "button.ko.xz")
	if code, said := r.evtpm("launch", r.spec); code != 0 {
		t.Fatal(said)
	}
	if code, said := r.evtpm("stop", "--grace", "2m", "m"); code != 0 {
		t.Error(said)
	}
	if code, said := r.evtpm("ps"); code != 0 || !strings.Contains(said, "stopped") || !strings.Contains(said, "the guest shut down") {
		t.Error(said)
	}
	r.evtpm("rm", "m")
	r.nothingLeft(t)
}

// TestE2ELaunchQEMUs: the simulated platform runs on QEMUs older and newer than
// this system's, and refuses at once what one of them cannot do.
func TestE2ELaunchQEMUs(t *testing.T) {
	others := filepath.SplitList(os.Getenv("EVTPM_QEMUS"))
	if len(others) == 0 {
		t.Skip("EVTPM_QEMUS names no other QEMU: scripts/test-qemu")
	}
	for _, qemu := range others {
		version, err := exec.Command(qemu, "--version").Output()
		if err != nil {
			t.Fatal(err)
		}
		binary := "qemu: {binary: " + qemu + "}"
		r := bootRig(t, e2eFirmware, "kernel_hashes: off\n"+binary)
		code, said := r.evtpm("launch", "--rm", r.spec)
		if code != 0 || !strings.Contains(said, "verdict: trusted (SIMULATED)") {
			t.Errorf("%s: exit code %d:\n%s", qemu, code, said)
		}
		r.nothingLeft(t)
		if !strings.HasPrefix(string(version), "QEMU emulator version 7.") {
			continue
		}
		r = bootRig(t, e2eAmdSev, binary)
		code, said = r.evtpm("launch", "--rm", r.spec)
		if code != 9 || !strings.Contains(said, "kernel_hashes: on needs QEMU 10.0 or later on platform sim, found 7.2") {
			t.Errorf("%s, kernel hashes: exit code %d, expected 9:\n%s", qemu, code, said)
		}
		r.nothingLeft(t)
	}
}
