package svsmimg

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/strictjson"
)

// ManifestSchema names the version of [Manifest]'s JSON form.
const ManifestSchema = "evtpm.svsm-manifest/v1"

// maxManifest bounds a manifest.
const maxManifest = 1 << 20

// A Manifest says what an image was built from, and what it must measure to. It
// lies beside the image and proves nothing by itself: builds are reproducible, so
// that it can be checked by building again.
type Manifest struct {
	Schema string         `json:"schema"`
	Image  ManifestFile   `json:"image"`
	Recipe *Recipe        `json:"recipe"`
	Inputs []ManifestFile `json:"inputs"`

	// Features are those that the SVSM's kernel was compiled with, as the recipe
	// says.
	Features []string `json:"features,omitempty"`

	// Policy is the image's guest policy for SEV_SNP; nil when it has none.
	Policy *Hex `json:"policy,omitempty"`

	// IDBlockRemoved says that the image that was changed had an ID block.
	IDBlockRemoved bool `json:"id_block_removed,omitempty"`

	LaunchDigests []ManifestDigest `json:"launch_digests"`
}

// ManifestFile is a file by its contents.
type ManifestFile struct {
	// Role is the recipe's field that names the file; empty for the image itself.
	Role   string           `json:"role,omitempty"`
	Bytes  int              `json:"bytes"`
	SHA256 measure.HexBytes `json:"sha256"`
}

// ManifestDigest is the launch digest on one kind of host.
type ManifestDigest struct {
	HostProfile  Profile        `json:"host_profile"`
	VCPUs        int            `json:"vcpus"`
	CPUModel     string         `json:"cpu_model,omitempty"` // where it is measured
	LaunchDigest measure.Digest `json:"launch_digest"`
}

func manifestFile(role string, data []byte) ManifestFile {
	sum := sha256.Sum256(data)
	return ManifestFile{Role: role, Bytes: len(data), SHA256: sum[:]}
}

// Encode returns the JSON form, with a final newline.
func (m *Manifest) Encode() ([]byte, error) {
	data, err := json.MarshalIndent(m, "", "  ")
	return append(data, '\n'), err
}

// ParseManifest reads the JSON form.
func ParseManifest(data []byte) (*Manifest, error) {
	const what = "SVSM image manifest"
	m := new(Manifest)
	if err := strictjson.Unmarshal(data, m, maxManifest, what); err != nil {
		return nil, err
	}
	var errs []error
	fail := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf(what+": "+format, args...))
	}
	if m.Schema != ManifestSchema {
		fail("schema: found %q, expected %q", clip(m.Schema), ManifestSchema)
	}
	if len(m.Image.SHA256) != sha256.Size {
		fail("image.sha256: found %d bytes, expected %d", len(m.Image.SHA256), sha256.Size)
	}
	for i, in := range m.Inputs {
		if len(in.SHA256) != sha256.Size {
			fail("inputs[%d].sha256: found %d bytes, expected %d", i, len(in.SHA256), sha256.Size)
		}
	}
	if m.Recipe == nil {
		fail("recipe: missing")
	} else if err := m.Recipe.Validate(); err != nil {
		fail("recipe: %w", err)
	}
	for i, d := range m.LaunchDigests {
		if _, err := ParseProfile(string(d.HostProfile)); err != nil {
			fail("launch_digests[%d]: %w", i, err)
		}
		if d.VCPUs < 1 || d.VCPUs > measure.MaxVCPUs || d.LaunchDigest.IsZero() {
			fail("launch_digests[%d]: found %d vCPUs and digest %s", i, d.VCPUs, d.LaunchDigest)
		}
	}
	return m, errors.Join(errs...)
}

// Check holds an image against its manifest: its SHA-256, and every launch digest.
func (m *Manifest) Check(image []byte) error {
	var errs []error
	if sum := sha256.Sum256(image); measure.HexBytes(sum[:]).String() != m.Image.SHA256.String() || len(image) != m.Image.Bytes {
		errs = append(errs, fmt.Errorf("image: found %d bytes with SHA-256 %x, expected %d with %s", len(image), sum, m.Image.Bytes, m.Image.SHA256))
	}
	f, err := Parse(image)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, d := range m.LaunchDigests {
		found, err := f.digest(d.HostProfile, d.VCPUs, d.CPUModel)
		if err != nil {
			errs = append(errs, fmt.Errorf("host profile %s: %w", d.HostProfile, err))
		} else if found != d.LaunchDigest {
			errs = append(errs, fmt.Errorf("host profile %s, %d vCPUs: found launch digest %s, expected %s", d.HostProfile, d.VCPUs, found, d.LaunchDigest))
		}
	}
	return errors.Join(errs...)
}

// digest is the launch digest for a host profile.
func (f *File) digest(p Profile, vcpus int, cpuModel string) (measure.Digest, error) {
	o := SequenceOptions{Profile: p, VCPUs: vcpus}
	if cpuModel != "" {
		var err error
		if o.CPUSignature, err = measure.CPUSignature(cpuModel); err != nil {
			return measure.Digest{}, err
		}
	}
	s, err := f.Sequence(o)
	if err != nil {
		return measure.Digest{}, err
	}
	return s.LaunchDigest()
}
