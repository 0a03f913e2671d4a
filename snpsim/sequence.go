package snpsim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

// svsmGPA is where the simulated SVSM is measured: far above a guest's memory.
const svsmGPA = 0x8000000000

// svsmIdentity is what is measured in place of an SVSM's code. Its version
// changes when what the simulated SVSM does for a guest changes.
const svsmIdentity = "evtpm simulated SVSM, version 1: ephemeral vTPM, no confidentiality\n"

// SVSMStep returns the page that stands for the simulated SVSM in a launch
// sequence: the last of its steps, before the VMSAs. A launch without it, in
// which nobody holds VMPL0 above the guest, has another launch digest.
func SVSMStep() measure.Step {
	page := make([]byte, measure.PageSize)
	copy(page, svsmIdentity)
	return measure.Step{Type: measure.PageNormal, GPA: svsmGPA, Size: measure.PageSize, Data: page, Source: "simulated SVSM"}
}

// QMP is QEMU's monitor, as *qmp.Client is.
type QMP interface {
	Execute(ctx context.Context, command string, args, out any) error
}

// ReadOptions are what of a launch QEMU does not know.
type ReadOptions struct {
	// Dir is a private directory that QEMU can write to: memory passes through
	// files in it, which are removed. Required.
	Dir string

	// GuestFeatures is SEV_FEATURES of every VMSA; zero is SNPActive alone.
	GuestFeatures uint64

	// BSPOnly measures the boot vCPU's VMSA alone, as hosts with the profile
	// kvm-bsp do.
	BSPOnly bool

	// Image is the IGVM file that what QEMU holds was taken out of. Nil: QEMU was
	// given firmware alone. GuestFeatures and BSPOnly are not looked at with one.
	Image *ImageLaunch

	// NoSVSM leaves the simulated SVSM out, and the image's: for demonstrations of a
	// host that does: see [Attack]. A launch never sets it.
	NoSVSM bool
}

// Bounds of what QEMU says.
const (
	maxMonitorText = 4 << 20 // the registers of 512 vCPUs take 1 MiB
	topOfFirmware  = 1 << 32
)

// ReadSequence returns what the AMD-SP would be given at the launch of a VM that
// QEMU holds stopped before its first instruction: what lies in guest memory and
// in the vCPUs, and not what the files were that it came from. The firmware is
// found in QEMU's memory map and read; its metadata says what else is launched;
// the kernel hashes are those in guest memory, a page of zeros meaning none. Of an
// IGVM file, the headers say what is launched: see [ImageLaunch].
//
// Memory that no step covers is not looked at: on hardware the guest could not
// read what a host puts there.
func ReadSequence(ctx context.Context, mon QMP, o ReadOptions) (*measure.Sequence, error) {
	r := reader{ctx: ctx, mon: mon, o: o}
	seq, err := r.sequence()
	if err != nil {
		return nil, fmt.Errorf("simulated AMD-SP: %w", err)
	}
	return seq, nil
}

type reader struct {
	ctx context.Context
	mon QMP
	o   ReadOptions
}

func (r *reader) sequence() (*measure.Sequence, error) {
	if err := r.checkStopped(); err != nil {
		return nil, err
	}
	gpa, size, err := r.firmwareRegion()
	if err != nil {
		return nil, err
	}
	cpus, err := r.cpus()
	if err != nil {
		return nil, err
	}
	seq, err := r.launch(gpa, size, cpus)
	if err != nil {
		return nil, err
	}
	// Whoever else has a monitor could have let it run meanwhile.
	if err := r.checkStopped(); err != nil {
		return nil, err
	}
	return seq, seq.Validate()
}

// launch is the launch of what QEMU holds, its firmware at gpa.
func (r *reader) launch(gpa, size uint64, cpus []registers) (*measure.Sequence, error) {
	if r.o.Image != nil {
		return r.image(size, cpus)
	}
	firmware, err := r.memory(gpa, size)
	if err != nil {
		return nil, err
	}
	img, err := ovmf.Parse(firmware)
	if err != nil {
		return nil, err
	}
	seq, err := img.Sequence(ovmf.LaunchOptions{
		VCPUs: len(cpus), CPUSignature: uint32(cpus[0].rdx), GuestFeatures: r.o.GuestFeatures,
	})
	if err != nil {
		return nil, err
	}
	if err := r.kernelHashes(img, seq); err != nil {
		return nil, err
	}
	if err := cpus[0].overlay(&seq.VMSAs[0]); err != nil {
		return nil, err
	}
	if r.o.BSPOnly {
		seq.VMSAs = seq.VMSAs[:1]
	}
	if !r.o.NoSVSM {
		seq.Steps = append(seq.Steps, SVSMStep())
	}
	return seq, nil
}

