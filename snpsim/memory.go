package snpsim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
	"github.com/evtpm/evtpm/qmp"
)

// svsmGPA is where the simulated SVSM is measured: above any guest's memory,
// where the first SVSM prototypes lay.
const svsmGPA = 0x8000000000

// svsmIdentity is what stands in the SVSM's place in the launch digest. Its
// version changes when what the simulated SVSM promises changes.
const svsmIdentity = "evtpm simulated SVSM, version 1: ephemeral vTPM at VMPL0 (nothing is confidential)\n"

// SVSMStep returns the page that stands for the simulated SVSM in a launch
// sequence: the last step before the VMSAs. A VM that runs without it has
// another launch digest.
func SVSMStep() measure.Step {
	page := make([]byte, measure.PageSize)
	copy(page, svsmIdentity)
	return measure.Step{Type: measure.PageNormal, GPA: svsmGPA, Size: measure.PageSize, Data: page, Source: "simulated SVSM"}
}

// QMP is what [ReadSequence] asks of QEMU. *[qmp.Client] has it.
type QMP interface {
	QueryStatus(ctx context.Context) (qmp.Status, error)
	PMemSave(ctx context.Context, gpa, size uint64, path string) error
	HumanMonitor(ctx context.Context, line string) (string, error)
	QueryCPUsFast(ctx context.Context) ([]qmp.CPU, error)
}

// ReadOptions say how the simulated AMD-SP measures.
type ReadOptions struct {
	// Dir is a private folder that QEMU can write to; memory passes through a
	// file in it, which is removed.
	Dir string
	// GuestFeatures is SEV_FEATURES of the VMSAs; 0 means SNPActive alone.
	GuestFeatures uint64
	// BSPOnly measures the boot vCPU's VMSA alone (host profile kvm-bsp).
	BSPOnly bool
	// NoSVSM leaves the simulated SVSM out: only a host that runs the guest
	// itself at VMPL0 does that. For demonstrations of attacks.
	NoSVSM bool
}

const (
	topOfMemory = 1 << 32
	maxFirmware = 64 << 20
)

// ReadSequence measures a VM that QEMU holds stopped before its first
// instruction: what the AMD-SP would be given is read from the guest's memory
// and vCPUs as they are, not from the files they came from. Firmware, its
// metadata, the kernel hashes page, the number of vCPUs and their signature are
// QEMU's; SEV_FEATURES are the host's.
func ReadSequence(ctx context.Context, mon QMP, o ReadOptions) (*measure.Sequence, error) {
	status, err := mon.QueryStatus(ctx)
	if err != nil {
		return nil, fmt.Errorf("simulated AMD-SP: %w", err)
	}
	if status.Status != "prelaunch" {
		return nil, fmt.Errorf("simulated AMD-SP: the VM is %q, expected \"prelaunch\": it can be measured before its first instruction only", status.Status)
	}
	seq, err := readSequence(ctx, mon, o)
	if err != nil {
		return nil, fmt.Errorf("simulated AMD-SP: measuring guest memory: %w", err)
	}
	return seq, nil
}

func readSequence(ctx context.Context, mon QMP, o ReadOptions) (*measure.Sequence, error) {
	start, size, err := firmwareRegion(ctx, mon)
	if err != nil {
		return nil, err
	}
	data, err := readMemory(ctx, mon, o.Dir, start, size)
	if err != nil {
		return nil, err
	}
	img, err := ovmf.Parse(data)
	if err != nil {
		return nil, err
	}
	cpus, err := mon.QueryCPUsFast(ctx)
	if err != nil {
		return nil, err
	}
	signature, err := resetSignature(ctx, mon)
	if err != nil {
		return nil, err
	}
	seq, err := img.Sequence(ovmf.LaunchOptions{VCPUs: len(cpus), CPUSignature: signature, GuestFeatures: o.GuestFeatures})
	if err != nil {
		return nil, err
	}
	if err := takeHashesPage(ctx, mon, o.Dir, img, seq); err != nil {
		return nil, err
	}
	if o.BSPOnly {
		seq.VMSAs = seq.VMSAs[:1]
	}
	if !o.NoSVSM {
		seq.Steps = append(seq.Steps, SVSMStep())
	}
	return seq, seq.Validate()
}

// takeHashesPage puts the kernel hashes page as it lies in guest memory into the
// sequence. A page of zeros is what a launch without kernel hashes has there.
func takeHashesPage(ctx context.Context, mon QMP, dir string, img *ovmf.Image, seq *measure.Sequence) error {
	section := img.Section(ovmf.SectionKernelHashes)
	if section == nil {
		return nil
	}
	gpa, size := uint64(section.GPA), uint64(section.Size)
	page, err := readMemory(ctx, mon, dir, gpa, size)
	if err != nil {
		return err
	}
	for i := range seq.Steps {
		if s := &seq.Steps[i]; s.GPA == gpa && s.Size == size && nonZero(page) {
			s.Type, s.Data, s.Source = measure.PageNormal, page, "kernel hashes"
		}
	}
	return nil
}

func nonZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return true
		}
	}
	return false
}

// flatFirmware matches QEMU's line for the firmware in its flat view of memory.
var flatFirmware = regexp.MustCompile(`(?m)^\s*([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (?:rom|ram|romd)\): (pc\.bios|system\.flash\d)`)

// firmwareRegion asks QEMU where its firmware lies: one region that ends at
// 4 GiB.
func firmwareRegion(ctx context.Context, mon QMP) (start, size uint64, err error) {
	text, err := mon.HumanMonitor(ctx, "info mtree -f")
	if err != nil {
		return 0, 0, err
	}
	for _, m := range flatFirmware.FindAllStringSubmatch(text, -1) {
		from, errFrom := strconv.ParseUint(m[1], 16, 64)
		to, errTo := strconv.ParseUint(m[2], 16, 64)
		if err := errors.Join(errFrom, errTo); err != nil {
			return 0, 0, err
		}
		if to != topOfMemory-1 || from > to {
			continue
		}
		if to-from+1 > maxFirmware {
			return 0, 0, fmt.Errorf("firmware region: found %d bytes, expected at most %d", to-from+1, maxFirmware)
		}
		return from, to - from + 1, nil
	}
	return 0, 0, errors.New("found no firmware region that ends at 4 GiB in QEMU's memory tree")
}

// resetEDX matches EDX in QEMU's register dump. At reset it holds the CPU's
// signature.
var resetEDX = regexp.MustCompile(`\b[ER]DX=0*([0-9a-f]{1,8})\b`)

func resetSignature(ctx context.Context, mon QMP) (uint32, error) {
	text, err := mon.HumanMonitor(ctx, "info registers")
	if err != nil {
		return 0, err
	}
	m := resetEDX.FindStringSubmatch(text)
	if m == nil {
		return 0, errors.New("found no EDX in QEMU's register dump")
	}
	v, err := strconv.ParseUint(m[1], 16, 32)
	return uint32(v), err
}

// readMemory reads guest-physical memory through a file that QEMU writes.
func readMemory(ctx context.Context, mon QMP, dir string, gpa, size uint64) ([]byte, error) {
	f, err := os.CreateTemp(dir, "guest-memory-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	path, err := filepath.Abs(f.Name())
	if err != nil {
		return nil, err
	}
	if err := mon.PMemSave(ctx, gpa, size, path); err != nil {
		return nil, err
	}
	data := make([]byte, size)
	if n, err := f.ReadAt(data, 0); err != nil {
		return nil, fmt.Errorf("guest memory at %#x: found %d bytes, expected %d: %w", gpa, n, size, err)
	}
	return data, nil
}
