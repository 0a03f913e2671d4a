package svsmimg

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestParseRecipe reads one recipe of each kind.
func TestParseRecipe(t *testing.T) {
	policy, features := Hex(0xb0000), Hex(33)
	for name, c := range map[string]struct {
		text string
		want *Recipe
	}{
		"wrap": {"version: 1\nkind: wrap\nfirmware: a/OVMF.fd\nplatforms: [snp]\npolicy: 0xb0000\nsev_features: 33\nparameters: off\nexpect: {cpu_model: EPYC-v4, vcpus: [1, 2]}\n",
			&Recipe{Version: 1, Kind: KindWrap, Firmware: "a/OVMF.fd", Platforms: []string{"snp"}, Policy: &policy, SEVFeatures: &features, Parameters: "off", Expect: &Expect{"EPYC-v4", []int{1, 2}}}},
		"coconut": {"# COCONUT\nversion: 1\nkind: coconut\nboot_loader: b\nkernel: k\nfilesystem: f\nfirmware: o\nvmsa: guest-memory\nconsole_port: 2\nalternate_injection: true\ndevice_tree: \"off\"\nfeatures: [vtpm, uefivars]\n",
			&Recipe{Version: 1, Kind: KindCoconut, BootLoader: "b", Kernel: "k", Filesystem: "f", Firmware: "o", VMSA: "guest-memory", ConsolePort: 2, AlternateInjection: true, DeviceTree: "off", Features: []string{"vtpm", "uefivars"}}},
		"replace": {"version: 1\nkind: replace-firmware\nimage: i\nfirmware: o\n", &Recipe{Version: 1, Kind: KindReplace, Image: "i", Firmware: "o"}},
	} {
		got, err := ParseRecipe([]byte(c.text), name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: -want +got:\n%s", name, d)
		}
	}
}

// TestParseRecipeRefuses: what is unknown, ambiguous or wrong, with its line.
func TestParseRecipeRefuses(t *testing.T) {
	const wrap = "version: 1\nkind: wrap\nfirmware: o\n"
	for text, words := range map[string]string{
		"":                                    "empty document",
		"[1]":                                 "expected fields",
		"x":                                   "expected fields",
		"kind: wrap":                          "version: found 0",
		"version: 2\nkind: wrap\nfirmware: o": "version: found 2, expected 1",
		"version: 1":                          `kind: found "", expected wrap, coconut or replace-firmware`,
		"version: 1\nkind: wrapp":             `kind: found "wrapp"`,
		wrap + "firmwre: x":                   `line 4: field "firmwre": not known; did you mean "firmware"`,
		wrap + "Policy: 1":                    `line 4: field "Policy": not known; did you mean "policy"`,
		wrap + "sev-features: 1":              `did you mean "sev_features"`,
		wrap + "kernel: k":                    `line 4: field "kernel": not for kind wrap but for coconut`,
		wrap + "firmware: p":                  `line 4: field "firmware": found twice`,
		wrap + "policy:":                      `line 4: field "policy": found no value`,
		wrap + "policy: 0200000":              "leading zero means octal",
		wrap + "policy: -1":                   "expected a whole number",
		wrap + "policy: 0x1ffffffffffffffff":  "whole number of 64 bits",
		wrap + "policy: 0x10000":              "policy: found 0x10000, expected bit 17 to be one",
		wrap + "policy: 0x4030000":            "policy: found 0x4030000",
		wrap + "sev_features: 2":              "sev_features: found 0x2, expected SNPActive",
		wrap + "platforms: [tdx]":             `platforms[0]: found "tdx"`,
		wrap + "platforms: [snp, snp]":        "each once",
		wrap + "platforms: snp":               "cannot unmarshal",
		wrap + "parameters: maybe":            `parameters: found "maybe"`,
		wrap + "expect: {cpu: x}":             `field "expect.cpu": not known`,
		wrap + "expect: {cpu_model: EPYC-v9, vcpus: [1]}":                         "the nearest is",
		wrap + "expect: {cpu_model: EPYC, vcpus: [0]}":                            "expect.vcpus[0]: found 0",
		wrap + "expect: {cpu_model: EPYC}":                                        "expect.vcpus: found 0 numbers",
		wrap + "---\nversion: 1":                                                  "more after the first document",
		wrap + "policy: &a 0x30000":                                               "anchor or alias",
		"version: 1\nkind: wrap\nfirmware: &f o\nplatforms: [*f]":                 "anchor or alias",
		wrap + "policy: !!str 0x30000":                                            "found tag",
		wrap + "<<: {policy: 1}":                                                  "merge",
		"version: 1\nkind: wrap":                                                  "firmware: missing",
		"version: 1\nkind: coconut":                                               "boot_loader: missing",
		"version: 1\nkind: replace-firmware\nfirmware: o":                         "image: missing",
		"version: 1\nkind: coconut\nboot_loader: b\nkernel: k\nvmsa: top":         `vmsa: found "top"`,
		"version: 1\nkind: coconut\nboot_loader: b\nkernel: k\nconsole_port: 5":   "console_port: found 5",
		"version: 1\nkind: coconut\nboot_loader: b\nkernel: k\nfeatures: ['a b']": "features[0]",
		"version: 1\nkind: coconut\nboot_loader: b\nkernel: k\nfeatures: [" + strings.Repeat("a,", 65) + "]": "features: found 65",
		"a: " + strings.Repeat("[", 20) + strings.Repeat("]", 20):                                            "deeper nesting",
		strings.Repeat("#", maxRecipe+1):                                                                     "expected at most",
		"\t":                                                                                                 "",
	} {
		if _, err := ParseRecipe([]byte(text), "recipe"); err == nil || !strings.Contains(err.Error(), words) || !strings.HasPrefix(err.Error(), "recipe: ") {
			t.Errorf("%.60q: found error %v, expected one with %q", text, err, words)
		}
	}
	_, err := ParseRecipe([]byte("version: 3\nkind: coconut\nconsole_port: 9\n"), "r")
	if n := strings.Count(err.Error(), "\n") + 1; n != 4 {
		t.Errorf("found %d errors, expected 4: %v", n, err)
	}
}