// checkStopped refuses a VM that has run.
func (r *reader) checkStopped() error {
	var status struct {
		Status string `json:"status"`
	}
	if err := r.mon.Execute(r.ctx, "query-status", nil, &status); err != nil {
		return err
	}
	if status.Status != "prelaunch" {
		return fmt.Errorf("the VM is %q, expected \"prelaunch\": it can be measured before its first instruction only", status.Status)
	}
	return nil
}

// human runs a command of the human monitor.
func (r *reader) human(line string) (string, error) {
	var text string
	if err := r.mon.Execute(r.ctx, "human-monitor-command", map[string]string{"command-line": line}, &text); err != nil {
		return "", err
	}
	if len(text) > maxMonitorText {
		return "", fmt.Errorf("%s: found %d bytes of text, expected at most %d", line, len(text), maxMonitorText)
	}
	return text, nil
}

// memory reads guest-physical memory, through a file that QEMU writes.
func (r *reader) memory(gpa, size uint64) (_ []byte, err error) {
	what := fmt.Sprintf("guest memory 0x%x+0x%x", gpa, size)
	f, err := os.CreateTemp(r.o.Dir, "guest-memory-")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	path, err := filepath.Abs(f.Name())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	args := map[string]any{"val": gpa, "size": size, "filename": path}
	if err := r.mon.Execute(r.ctx, "pmemsave", args, nil); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if uint64(info.Size()) != size {
		return nil, fmt.Errorf("%s: QEMU wrote %d bytes", what, info.Size())
	}
	data := make([]byte, size)
	if _, err := f.ReadAt(data, 0); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return data, nil
}

// firmwareRegion asks QEMU where its firmware lies: in one region that ends at
// 4 GiB, which -bios makes.
func (r *reader) firmwareRegion() (gpa, size uint64, err error) {
	const command = "info mtree -f"
	text, err := r.human(command)
	if err != nil {
		return 0, 0, err
	}
	name, from, err := regionBelow4G(text)
	if err != nil {
		return 0, 0, fmt.Errorf("%s: %w", command, err)
	}
	size = topOfFirmware - from
	switch {
	case name != "pc.bios":
		return 0, 0, fmt.Errorf("found %q below 4 GiB of guest memory, expected the firmware (pc.bios): SEV-SNP starts firmware that -bios loads, and no flash device", name)
	case size > ovmf.MaxSize:
		return 0, 0, fmt.Errorf("found %d bytes of firmware, expected at most %d", size, ovmf.MaxSize)
	}
	return from, size, nil
}

// flatRange is a line of QEMU's flat view: first and last address, priority and
// kind, name.
var flatRange = pattern(`^  ([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?[0-9]+, [a-z/]+\): (\S+)`)

// pattern is a regular expression that is compiled when it is first used: most
// commands never do.
func pattern(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// regionBelow4G finds the region of the system's memory that ends at 4 GiB in
// QEMU's flat views, which are one for each root that address spaces have.
func regionBelow4G(text string) (name string, from uint64, err error) {
	system := false
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "FlatView "):
			system = false
		case strings.HasPrefix(line, ` AS "memory"`):
			system = true
		case system:
			m := flatRange().FindStringSubmatch(line)
			if m == nil || m[2] != "00000000ffffffff" {
				continue
			}
			from, err := strconv.ParseUint(m[1], 16, 64)
			return m[3], from, err
		}
	}
	return "", 0, errors.New("found no region that ends at 4 GiB")
}

// kernelHashes puts the section of kernel hashes into the sequence as it lies in
// guest memory. QEMU writes it for SEV guests with kernel-hashes=on; zeros are
// what is there without, and then the AMD-SP is given a zero page.
func (r *reader) kernelHashes(img *ovmf.Image, seq *measure.Sequence) error {
	section := img.Section(ovmf.SectionKernelHashes)
	if section == nil {
		return nil
	}
	data, err := r.memory(uint64(section.GPA), uint64(section.Size))
	if err != nil {
		return err
	}
	if len(bytes.TrimLeft(data, "\x00")) == 0 {
		return nil
	}
	for i := range seq.Steps {
		if s := &seq.Steps[i]; s.GPA == uint64(section.GPA) {
			s.Type, s.Data, s.Source = measure.PageNormal, data, "kernel hashes"
			return nil
		}
	}
	return fmt.Errorf("no launch step for the %s section at 0x%x", section.Type, section.GPA)
}

