//go:build linux

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// startFromImage makes a rig's spec start from an IGVM file that is built of its
// firmware, by the recipe of examples/svsm.
func startFromImage(t *testing.T, r *rig) {
	t.Helper()
	recipe, err1 := filepath.Abs("../../examples/svsm/ovmf.yaml")
	text, err2 := os.ReadFile(r.spec)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	spec := strings.Replace(string(text), "firmware: {path: "+e2eFirmware+"}", "svsm: {image: ovmf.igvm}", 1)
	if err := os.WriteFile(r.spec, []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, said := r.evtpm("svsm", "build", "-f", recipe, "-o", filepath.Join(r.dir, "ovmf.igvm")); code != 0 {
		t.Fatal(said)
	}
}

// TestE2EImage: an IGVM file built from Debian's OVMF starts on the simulated
// platform to a trusted verdict.
func TestE2EImage(t *testing.T) {
	r := bootRig(t, e2eFirmware, "")
	startFromImage(t, r)
	code, said := r.evtpm("launch", r.spec)
	if code != 0 {
		t.Fatal(said)
	}
	for _, want := range []string{
		"which runs the firmware of ovmf.igvm (2048 KiB)", "by the simulated AMD-SP", "in the simulated SVSM: the image holds none",
		"verdict: trusted (SIMULATED)",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in\n%s", want, said)
		}
	}
	for _, step := range []struct {
		args []string
		want string
	}{
		{[]string{"attest", "m"}, "verdict: trusted (SIMULATED)"},
		{[]string{"stop", "m"}, ""},
		{[]string{"rm", "m"}, ""},
	} {
		if code, said := r.evtpm(step.args...); code != 0 || !strings.Contains(said, step.want) {
			t.Errorf("evtpm %s: exit code %d, expected 0, with %q:\n%s", strings.Join(step.args, " "), code, step.want, said)
		}
	}
	r.nothingLeft(t)
}

// TestE2ELibvirtImage: the same through libvirt.
func TestE2ELibvirtImage(t *testing.T) {
	r := bootLibvirtRig(t, e2eFirmware, "")
	startFromImage(t, r.rig)
	r.give(t)
	code, said := r.evtpm("launch", "--rm", r.spec)
	if code != 0 || !strings.Contains(said, "which runs the firmware of ovmf.igvm (2048 KiB)") || !strings.Contains(said, "verdict: trusted (SIMULATED)") {
		t.Errorf("exit code %d:\n%s", code, said)
	}
	r.nothingLeft(t)
}