// TestManifest reads a manifest again, and holds images against it.
func TestManifest(t *testing.T) {
	r := coconutRecipe()
	r.Expect = &Expect{CPUModel: "EPYC-Milan", VCPUs: []int{3}}
	b := must(r.Build(files(coconutFiles())))
	text := must(b.Manifest.Encode())
	m, err := ParseManifest(text)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(b.Manifest, m); d != "" {
		t.Errorf("-written +read:\n%s", d)
	}
	if err := m.Check(b.Image); err != nil {
		t.Error(err)
	}
	if len(m.Inputs) != 4 || m.Features[0] != "vtpm" || len(m.LaunchDigests) != 4 || m.LaunchDigests[2].VCPUs != 3 {
		t.Errorf("found %+v", m)
	}
	other := must((&Recipe{Version: 1, Kind: KindWrap, Firmware: "OVMF.fd"}).Build(files(coconutFiles()))).Image
	if err := m.Check(other); err == nil || !strings.Contains(err.Error(), "SHA-256") || strings.Count(err.Error(), "launch digest") != 4 {
		t.Errorf("another image: found error %v", err)
	}
	if err := m.Check([]byte("IGVM")); err == nil {
		t.Error("four bytes are taken for the image")
	}
	for name, c := range map[string]struct {
		change func(map[string]any)
		words  string
	}{
		"schema":     {func(m map[string]any) { m["schema"] = "x" }, `schema: found "x"`},
		"image":      {func(m map[string]any) { m["image"].(map[string]any)["sha256"] = "00" }, "image.sha256: found 1 bytes"},
		"input":      {func(m map[string]any) { m["inputs"].([]any)[1].(map[string]any)["sha256"] = "" }, "inputs[1].sha256: found 0 bytes"},
		"no recipe":  {func(m map[string]any) { delete(m, "recipe") }, "recipe: missing"},
		"bad recipe": {func(m map[string]any) { m["recipe"].(map[string]any)["version"] = 9 }, "recipe: version: found 9"},
		"profile":    {func(m map[string]any) { m["launch_digests"].([]any)[0].(map[string]any)["host_profile"] = "xen" }, `host profile "xen"`},
		"vcpus":      {func(m map[string]any) { m["launch_digests"].([]any)[0].(map[string]any)["vcpus"] = 0 }, "found 0 vCPUs"},
		"zeros": {func(m map[string]any) {
			m["launch_digests"].([]any)[0].(map[string]any)["launch_digest"] = strings.Repeat("0", 96)
		}, "and digest 000"},
		"unknown field": {func(m map[string]any) { m["extra"] = 1 }, `field "extra": not known`},
	} {
		var doc map[string]any
		if err := json.Unmarshal(text, &doc); err != nil {
			t.Fatal(err)
		}
		c.change(doc)
		if _, err := ParseManifest(must(json.Marshal(doc))); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: found error %v, expected one with %q", name, err, c.words)
		}
	}
	m.LaunchDigests[0].LaunchDigest[0] ^= 1
	m.LaunchDigests[1].HostProfile = ProfileKVMDirect
	m.LaunchDigests[2].CPUModel = "EPYC-v99"
	if err := m.Check(b.Image); err == nil || strings.Count(err.Error(), "host profile") < 3 {
		t.Errorf("found error %v, expected one for each of three digests", err)
	}
	native := &Recipe{Version: 1, Kind: KindWrap, Platforms: []string{"native"}, Firmware: "OVMF.fd"}
	n := must(native.Build(files(coconutFiles())))
	if m := must(ParseManifest(must(n.Manifest.Encode()))); m.Policy != nil || m.LaunchDigests != nil || m.Check(n.Image) != nil {
		t.Errorf("an image for NATIVE alone has the manifest %+v", m)
	}
}
