// Package fromvm reads the parameters of a launch from what people already run:
// a QEMU command line or a libvirt domain's XML. It opens none of the files that
// they name, and follows nothing.
package fromvm

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/evtpm/evtpm/measure"
)

// VM is what a VM's description says of its launch. Fields that the description
// leaves out have the default of what would start it.
type VM struct {
	Mode measure.Mode

	// VCPUs is the number of vCPUs present at start.
	VCPUs int

	// CPUModel is QEMU's name. Family, Model and Stepping override what the name
	// means; nil is not given.
	CPUModel                string
	Family, Model, Stepping *int

	// Firmware, Kernel and Initrd are paths, as they are written; empty is none.
	Firmware, Kernel, Initrd string
	Cmdline                  string

	// KernelHashes says that kernel, initrd and command line are measured.
	KernelHashes bool

	// LegacyVMType says that a SEV-ES VM is started with KVM's older interface,
	// which leaves x87 and SSE state out of the VMSAs.
	LegacyVMType bool

	// GuestFeatures is SEV_FEATURES; zero outside of SNP.
	GuestFeatures uint64

	Policy   uint64
	HostData []byte // 32 bytes, or nil
	IDBlock  []byte // 96 bytes, or nil
	IDAuth   []byte // 4096 bytes, or nil

	// IGVM is the path of an IGVM file; empty is none.
	IGVM string

	// Warnings say what was read past that may change the launch.
	Warnings []string
}

// Guest policies that QEMU takes when none is given.
const (
	defaultSNPPolicy = 0x30000
	defaultSEVPolicy = 0x1
	sevPolicyES      = 1 << 2 // SEV API 55766, guest policy
)

func (vm *VM) warn(format string, args ...any) {
	vm.Warnings = append(vm.Warnings, fmt.Sprintf(format, args...))
}

// bounds of descriptions; real ones are a hundredth.
const (
	maxInput = 1 << 20
	maxWords = 4096
)

// onOff reads a boolean of QEMU's.
func onOff(name, value string) (bool, error) {
	switch value {
	case "on", "yes", "true", "y":
		return true, nil
	case "off", "no", "false", "n":
		return false, nil
	}
	return false, fmt.Errorf("%s: found %q, expected on or off", name, clip(value))
}

func number(name, value string, bits int) (uint64, error) {
	n, err := strconv.ParseUint(value, 0, bits)
	if err != nil {
		return 0, fmt.Errorf("%s: found %q, expected a number of at most %d bits", name, clip(value), bits)
	}
	return n, nil
}

// count reads a number of vCPUs or of a part of the topology.
func count(name, value string) (int, error) {
	n, err := strconv.ParseUint(value, 10, 31)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%s: found %q, expected a number from 1", name, clip(value))
	}
	return int(n), nil
}

// binary reads base64 of a known length. Shorter ID auth structures are filled
// with zeros, as QEMU does.
func binary(name, value string, size int, padded bool) ([]byte, error) {
	data, err := base64.StdEncoding.DecodeString(strings.TrimSpace(value))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(data) > size || len(data) < size && !padded {
		return nil, fmt.Errorf("%s: found %d bytes, expected %d", name, len(data), size)
	}
	return append(data, make([]byte, size-len(data))...), nil
}

var errNotConfidential = errors.New("found no SEV: the VM is not confidential, so that nothing is measured")

func clip(s string) string {
	const enough = 64
	if len(s) > enough {
		return s[:enough] + "..."
	}
	return s
}
