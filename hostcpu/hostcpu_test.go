package hostcpu

import (
	"errors"
	"os"
	"regexp"
	"strconv"
	"testing"
)

// TestSignature compares with what the kernel says of the processor.
func TestSignature(t *testing.T) {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Skipf("no /proc/cpuinfo to compare with: %v", err)
	}
	field := func(name string) string {
		m := regexp.MustCompile(`(?m)^` + name + `\s*: (.*)$`).FindSubmatch(info)
		if m == nil {
			t.Skipf("/proc/cpuinfo has no %q", name)
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
