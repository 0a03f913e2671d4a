package launch

import (
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestE2ESignatures: a CPU model shows what the launch digest presumes of it, by
// QEMU's own word.
func TestE2ESignatures(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	for _, model := range []string{"qemu64", "EPYC-v4", "EPYC-Genoa"} {
		s := &Spec{Platform: PlatformSim, CPU: CPU{Model: model}}
		want, err := s.CPUSignature()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(qemu, "-machine", "q35,accel=tcg", "-cpu", model, "-S", "-display", "none", "-nodefaults", "-monitor", "stdio")
		cmd.Stdin = strings.NewReader("info registers\nquit\n")
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", model, err, out)
		}
		found := regexp.MustCompile(`EDX=([0-9a-f]{8})`).FindSubmatch(out)
		if found == nil || string(found[1]) != fmt.Sprintf("%08x", want) {
			t.Errorf("%s: found EDX %s, expected %08x", model, found, want)
		}
	}
}
