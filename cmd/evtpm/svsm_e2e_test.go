//go:build linux

package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"debug/elf"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// startFromImage makes a rig's spec start from an IGVM file that is built of its
// firmware, by the recipe of examples/svsm.
func startFromImage(t *testing.T, r *rig) {
	t.Helper()
	recipe, err1 := filepath.Abs("../../examples/svsm/recipes/ovmf.yaml")
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

// TestE2ESVSMImage: an image with an SVSM in it, signed, starts on the simulated
// platform with the launch digest that hardware would measure; only its ID key is
// accepted. What stands for the SVSM's parts never runs: the simulated SVSM does in its
// stead.
func TestE2ESVSMImage(t *testing.T) {
	r := bootRig(t, e2eFirmware, "")
	startFromImage(t, r)
	at := func(name string) string { return filepath.Join(r.dir, name) }
	loader := bytes.Repeat([]byte{0xf4}, 5000) // hlt
	err := errors.Join(
		os.WriteFile(at("bldr"), loader, 0o600),
		os.WriteFile(at("svsm.elf"), svsmELF(t), 0o600),
		os.WriteFile(at("svsm.yaml"), []byte("version: 1\nkind: coconut\nboot_loader: bldr\nkernel: svsm.elf\nfirmware: "+e2eFirmware+"\nfeatures: [vtpm]\n"), 0o600),
		os.WriteFile(at("id.pem"), signingKey(t), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		code, said := r.evtpm(args...)
		if code != 0 {
			t.Fatalf("evtpm %s: exit code %d:\n%s", strings.Join(args, " "), code, said)
		}
		return said
	}
	run("svsm", "build", "-f", at("svsm.yaml"), "-o", at("unsigned.igvm"))
	run("svsm", "sign", "--id-key", at("id.pem"), "--svn", "7", "-o", at("ovmf.igvm"), at("unsigned.igvm"))
	digest := strings.TrimSpace(run("-q", "svsm", "measure", at("ovmf.igvm")))
	key := regexp.MustCompile(`ID key digest +([0-9a-f]{96})`).FindStringSubmatch(run("svsm", "verify", at("ovmf.igvm")))
	if len(digest) != 96 || key == nil {
		t.Fatalf("found digest %q, key %q", digest, key)
	}
	said := run("launch", r.spec)
	for _, want := range []string{
		"launch digest " + digest[:16] + "..., of the whole image, by the simulated AMD-SP; its firmware is what QEMU holds",
		"in the simulated SVSM: the image's is measured, and does not run",
		"ok   guest-svn: 7\n", "ok   id-key\n", "verdict: trusted (SIMULATED)",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in\n%s", want, said)
		}
	}
	golden, err := os.ReadFile(filepath.Join(r.home, "m", "golden.json"))
	if err != nil || !strings.Contains(string(golden), digest) || !strings.Contains(string(golden), key[1]) {
		t.Errorf("digest %s or key %s is not in %s (%v)", digest, key[1], golden, err)
	}
	run("stop", "m")
	run("rm", "m")
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

// signingKey makes a key for ID blocks, in PEM.
func signingKey(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

// svsmELF makes a static program of one segment.
func svsmELF(t *testing.T) []byte {
	t.Helper()
	const base, headers = 0xffffff8000000000, 4096
	code := bytes.Repeat([]byte{0xf4}, 3*4096)
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Entry: base, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	}
	p := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Off: headers, Vaddr: base, Paddr: base,
		Filesz: uint64(len(code)), Memsz: uint64(len(code)), Align: 4096,
	}
	var b bytes.Buffer
	if err := errors.Join(binary.Write(&b, binary.LittleEndian, h), binary.Write(&b, binary.LittleEndian, p)); err != nil {
		t.Fatal(err)
	}
	b.Write(make([]byte, headers-b.Len()))
	b.Write(code)
	return b.Bytes()
}
