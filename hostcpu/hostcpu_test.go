package hostcpu

import (
	"encoding/binary"
	"errors"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestSignature compares with what the kernel says of the processor.
func TestSignature(t *testing.T) {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Skipf("needs /proc/cpuinfo to compare with: %v", err)
	}
	field := func(name string) string {
		m := regexp.MustCompile(`(?m)^` + name + `\s*: (.*)$`).FindSubmatch(info)
		if m == nil {
			t.Skipf("needs %q in /proc/cpuinfo", name)
		}
		return string(m[1])
	}
	sig, err := Signature()
	if v := field("vendor_id"); v != "AuthenticAMD" && v != "HygonGenuine" {
		if !errors.Is(err, ErrNotAMD) {
			t.Errorf("%s: found error %v, expected ErrNotAMD", v, err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	number := func(name string) uint32 {
		n, err := strconv.ParseUint(field(name), 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		return uint32(n)
	}
	family := sig>>8&0xf + sig>>20&0xff
	model := sig>>4&0xf | sig>>16&0xf<<4
	if family != number("cpu family") || model != number("model") || sig&0xf != number("stepping") {
		t.Errorf("found signature 0x%x, expected family %d, model %d, stepping %d", sig, number("cpu family"), number("model"), number("stepping"))
	}
}

// TestVendors asks processors that this machine does not have.
func TestVendors(t *testing.T) {
	const sig = 0x00b00f21
	for vendor, want := range map[string]error{
		"AuthenticAMD":             nil,
		"HygonGenuine":             nil,
		"GenuineIntel":             ErrNotAMD,
		"KVMKVMKVM\x00\x00\x00":    ErrNotAMD,
		"AuthenticGen":             ErrNotAMD, // the words of one in part
		strings.Repeat("\x00", 12): ErrNotAMD, // no CPUID
	} {
		got, err := signature(func(leaf uint32) (eax, ebx, ecx, edx uint32) {
			if leaf == 1 {
				return sig, 1, 2, 3
			}
			word := func(i int) uint32 { return binary.LittleEndian.Uint32([]byte(vendor[i:])) }
			return 16, word(0), word(8), word(4) // EBX, EDX, ECX is the order
		})
		if !errors.Is(err, want) || (got == sig) != (want == nil) {
			t.Errorf("%q: found 0x%x and error %v, expected error %v", vendor, got, err, want)
		}
	}
}
