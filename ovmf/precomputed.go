package ovmf

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/strictjson"
)

// PrecomputedSchema names the version of [Precomputed]'s JSON form.
const PrecomputedSchema = "evtpm.ovmf-hash/v1"

// maxPrecomputed bounds the JSON form.
const maxPrecomputed = 64 << 10

// Precomputed is everything of a firmware image that a launch digest depends on:
// the digest of its pages, and the metadata that belongs to them. A verifier
// with this needs no firmware file, and cannot take another's metadata.
type Precomputed struct {
	Schema string `json:"schema"`

	// OVMFHash is the launch digest after the image's pages, the value that
	// sev-snp-measure's mode snp:ovmf-hash prints.
	OVMFHash measure.Digest `json:"ovmf_hash"`

	// Size of the image in bytes; it ends at 4 GiB.
	Size uint32 `json:"size"`

	// ResetEIP is where vCPUs other than the first start.
	ResetEIP uint32 `json:"reset_eip"`

	// HashArea is where the firmware looks for kernel hashes; left out by
	// firmware that does not.
	HashArea *PrecomputedArea `json:"hash_area,omitempty"`

	Sections []PrecomputedSection `json:"sections"`
}

// PrecomputedArea is an [Area] in JSON.
type PrecomputedArea struct {
	GPA  uint32 `json:"gpa"`
	Size uint32 `json:"size"`
}

// PrecomputedSection is a [Section] in JSON.
type PrecomputedSection struct {
	Type uint32 `json:"type"`
	Name string `json:"name,omitempty"` // for people
	GPA  uint32 `json:"gpa"`
	Size uint32 `json:"size"`
}

// Hash is the launch digest after the image's pages alone.
func (img *Image) Hash() (measure.Digest, error) {
	if img.Data == nil {
		return img.Prefix, nil
	}
	s := &measure.Sequence{Steps: []measure.Step{img.firmwareStep()}}
	return s.LaunchDigest()
}

// Precomputed returns the image's hash and metadata. Images that SNP could not
// start have none.
func (img *Image) Precomputed() (*Precomputed, error) {
	if err := img.CheckSNP(); err != nil {
		return nil, err
	}
	hash, err := img.Hash()
	if err != nil {
		return nil, err
	}
	p := &Precomputed{Schema: PrecomputedSchema, OVMFHash: hash, Size: img.Size, ResetEIP: *img.ResetEIP}
	if img.HashArea != nil {
		p.HashArea = (*PrecomputedArea)(img.HashArea)
	}
	for _, s := range img.Sections {
		p.Sections = append(p.Sections, PrecomputedSection{uint32(s.Type), s.Type.String(), s.GPA, s.Size})
	}
	return p, nil
}

// Encode returns the JSON form, with a final newline.
func (p *Precomputed) Encode() ([]byte, error) {
	data, err := json.MarshalIndent(p, "", "  ")
	return append(data, '\n'), err
}

// ParsePrecomputed reads the JSON form and returns an image without contents,
// checked as a file's would be.
func ParsePrecomputed(data []byte) (*Image, error) {
	const what = "precomputed firmware hash"
	var p Precomputed
	if err := strictjson.Unmarshal(data, &p, maxPrecomputed, what); err != nil {
		return nil, err
	}
	switch {
	case p.Schema != PrecomputedSchema:
		return nil, fmt.Errorf("%s: schema: found %q, expected %q", what, p.Schema, PrecomputedSchema)
	case p.OVMFHash.IsZero():
		return nil, errors.New(what + ": ovmf_hash: found zeros, which no firmware has")
	case p.Size == 0 || p.Size > MaxSize || p.Size%measure.PageSize != 0:
		return nil, fmt.Errorf("%s: size: found %d, expected a multiple of %d up to %d", what, p.Size, measure.PageSize, MaxSize)
	case len(p.Sections) > maxSections:
		return nil, fmt.Errorf("%s: sections: found %d, expected at most %d", what, len(p.Sections), maxSections)
	}
	img := &Image{Prefix: p.OVMFHash, Size: p.Size, ResetEIP: &p.ResetEIP, HasMetadata: true}
	if p.HashArea != nil {
		img.HashArea = (*Area)(p.HashArea)
	}
	for i, s := range p.Sections {
		sec := Section{GPA: s.GPA, Size: s.Size, Type: SectionType(s.Type)}
		if s.Name != "" && s.Name != sec.Type.String() {
			return nil, fmt.Errorf("%s: sections[%d].name: found %q, expected %q for type %d", what, i, s.Name, sec.Type, s.Type)
		}
		img.Sections = append(img.Sections, sec)
	}
	if err := img.CheckSNP(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return img, nil
}