// registers are those of a vCPU that a host can set before it starts.
type registers struct {
	rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, rip uint64

	csSelector uint16
	csBase     uint64
}

// cpus reads the registers of all vCPUs, the boot vCPU first.
func (r *reader) cpus() ([]registers, error) {
	var list []struct {
		Index int `json:"cpu-index"`
	}
	if err := r.mon.Execute(r.ctx, "query-cpus-fast", nil, &list); err != nil {
		return nil, err
	}
	const command = "info registers -a"
	text, err := r.human(command)
	if err != nil {
		return nil, err
	}
	cpus, err := parseRegisters(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	if len(cpus) != len(list) || len(cpus) == 0 {
		return nil, fmt.Errorf("%s: found %d vCPUs, query-cpus-fast found %d", command, len(cpus), len(list))
	}
	for i, c := range cpus {
		// RDX holds the signature after a reset, and the VMSAs of a machine are
		// made from one.
		if c.rdx != cpus[0].rdx {
			return nil, fmt.Errorf("vCPU %d has signature 0x%x, vCPU 0 has 0x%x: expected one model", i, c.rdx, cpus[0].rdx)
		}
	}
	if cpus[0].rdx > 0xffffffff {
		return nil, fmt.Errorf("vCPU 0 has 0x%x in RDX, expected a CPU signature", cpus[0].rdx)
	}
	return cpus, nil
}

// registerText is a register in QEMU's dump: "EDX=00800f12", "RDX=...".
var (
	registerText = pattern(`\b[ER]([A-D]X|[SD]I|[SB]P|IP)=([0-9a-f]{8,16})\b`)
	csText       = pattern(`(?m)^CS =([0-9a-f]{4}) ([0-9a-f]{8,16}) `)
)

// parseRegisters reads QEMU's dump of all vCPUs' registers.
func parseRegisters(text string) ([]registers, error) {
	var out []registers
	parts := strings.Split(text, "CPU#")
	for i, part := range parts[1:] {
		var c registers
		fields := map[string]*uint64{
			"AX": &c.rax, "BX": &c.rbx, "CX": &c.rcx, "DX": &c.rdx, "SI": &c.rsi, "DI": &c.rdi, "BP": &c.rbp, "SP": &c.rsp, "IP": &c.rip,
		}
		for _, m := range registerText().FindAllStringSubmatch(part, -1) {
			f, ok := fields[m[1]]
			if !ok {
				return nil, fmt.Errorf("vCPU %d: register %s is there twice", i, m[1])
			}
			v, err := strconv.ParseUint(m[2], 16, 64)
			if err != nil {
				return nil, fmt.Errorf("vCPU %d: %w", i, err)
			}
			*f = v
			delete(fields, m[1])
		}
		cs := csText().FindStringSubmatch(part)
		if len(fields) > 0 || cs == nil {
			return nil, fmt.Errorf("vCPU %d: not all registers are there", i)
		}
		selector, errSelector := strconv.ParseUint(cs[1], 16, 16)
		base, errBase := strconv.ParseUint(cs[2], 16, 64)
		if err := errors.Join(errSelector, errBase); err != nil {
			return nil, fmt.Errorf("vCPU %d: CS: %w", i, err)
		}
		c.csSelector, c.csBase = uint16(selector), base
		if len(out) == measure.MaxVCPUs {
			return nil, fmt.Errorf("found more than %d vCPUs", measure.MaxVCPUs)
		}
		out = append(out, c)
	}
	return out, nil
}

// overlay puts the registers into the boot vCPU's VMSA. They are what a reset
// leaves, unless the host set them: a vCPU that starts elsewhere than at the
// reset vector has another VMSA, and the launch another digest.
func (c *registers) overlay(step *measure.Step) error {
	v, err := measure.ParseVMSA(step.Data)
	if err != nil {
		return err
	}
	v.RAX, v.RBX, v.RCX, v.RDX = c.rax, c.rbx, c.rcx, c.rdx
	v.RSI, v.RDI, v.RBP, v.RSP = c.rsi, c.rdi, c.rbp, c.rsp
	v.RIP, v.CS.Selector, v.CS.Base = c.rip, c.csSelector, c.csBase
	step.Data = v.Page()
	return nil
}
