package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/strictjson"
	"github.com/evtpm/evtpm/wholefile"
)

// LockSchema names the version of [Lock]'s JSON form.
const LockSchema = "evtpm.lock/v1"

const (
	maxLockBytes  = 64 << 10
	maxLockInputs = 16
)

// A Lock pins what a spec resolved to once: kept beside the spec and under
// version control, it makes every later change of an input a visible one.
type Lock struct {
	Schema string `json:"schema"`
	// Name of the machine.
	Name string `json:"name"`
	// Platform and HostProfile are those that LaunchDigest was computed for.
	Platform    string `json:"platform"`
	HostProfile string `json:"host_profile"`
	// LaunchDigest covers firmware, vCPUs and, when they are on, kernel hashes.
	LaunchDigest measure.Digest `json:"launch_digest"`
	Policy       Policy         `json:"policy"`
	// HostData is 32 bytes, or empty for zeros.
	HostData measure.HexBytes `json:"host_data,omitempty"`
	// IDBlock holds what reports say of the ID block; nil without one.
	IDBlock *measure.GoldenIDBlock `json:"id_block,omitempty"`
	// Inputs pins every file, and Cmdline the command line.
	Inputs  []LockedInput `json:"inputs"`
	Cmdline string        `json:"cmdline,omitempty"`
}

// A LockedInput is one pinned file. Its path is the spec's matter.
type LockedInput struct {
	Name   string           `json:"name"`
	Size   int64            `json:"size"`
	SHA256 measure.HexBytes `json:"sha256"`
}

// LockPath is where the lock of the spec at path lies: beside it, NAME.lock for
// NAME.yaml.
func LockPath(spec string) string {
	return strings.TrimSuffix(spec, filepath.Ext(spec)) + ".lock"
}

// Lock pins the plan.
func (p *Plan) Lock() *Lock {
	l := &Lock{
		Schema:       LockSchema,
		Name:         p.Name,
		Platform:     p.Spec.Platform,
		HostProfile:  p.HostProfile,
		LaunchDigest: p.Golden.LaunchDigests[0],
		Policy:       p.Spec.Policy,
		HostData:     p.Spec.HostData,
		IDBlock:      p.Golden.IDBlock,
		Cmdline:      p.Spec.Cmdline,
	}
	for _, in := range p.Inputs() {
		l.Inputs = append(l.Inputs, LockedInput{Name: in.Name, Size: in.Size, SHA256: in.SHA256[:]})
	}
	return l
}

// ErrLockDiffers is wrapped by every difference that [Lock.Check] finds.
var ErrLockDiffers = errors.New("differs from the lock")

// Check compares a plan with the lock and reports every difference, each an error
// that wraps [ErrLockDiffers].
func (l *Lock) Check(p *Plan) error {
	now := p.Lock()
	var errs []error
	differ := func(what, locked, found string) {
		if locked != found {
			errs = append(errs, fmt.Errorf("%s %w: found %s, locked %s", what, ErrLockDiffers, found, locked))
		}
	}
	locked, found := l.inputs(), now.inputs()
	for _, slot := range p.slots() {
		differ(slot.name, locked[slot.name], found[slot.name])
	}
	differ("cmdline", fmt.Sprintf("%q", l.Cmdline), fmt.Sprintf("%q", now.Cmdline))
	differ("name", l.Name, now.Name)
	differ("platform", l.Platform, now.Platform)
	differ("host profile", l.HostProfile, now.HostProfile)
	differ("policy", l.Policy.String(), now.Policy.String())
	differ("host data", orZeros(l.HostData), orZeros(now.HostData))
	differ("ID block", idBlockText(l.IDBlock), idBlockText(now.IDBlock))
	differ("launch digest", l.LaunchDigest.String(), now.LaunchDigest.String())
	return errors.Join(errs...)
}

// inputs gives every slot's pin in words.
func (l *Lock) inputs() map[string]string {
	out := make(map[string]string)
	for _, slot := range (&Plan{Spec: new(Spec)}).slots() {
		out[slot.name] = "none"
	}
	for _, in := range l.Inputs {
		out[in.Name] = fmt.Sprintf("SHA-256 %s (%d bytes)", in.SHA256, in.Size)
	}
	return out
}

func orZeros(b measure.HexBytes) string {
	if strings.Trim(b.String(), "0") == "" {
		return "zeros"
	}
	return b.String()
}

func idBlockText(b *measure.GoldenIDBlock) string {
	if b == nil {
		return "none"
	}
	author := "none"
	if b.AuthorKeyDigest != nil {
		author = b.AuthorKeyDigest.String()
	}
	return fmt.Sprintf("family %s, image %s, SVN %d, ID key %s, author key %s", b.FamilyID, b.ImageID, b.GuestSVN, b.IDKeyDigest, author)
}

// ParseLock reads a lock. A field that is unknown, repeated or empty is an error:
// a lock that pins nothing would agree with everything.
func ParseLock(data []byte) (*Lock, error) {
	l := new(Lock)
	if err := strictjson.Unmarshal(data, l, maxLockBytes, "lock"); err != nil {
		return nil, err
	}
	return l, l.validate()
}

func (l *Lock) validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf("lock: "+format, args...)) }
	if l.Schema != LockSchema {
		fail("schema: found %q, expected %q", clip(l.Schema), LockSchema)
	}
	for _, f := range []struct{ name, value string }{{"name", l.Name}, {"platform", l.Platform}, {"host_profile", l.HostProfile}} {
		if f.value == "" {
			fail("%s: found nothing", f.name)
		}
	}
	if l.LaunchDigest.IsZero() {
		fail("launch_digest: found zeros, which no launch has")
	}
	if n := len(l.HostData); n != 0 && n != 32 {
		fail("host_data: found %d bytes, expected 32", n)
	}
	if n := len(l.Inputs); n == 0 || n > maxLockInputs {
		fail("inputs: found %d, expected 1 to %d", n, maxLockInputs)
	}
	known, seen := (&Lock{}).inputs(), make(map[string]bool)
	for i, in := range l.Inputs {
		if _, ok := known[in.Name]; !ok {
			fail("inputs[%d].name: found %q, expected firmware, svsm, kernel, initrd, policy or bundle", i, clip(in.Name))
		}
		if seen[in.Name] {
			fail("inputs[%d].name: found %q twice", i, clip(in.Name))
		}
		seen[in.Name] = true
		if len(in.SHA256) != 32 {
			fail("inputs[%d].sha256: found %d bytes, expected 32", i, len(in.SHA256))
		}
		if in.Size <= 0 {
			fail("inputs[%d].size: found %d, expected at least 1", i, in.Size)
		}
	}
	return errors.Join(errs...)
}

// ReadLock reads the lock at path.
func ReadLock(path string) (*Lock, error) {
	data, err := inputfile.Read(path, maxLockBytes)
	if err != nil {
		return nil, err
	}
	l, err := ParseLock(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return l, nil
}

// Encode returns the document that [ParseLock] reads.
func (l *Lock) Encode() ([]byte, error) {
	if err := l.validate(); err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}

// Write writes the lock to path, whole or not at all: a reader, and a power cut,
// find the old one or the new one.
func (l *Lock) Write(path string) error {
	data, err := l.Encode()
	if err != nil {
		return err
	}
	return wholefile.WriteBytes(path, 0o644, data)
}
