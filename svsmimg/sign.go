package svsmimg

import (
	"errors"
	"fmt"
	"slices"

	"github.com/evtpm/evtpm/measure"
)

// IDBlockOptions are the fields of an ID block that are the signer's to choose.
type IDBlockOptions struct {
	// Launch says how the file is launched: the ID block holds the launch digest.
	Launch SequenceOptions

	FamilyID, ImageID [16]byte
	GuestSVN          uint32
}

// NewIDBlock returns the ID block of a file's launch: what an ID key signs. The
// policy is the file's.
func (f *File) NewIDBlock(o IDBlockOptions) (*measure.IDBlock, error) {
	if f.Mask(PlatformSNP) == 0 {
		return nil, errNotSNP
	}
	policy, ok := f.Policy(PlatformSNP)
	if !ok {
		return nil, errNoPolicy
	}
	s, err := f.Sequence(o.Launch)
	if err != nil {
		return nil, err
	}
	digest, err := s.LaunchDigest()
	if err != nil {
		return nil, err
	}
	return &measure.IDBlock{LaunchDigest: digest, FamilyID: o.FamilyID, ImageID: o.ImageID, GuestSVN: o.GuestSVN, Policy: policy}, nil
}

var errNoPolicy = errors.New("IGVM file has no GUEST_POLICY for SEV_SNP, which is part of an ID block")

// WithIDBlock returns a file with a signed ID block as its last directive,
// instead of the one that it may have. The block must be that of the file's
// launch.
func (f *File) WithIDBlock(block *measure.IDBlock, auth *measure.IDAuth, launch SequenceOptions) (*File, error) {
	want, err := f.NewIDBlock(IDBlockOptions{Launch: launch, FamilyID: block.FamilyID, ImageID: block.ImageID, GuestSVN: block.GuestSVN})
	if err != nil {
		return nil, err
	}
	var errs []error
	if block.LaunchDigest != want.LaunchDigest {
		errs = append(errs, fmt.Errorf("ID block: found launch digest %s, expected %s: made for another launch", block.LaunchDigest, want.LaunchDigest))
	}
	if block.Policy != want.Policy {
		errs = append(errs, fmt.Errorf("ID block: found policy 0x%x, expected 0x%x: the file's", block.Policy, want.Policy))
	}
	if err := errors.Join(append(errs, auth.Verify(block))...); err != nil {
		return nil, err
	}
	h, err := NewSNPIDBlock(f.Mask(PlatformSNP), block, auth)
	if err != nil {
		return nil, err
	}
	out := *f
	out.Headers = slices.Clone(f.Headers)
	out.Headers = slices.DeleteFunc(out.Headers, func(h Header) bool { return h.Type() == TypeSNPIDBlock })
	out.Headers = append(out.Headers, h)
	return &out, nil
}

// Sign returns a file with an ID block that the keys of s sign.
func (f *File) Sign(o IDBlockOptions, s measure.SignOptions) (*File, error) {
	block, err := f.NewIDBlock(o)
	if err != nil {
		return nil, err
	}
	auth, err := measure.SignIDBlock(block, s)
	if err != nil {
		return nil, err
	}
	return f.WithIDBlock(block, auth, o.Launch)
}

// ErrNotSigned says that a file has no SNP_ID_BLOCK.
var ErrNotSigned = errors.New("IGVM file has no SNP_ID_BLOCK: it is not signed")

// A DigestError says that an ID block is not that of the file's launch.
type DigestError struct{ Found, Expected measure.Digest }

func (e *DigestError) Error() string {
	return fmt.Sprintf("ID block: found launch digest %s, expected %s", e.Found, e.Expected)
}

// VerifyIDBlock checks the file's ID block: the signatures, and whether it is that
// of the file's launch. It returns what reports will say of it, also where it is
// that of another launch.
func (f *File) VerifyIDBlock(launch SequenceOptions) (*measure.GoldenIDBlock, error) {
	h := f.IDBlock()
	if h == nil {
		return nil, ErrNotSigned
	}
	auth, err := h.Auth()
	if err != nil {
		return nil, fmt.Errorf("SNP_ID_BLOCK: %w", err)
	}
	if h.Version != 1 {
		return nil, fmt.Errorf("SNP_ID_BLOCK: found version %d, expected 1", h.Version)
	}
	policy, ok := f.Policy(PlatformSNP)
	if !ok {
		return nil, errNoPolicy
	}
	block := h.Block(policy)
	golden, err := auth.Golden(block)
	if err != nil {
		return nil, err
	}
	if err := auth.Verify(block); err != nil {
		return nil, err
	}
	want, err := f.NewIDBlock(IDBlockOptions{Launch: launch})
	if err != nil {
		return golden, err
	}
	if want.LaunchDigest != h.LaunchDigest {
		return golden, &DigestError{Found: h.LaunchDigest, Expected: want.LaunchDigest}
	}
	return golden, nil
}
