//go:build linux

package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
)

// BootID reads the kernel's boot identifier.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// EventLog reads the firmware's event log from securityfs, at most a byte more
// than the 256 KiB that evidence may carry. No log is no error: a vTPM that the
// firmware did not use has none.
func EventLog() ([]byte, error) {
	f, err := os.Open("/sys/kernel/security/tpm0/binary_bios_measurements")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxEventLog+1))
}

// OpenTPM opens the kernel's TPM, through its resource manager where there is
// one.
func OpenTPM() (transport.TPMCloser, error) {
	tpm, err := linuxtpm.Open("/dev/tpmrm0")
	if errors.Is(err, fs.ErrNotExist) {
		tpm, err = linuxtpm.Open("/dev/tpm0")
	}
	return tpm, err
}

// FindPort returns the device of the virtio-serial port that the host gave this
// name. The error wraps [fs.ErrNotExist] when there is none.
func FindPort(name string) (string, error) {
	files, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return "", err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && string(bytes.TrimSpace(b)) == name {
			return "/dev/" + filepath.Base(filepath.Dir(f)), nil
		}
	}
	return "", fmt.Errorf("virtio-serial port %q: %w", name, fs.ErrNotExist)
}
