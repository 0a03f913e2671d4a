package svsmimg

import (
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

// SVSMBin is COCONUT-SVSM before IGVM: a flat image that ends in a table of GUIDs
// and SEV metadata as an OVMF image does, and is launched together with one.
type SVSMBin struct{ img *ovmf.Image }

// ParseSVSMBin reads an svsm.bin. data is kept, not copied.
func ParseSVSMBin(data []byte) (*SVSMBin, error) {
	img, err := ovmf.Parse(data)
	if err != nil {
		return nil, err
	}
	return &SVSMBin{img}, nil
}

// SVSMBinSequence returns the launch sequence of an svsm.bin with its firmware:
// the same type that [File.Sequence] gives.
func SVSMBinSequence(svsm *SVSMBin, firmware *ovmf.Image, o ovmf.SVSMOptions) (*measure.Sequence, error) {
	return firmware.SVSMSequence(svsm.img, o)
}
