// Package launchtest makes what tests of launches are made from: specs with their
// inputs, and a libvirt that believes in SEV-SNP.
package launchtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf/ovmftest"
	"github.com/evtpm/evtpm/svsmimg"
)

// Write writes a file.
func Write(t testing.TB, path string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Demo is a spec of the simulated platform.
const Demo = `version: 1
name: demo
platform: sim
firmware: {path: OVMF.fd}
kernel: ../vmlinuz
initrd: /boot/initrd.cpio
cmdline: quiet loglevel=0
memory: 256M
`

// With returns the demo spec with lines replaced or added: a line replaces the one
// of the same field.
func With(lines ...string) string {
	out := strings.Split(strings.TrimSpace(Demo), "\n")
add:
	for _, l := range lines {
		field, _, _ := strings.Cut(l, ":")
		for i, o := range out {
			if name, _, _ := strings.Cut(o, ":"); name == field {
				out[i] = l
				continue add
			}
		}
		out = append(out, l)
	}
	return strings.Join(out, "\n") + "\n"
}

// Kernel is a PE image with an EFI stub's strings: enough of a kernel to be
// measured.
func Kernel() []byte {
	const header, optional, headers = 0x40, 0x58, 0x200
	k := make([]byte, headers+0x100)
	copy(k, "MZ")
	binary.LittleEndian.PutUint32(k[0x3c:], header)
	copy(k[header:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(k[header+6:], 1)              // sections
	binary.LittleEndian.PutUint16(k[header+20:], 112)           // size of the optional header
	binary.LittleEndian.PutUint16(k[optional:], 0x20b)          // PE32+
	binary.LittleEndian.PutUint32(k[optional+60:], headers)     // size of the headers
	binary.LittleEndian.PutUint32(k[optional+112+16:], 0x100)   // section's size
	binary.LittleEndian.PutUint32(k[optional+112+20:], headers) // section's place
	copy(k[headers:], "LOADED_IMAGE::LoadOptions Linux initrd")
	return k
}

// Key makes a P-384 key in PEM.
func Key(t testing.TB, path string) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	Write(t, path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	return k
}

// IGVM makes an image with one page and the boot vCPU's VMSA at gpa.
func IGVM(t *testing.T, vmsaGPA uint64, more ...svsmimg.Header) []byte {
	t.Helper()
	vmsa, err := measure.VCPU{Signature: 0x800f12, Features: 1, EIP: measure.ResetEIP}.VMSA()
	if err != nil {
		t.Fatal(err)
	}
	data := append(make([]byte, measure.PageSize), vmsa.Page()...)
	copy(data, "SVSM")
	page := func(i uint32) svsmimg.Blob {
		// The file data begins where the headers end, padded; the writer knows.
		return svsmimg.Blob{Offset: i * measure.PageSize, Size: measure.PageSize}
	}
	f := &svsmimg.File{
		Version: 1,
		Headers: append([]svsmimg.Header{&svsmimg.Platform{Mask: 1, Platform: svsmimg.PlatformSNP, Version: 1}}, append(more,
			&svsmimg.PageData{GPA: 0x10000, Mask: 1, Data: page(0)},
			&svsmimg.VPContext{GPA: vmsaGPA, Mask: 1, Data: page(1)},
		)...),
		Data: data,
	}
	out, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// SpecDir makes a folder with the inputs of a spec and the spec itself, whose
// lines replace or add to those of a plain one.
func SpecDir(t testing.TB, lines ...string) (dir, spec string) {
	t.Helper()
	dir = t.TempDir()
	Write(t, filepath.Join(dir, "OVMF.fd"), ovmftest.Build(ovmftest.AmdSev()))
	Write(t, filepath.Join(dir, "vmlinuz"), Kernel())
	Write(t, filepath.Join(dir, "initrd.cpio"), []byte("initrd"))
	text := With(append([]string{"kernel: vmlinuz", "initrd: initrd.cpio"}, lines...)...)
	return dir, Write(t, filepath.Join(dir, "a.yaml"), []byte(text))
}

// IGVMSpecDir makes a folder with an SVSM image and a spec that names it, of
// platform snp unless the lines say otherwise.
func IGVMSpecDir(t testing.TB, image []byte, lines ...string) (dir, spec string) {
	t.Helper()
	dir = t.TempDir()
	Write(t, filepath.Join(dir, "a.igvm"), image)
	if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "platform:") }) {
		lines = append([]string{"platform: snp"}, lines...)
	}
	text := "version: 1\nname: demo\nsvsm: {image: a.igvm}\n" + strings.Join(lines, "\n") + "\n"
	return dir, Write(t, filepath.Join(dir, "a.yaml"), []byte(text))
}
