package svsmimg

import (
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

// SVSMBin is COCONUT-SVSM before IGVM: a flat image that ends in a table of GUIDs
// and SEV metadata as an OVMF image does, and is launched together with one.
type SVSMBin struct {
	img   *ovmf.Image
	entry uint32
}

// ParseSVSMBin reads an svsm.bin. data is kept, not copied.
func ParseSVSMBin(data []byte) (*SVSMBin, error) {
	img, err := ovmf.Parse(data)
	if err != nil {
		return nil, err
	}
	entry, err := img.SVSMEntry()
	if err != nil {
		return nil, err
	}
	return &SVSMBin{img, entry}, nil
}

// BinInfoSchema names the version of [BinInfo]'s JSON form.
const BinInfoSchema = "evtpm.svsm-bin-inspect/v1"

// BinInfo says what is in an svsm.bin.
type BinInfo struct {
	Schema string `json:"schema"`
	Bytes  int    `json:"bytes"`

	// Entry is where its vCPUs start, from the start of the image. The image itself
	// lies below the variable store and the firmware that it is launched with.
	Entry Hex `json:"entry"`

	Table []string `json:"table"`

	// Sections are those of its SEV metadata; their addresses are guest-physical.
	Sections []SectionInfo `json:"sev_sections"`
}

// Inspect says what is in the image.
func (s *SVSMBin) Inspect() *BinInfo {
	return &BinInfo{Schema: BinInfoSchema, Bytes: len(s.img.Data), Entry: Hex(s.entry), Table: tableNames(s.img), Sections: sevSections(s.img)}
}

// SVSMBinSequence returns the launch sequence of an svsm.bin with its firmware:
// the same type that [File.Sequence] gives.
func SVSMBinSequence(svsm *SVSMBin, firmware *ovmf.Image, o ovmf.SVSMOptions) (*measure.Sequence, error) {
	return firmware.SVSMSequence(svsm.img, o)
}
