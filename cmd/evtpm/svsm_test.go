package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestSVSMHardware measures a launch whose digest hardware gave: from an IGVM
// file, and from the svsm.bin and the firmware that the file was made of.
func TestSVSMHardware(t *testing.T) {
	const want = "27d154c27b7b359c935e250ec6fee72aa0ae8c1225e3b0e1cf46a9567e938066d7d6f94bbdc4a857818bdb79277a44b2\n"
	at := func(name string) string { return filepath.Join(testdata(t), "fixtures/svsm", name) }
	igvm, bin, ovmf := at("svsm-epyc-v4-4vcpu.igvm"), at("svsm.bin"), at("svsm_ovmf.fd")
	for profile, args := range map[string][]string{
		"file":             {"--host-profile", "file", "--native-zero", igvm},
		"kvm":              {"--native-zero", igvm},
		"coconut-svsm-bin": {"--ovmf", ovmf, "--vars-size", "540672", "--vcpu-type", "EPYC-v4", "--vcpus", "4", bin},
	} {
		out, stderr, err := runEvtpm(t, append([]string{"svsm", "measure"}, args...)...)
		if err != nil || out != want || stderr != "host profile: "+profile+"\n" {
			t.Errorf("%s: found %q, %q, %v; expected %q", profile, out, stderr, err, want)
		}
	}
	for words, args := range map[string][]string{
		"--vcpu-type: expected a CPU model": {"svsm", "measure", "--ovmf", ovmf, "--vars-size", "540672", bin},
		"size of the variable store":        {"svsm", "measure", "--ovmf", ovmf, "--vcpu-type", "EPYC", bin},
		"not an IGVM":                       {"svsm", "inspect", ovmf},
		"--map: found an svsm.bin":          {"svsm", "inspect", "--map", "x.svg", bin},
		"--ovmf is missing":                 {"svsm", "measure", bin},
	} {
		if _, _, err := runEvtpm(t, args...); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%v: found error %v, expected one with %q", args, err, words)
		}
	}
	for want, args := range map[string][]string{
		"svsm.bin, 1138688 bytes, starts at offset 0x0\n": {"svsm", "inspect", bin},
		"  0x9e000      0x1000  SNP_SECRETS\n":            {"svsm", "inspect", bin},
		`"schema": "evtpm.svsm-bin-inspect/v1"`:           {"svsm", "inspect", "-o", "json", bin},
	} {
		if out, _, err := runEvtpm(t, args...); err != nil || !strings.Contains(out, want) {
			t.Errorf("%v: found %q, %v; expected %q in it", args, out, err, want)
		}
	}
}
