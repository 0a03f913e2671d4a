// Package explain finds out why a launch digest is not the expected one. It
// varies the parameters of the expected launch, few at a time, until one
// variant has the digest that was found, and says what differs: another vCPU
// count, CPU model or guest feature, a command line with a trailing newline,
// another firmware build.
package explain

import (
	"context"
	"errors"
	"fmt"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

// A Launch is what is expected to have been launched.
type Launch struct {
	// Firmware is the image; FirmwareName names it in answers.
	Firmware     *ovmf.Image
	FirmwareName string

	// Options are the launch's parameters. Hashes is ignored: see Boot.
	Options ovmf.LaunchOptions

	// CPUModel names Options.CPUSignature in answers; may be empty.
	CPUModel string

	// Boot is the measured direct boot; nil when kernel hashes are off.
	Boot *Boot

	// Append are steps that the platform measures after the firmware's sections,
	// such as the simulated SVSM. They are the same in every variant.
	Append []measure.Step
}

// Boot is what a measured direct boot loads.
type Boot struct {
	Kernel     [32]byte // SHA-256
	KernelName string
	Initrd     [32]byte // SHA-256; measure.NoInitrd without
	InitrdName string   // empty without
	Cmdline    string
}

// options are the launch's parameters with its kernel hashes.
func (l *Launch) options() (ovmf.LaunchOptions, error) {
	o := l.Options
	o.Hashes = nil
	if l.Boot != nil {
		cmdline, err := measure.HashCmdline(l.Boot.Cmdline)
		if err != nil {
			return o, err
		}
		o.Hashes = &measure.KernelHashes{Kernel: l.Boot.Kernel, Initrd: l.Boot.Initrd, Cmdline: cmdline}
	}
	return o, nil
}

// Sequence is the launch's sequence.
func (l *Launch) Sequence() (*measure.Sequence, error) {
	o, err := l.options()
	if err != nil {
		return nil, err
	}
	seq, err := l.Firmware.Sequence(o)
	if err != nil {
		return nil, err
	}
	seq.Steps = append(seq.Steps, l.Append...)
	return seq, nil
}

// Candidates are further inputs that may be what was really launched.
type Candidates struct {
	Firmwares []Firmware
	Kernels   []File
	Initrds   []File
	Cmdlines  []string
	// Signatures are CPUID 1.EAX values besides those of QEMU's models, such as
	// that of the host that made a report.
	Signatures []Signature
	// Boots are whole direct boots, tried when none is expected.
	Boots []Boot
	// Progress, if set, is told how many of all combinations were tried, one call
	// at a time.
	Progress func(tried, all int)
}

// Firmware is an image with a name.
type Firmware struct {
	Name  string
	Image *ovmf.Image
}

// File is a file's SHA-256 with a name.
type File struct {
	Name   string
	SHA256 [32]byte
}

// Signature is a CPUID 1.EAX with a name.
type Signature struct {
	Name  string
	Value uint32
}

// A Difference is one parameter in which the launch that was found differs from
// the expected one.
type Difference struct {
	Field    string `json:"field"` // "vcpus", "cpu", "cmdline", ...
	Expected string `json:"expected"`
	Found    string `json:"found"`
	Text     string `json:"text"` // a phrase: "8 vCPUs instead of 4"
}

// A Region is a part of the launch that no variant explains.
type Region struct {
	Name  string `json:"name"`
	GPA   uint64 `json:"gpa"`
	Tried string `json:"tried"` // what was tried for it, in words
}

// A Result is what was found out.
type Result struct {
	// Matched says that a variant has the digest; Differences are then its
	// differences from what was expected, none if it matches as it is.
	Matched     bool         `json:"matched"`
	Differences []Difference `json:"differences,omitempty"`

	// Unexplained lists, when nothing matched, the regions of the launch whose
	// contents may be anything, in launch order: the first is where to look.
	Unexplained []Region `json:"unexplained,omitempty"`

	// Tried counts the digests that were compared.
	Tried int64 `json:"tried"`
}

// errDigestSize says that a digest is of no mode's length.
var errDigestSize = errors.New("digest: expected 48 bytes (SEV-SNP) or 32 bytes (SEV and SEV-ES)")

// Digest looks for the variant of launch that has the digest: 48 bytes for
// SEV-SNP, 32 for SEV and SEV-ES. It ends early when ctx does.
func Digest(ctx context.Context, launch Launch, digest []byte, c Candidates) (*Result, error) {
	s := &search{ctx: ctx, base: launch, candidates: c}
	switch len(digest) {
	case measure.DigestSize:
		s.modes = []measure.Mode{measure.ModeSNP}
		s.target = measure.Digest(digest)
	case 32:
		s.modes = []measure.Mode{measure.ModeSEV, measure.ModeSEVES}
		copy(s.target[:], digest)
	default:
		return nil, fmt.Errorf("%w: found %d", errDigestSize, len(digest))
	}
	if s.base.Options.Mode == "" {
		s.base.Options.Mode = measure.ModeSNP
	}
	if s.base.Options.VMM == "" {
		s.base.Options.VMM = measure.VMMQEMU
	}
	// What is wrong with the expected launch itself is the caller's to know, not
	// a variant's to hide.
	if _, err := s.base.Sequence(); err != nil {
		return nil, fmt.Errorf("expected launch: %w", err)
	}
	return s.run()
}
