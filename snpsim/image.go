package snpsim

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/evtpm/evtpm/measure"
)

// An ImageLaunch is the launch of an IGVM file on a machine that has no VMPLs: of
// what the file holds, QEMU was given what can run there.
type ImageLaunch struct {
	// Sequence returns what the AMD-SP is given for the file by a host that starts so
	// many vCPUs with this CPUID 1.EAX. Required.
	Sequence func(vcpus int, signature uint32) (*measure.Sequence, error)

	// FirmwareSize is the size of the firmware in the file, in bytes; it ends at 4
	// GiB. Required.
	FirmwareSize uint64

	// SVSM says that the file holds an SVSM. The simulated one stands for it and is
	// not measured beside it: the launch is the one that hardware measures. QEMU holds
	// the firmware alone, and what the AMD-SP is given besides is the file's.
	//
	// Without, QEMU holds every page whose contents are measured, and the simulated
	// SVSM is a page more, as at launches of firmware alone.
	SVSM bool
}

// maxReads bounds how many pieces of guest memory are read for one launch.
const maxReads = 1024

// image is the launch of an IGVM file: its steps, with the contents that QEMU
// holds.
func (r *reader) image(firmware uint64, cpus []registers) (*measure.Sequence, error) {
	l := r.o.Image
	if firmware < l.FirmwareSize {
		return nil, fmt.Errorf("found %d bytes of firmware, expected the %d of the image", firmware, l.FirmwareSize)
	}
	seq, err := l.Sequence(len(cpus), uint32(cpus[0].rdx))
	if err != nil {
		return nil, err
	}
	// What is changed here is the image's as well.
	seq = &measure.Sequence{Mode: seq.Mode, Start: seq.Start, Steps: slices.Clone(seq.Steps), VMSAs: slices.Clone(seq.VMSAs)}
	base := uint64(topOfFirmware) - l.FirmwareSize
	isFirmware := func(s measure.Step) bool { return s.GPA >= base && s.GPA < topOfFirmware }
	if l.SVSM && r.o.NoSVSM {
		seq.Steps = slices.DeleteFunc(seq.Steps, func(s measure.Step) bool { return s.Type != measure.PageVMSA && !isFirmware(s) })
	}
	var held []*measure.Step
	for i := range seq.Steps {
		if s := &seq.Steps[i]; s.Type == measure.PageNormal && (!l.SVSM || isFirmware(*s)) {
			held = append(held, s)
		}
	}
	if err := r.fill(held); err != nil {
		return nil, err
	}
	if err := cpus[0].started(seq); err != nil {
		return nil, err
	}
	if !l.SVSM && !r.o.NoSVSM {
		seq.Steps = append(seq.Steps, SVSMStep())
	}
	return seq, nil
}

// fill gives steps the contents that guest memory has. Neighbours are read at
// once.
func (r *reader) fill(steps []*measure.Step) error {
	slices.SortFunc(steps, func(a, b *measure.Step) int { return cmp.Compare(a.GPA, b.GPA) })
	reads := 0
	for len(steps) > 0 {
		gpa, n := steps[0].GPA, 0
		end := gpa
		for n < len(steps) && steps[n].GPA == end {
			end += steps[n].Size
			n++
		}
		if reads++; reads > maxReads {
			return fmt.Errorf("image: found more than %d pieces of guest memory", maxReads)
		}
		data, err := r.memory(gpa, end-gpa)
		if err != nil {
			return err
		}
		for _, s := range steps[:n] {
			s.Data = data[s.GPA-gpa : s.GPA-gpa+s.Size : s.GPA-gpa+s.Size]
		}
		steps = steps[n:]
	}
	return nil
}

// started puts registers that the host set into the boot vCPU's VMSA. After a
// reset the image's counts: the firmware starts at the reset vector here, whoever
// starts it on hardware.
func (c *registers) started(seq *measure.Sequence) error {
	reset, err := measure.VCPU{Signature: uint32(c.rdx), EIP: measure.ResetEIP}.VMSA()
	if err != nil {
		return err
	}
	step := measure.Step{Data: reset.Page()}
	if err := c.overlay(&step); err != nil {
		return err
	}
	if bytes.Equal(step.Data, reset.Page()) {
		return nil
	}
	for _, steps := range [][]measure.Step{seq.VMSAs, seq.Steps} {
		for i := range steps {
			if steps[i].Type == measure.PageVMSA {
				return c.overlay(&steps[i])
			}
		}
	}
	return errors.New("image: found no VMSA of the boot vCPU")
}
