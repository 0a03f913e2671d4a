//go:build linux

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

// TestE2EPredictedPCRs boots real kernels and compares PCR 4 and 9, as the
// vTPM quotes them, with their prediction from files.
func TestE2EPredictedPCRs(t *testing.T) {
	need(t, nil, kernelPath)
	kernel, err := os.ReadFile(kernelPath)
	if err != nil {
		t.Fatal(err)
	}
	const (
		asIs, patched = "file as it is", "filled in by QEMU"
		last, first   = "stands last", "stands first"
	)
	small := initrd(t)
	big := append(bytes.Clone(small), make([]byte, 1<<20)...)
	trixie := filepath.Join(os.Getenv("EVTPM_TESTDATA"), "fixtures/firmware/trixie-OVMF.fd")
	for _, tc := range []struct {
		name         string
		g            guest
		memory       uint64
		kernel4, c9  string // which of the accepted values
		hashes       bool
		needTestdata bool
	}{
		{"ovmf-2022/160M", guest{firmware: ovmfPath, cmdline: "quiet", initrd: small}, 160, patched, last, false, false},
		{"ovmf-2022/256M without cmdline", guest{firmware: ovmfPath, initrd: big}, 256, patched, last, false, false},
		{"ovmf-2022/3G with unsigned kernel of odd size", guest{firmware: ovmfPath, cmdline: "quiet vga=0x317  loglevel=0", initrd: small, kernel: unsignedOdd(t, kernel)}, 3072, patched, last, false, false},
		{"amdsev/512M", guest{firmware: amdsevPath, cmdline: "quiet loglevel=0", initrd: small}, 512, asIs, first, true, false},
		{"amdsev/256M without cmdline", guest{firmware: amdsevPath, initrd: small, kernel: unsignedOdd(t, kernel)}, 256, asIs, first, true, false},
		{"ovmf-2025/1G", guest{firmware: trixie, cmdline: "quiet", initrd: small}, 1024, asIs, last, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.needTestdata && os.Getenv("EVTPM_TESTDATA") == "" {
				t.Skip("needs a firmware in EVTPM_TESTDATA")
			}
			g := tc.g
			g.memory = fmt.Sprintf("%dM", tc.memory)
			if g.kernel == nil {
				g.kernel = kernel
			}
			if tc.hashes {
				g.args = hashesPage(t, g)
			}
			m := boot(t, g)
			m.serveSVSM()
			conn := m.dial("agent")
			m.hello(conn)
			for i, bank := range []string{"sha256", "sha384"} {
				m.write(conn, evidence.FrameChallenge, challenge(byte(i), bank))
				var ev evidence.Evidence
				m.read(conn, evidence.FrameEvidence, &ev)
				golden, err := measure.PredictDirectBoot(measure.PCRInputs{
					Bank: bank, Kernel: g.kernel, Initrd: g.initrd, Cmdline: g.cmdline, MemoryBytes: tc.memory << 20,
				})
				if err != nil {
					t.Fatal(err)
				}
				for j, want := range []string{tc.kernel4, tc.c9} {
					p := golden.Values[j]
					found := false
					for _, v := range p.AnyOf {
						if bytes.Equal(v.Value, ev.PCRs[p.PCR].Value) {
							found = true
							if !strings.Contains(v.When, want) {
								t.Errorf("%s: PCR %d is that of %q, expected that where it %s", bank, p.PCR, v.When, want)
							}
						}
					}
					if !found {
						t.Errorf("%s: PCR %d is %x, predicted %+v", bank, p.PCR, ev.PCRs[p.PCR].Value, p.AnyOf)
					}
				}
			}
		})
	}
}

// unsignedOdd returns the kernel without its signature, and three bytes longer
// than a multiple of eight: where signing tools would pad, and firmware does
// not.
func unsignedOdd(t *testing.T, kernel []byte) []byte {
	t.Helper()
	out := bytes.Clone(kernel)
	pe := binary.LittleEndian.Uint32(out[0x3c:])
	certificates := out[pe+24+112+4*8:]
	at, size := binary.LittleEndian.Uint32(certificates), binary.LittleEndian.Uint32(certificates[4:])
	if size != 0 {
		if int(at+size) != len(out) {
			t.Fatalf("certificates of %d bytes at %#x do not end the kernel's %d bytes", size, at, len(out))
		}
		clear(certificates[:8])
		out = out[:at]
	}
	for len(out)%8 != 3 {
		out = append(out, 0xee)
	}
	return out
}

// hashesPage makes the kernel hashes page that the firmware asks for, and
// returns QEMU's options that place it.
func hashesPage(t *testing.T, g guest) []string {
	t.Helper()
	need(t, nil, g.firmware)
	data, err := os.ReadFile(g.firmware)
	if err != nil {
		t.Fatal(err)
	}
	img, err := ovmf.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	h := &measure.KernelHashes{Kernel: sha256.Sum256(g.kernel), Initrd: sha256.Sum256(g.initrd)}
	if h.Cmdline, err = measure.HashCmdline(g.cmdline); err != nil {
		t.Fatal(err)
	}
	gpa, page, err := img.HashesPage(h)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "hashes")
	if err := os.WriteFile(name, page, 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"-device", fmt.Sprintf("loader,file=%s,addr=%#x,force-raw=on", name, gpa)}
}
