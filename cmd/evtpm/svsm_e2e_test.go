//go:build linux

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestE2EImage: an IGVM file built from Debian's OVMF, by the recipe of
// examples/svsm, starts on the simulated platform to a trusted verdict.
func TestE2EImage(t *testing.T) {
	r := bootRig(t, e2eFirmware, "")
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
