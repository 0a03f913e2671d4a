//go:build linux

package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestE2EAttacks mounts every attack, as make demo-attacks does. Each attack's
// own line says what came of it.
func TestE2EAttacks(t *testing.T) {
	for _, program := range []string{"qemu-system-x86_64", "swtpm"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed", program)
		}
	}
	if _, err := os.Stat("../../build/kernel/vmlinuz"); err != nil {
		t.Skip("build/kernel/vmlinuz is missing: scripts/setup test")
	}
	cmd := exec.CommandContext(t.Context(), "../../scripts/demo-attacks")
	cmd.Env = append(os.Environ(), "EVTPM_STATE="+t.TempDir())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Errorf("%v\n%s", err, stderr.Bytes())
	}
	lines := strings.Split(strings.TrimSpace(stdout.String()), "\n")
	if len(lines) != len(attacks)+1 {
		t.Errorf("found %d lines, expected one an attack and a last one", len(lines))
	}
	for _, line := range lines {
		t.Log(line)
	}
}
