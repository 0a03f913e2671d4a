package ovmf

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/evtpm/evtpm/measure"
)

// SVSMOptions are the parameters of a launch of an svsm.bin: COCONUT-SVSM before
// IGVM, which its QEMU of early 2024 took as a second flash image.
type SVSMOptions struct {
	// VarsSize is the size in bytes of the variable store that lies between SVSM
	// and firmware.
	VarsSize int64

	// VCPUs is the number of vCPUs, 1 to 512. All start in the SVSM.
	VCPUs int

	// CPUSignature is the CPUID 1.EAX of the CPU model.
	CPUSignature uint32
}

// SVSMSequence returns the launch sequence of an svsm.bin, parsed with [Parse],
// together with the firmware img. The firmware's own sections play no part: the
// SVSM prepares its memory at run time.
func (img *Image) SVSMSequence(svsm *Image, o SVSMOptions) (*measure.Sequence, error) {
	if o.VarsSize <= 0 || o.VarsSize%measure.PageSize != 0 || o.VarsSize > MaxSize {
		return nil, fmt.Errorf("size of the variable store: found %d, expected a multiple of %d up to %d", o.VarsSize, measure.PageSize, MaxSize)
	}
	below := uint64(img.Size) + uint64(o.VarsSize) + uint64(svsm.Size)
	if below > top {
		return nil, fmt.Errorf("SVSM, variable store and firmware take %d bytes, which do not fit below 4 GiB", below)
	}
	gpa := top - below
	entry, err := svsm.SVSMEntry()
	if err != nil {
		return nil, err
	}
	if !svsm.HasMetadata {
		return nil, errors.New("SVSM image has no SEV metadata")
	}
	s := &measure.Sequence{Mode: measure.ModeSNP}
	s.Steps = append(s.Steps, img.firmwareStep(), measure.Step{
		Type: measure.PageNormal, GPA: gpa, Size: uint64(svsm.Size), Data: svsm.Data, Source: "SVSM",
	})
	if err := errors.Join(svsm.checkSections()...); err != nil {
		return nil, fmt.Errorf("SVSM image: %w", err)
	}
	for _, sec := range svsm.Sections {
		s.Steps = append(s.Steps, measure.Step{
			Type: PageType(sec.Type, measure.VMMQEMU), GPA: uint64(sec.GPA), Size: uint64(sec.Size), Source: "SVSM's " + sec.Type.String() + " section",
		})
	}
	if s.VMSAs, err = svsmVMSAs(o, gpa+uint64(entry)); err != nil {
		return nil, err
	}
	return s, s.Validate()
}

// SVSMEntry is where in an svsm.bin the SVSM starts: the SVSM info entry of its
// table gives the offset, 4 bytes.
func (img *Image) SVSMEntry() (uint32, error) {
	for _, e := range img.Table {
		if e.GUID != guidSVSMInfo {
			continue
		}
		if len(e.Data) != 4 {
			return 0, fmt.Errorf("SVSM info: found %d bytes, expected 4", len(e.Data))
		}
		offset := binary.LittleEndian.Uint32(e.Data)
		if offset >= img.Size || offset%measure.PageSize != 0 {
			return 0, fmt.Errorf("SVSM info: found launch offset 0x%x, expected a multiple of %d below 0x%x", offset, measure.PageSize, img.Size)
		}
		return offset, nil
	}
	return 0, errors.New("SVSM image has no SVSM info entry in its table")
}

// svsmVMSAs are the save areas with which COCONUT's QEMU of early 2024 starts an
// SVSM: 32-bit protected mode with flat segments.
func svsmVMSAs(o SVSMOptions, entry uint64) ([]measure.Step, error) {
	if o.VCPUs < 1 || o.VCPUs > measure.MaxVCPUs {
		return nil, fmt.Errorf("vCPUs: found %d, expected 1 to %d", o.VCPUs, measure.MaxVCPUs)
	}
	v, err := measure.VCPU{Signature: o.CPUSignature, Features: measure.FeatureSNPActive, EIP: measure.ResetEIP}.VMSA()
	if err != nil {
		return nil, err
	}
	const code, data, protected = 0xc9b, 0xc93, 1
	flat := measure.Segment{Selector: 0x10, Attrib: data, Limit: 0xffffffff}
	v.CS = measure.Segment{Selector: 8, Attrib: code, Limit: 0xffffffff}
	v.DS, v.ES, v.SS, v.FS = flat, flat, flat, flat
	v.CR0 |= protected
	v.RIP = entry
	// Known digests of this kind have SSE's control word but not x87's.
	v.X87FCW = 0
	page := v.Page()
	steps := make([]measure.Step, o.VCPUs)
	for i := range steps {
		steps[i] = measure.Step{Type: measure.PageVMSA, GPA: measure.VMSAGPA, Size: measure.PageSize, Data: page, Source: fmt.Sprintf("vCPU %d", i)}
	}
	return steps, nil
}
