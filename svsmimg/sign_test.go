package svsmimg

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/measure"
)

const testAuthorKey = `-----BEGIN EC PRIVATE KEY-----
MIGkAgEBBDCEL50tKJaF5hxqNsG7HTqDUkZoqq56CwoJUyidlar4MeCWj50hSceu
5Pm+F/c8tWCgBwYFK4EEACKhZANiAAR/ICJj/C2gen35PUuw2CbIqxr+BzQwE9Dv
2Pe+Jpihpyo0r8E5N/MN0rOJVm77bzhT4lIczEPEoV/u+W/elRAc3k5I1RUBaUTz
0nT4ZvE6LbPCCMRRygCowwpQ0PPw3nw=
-----END EC PRIVATE KEY-----
`

// TestSign signs a file, with and without author key, reads it again and checks
// it.
func TestSign(t *testing.T) {
	id := must(measure.ParsePrivateKeyPEM([]byte(testIDKey)))
	author := must(measure.ParsePrivateKeyPEM([]byte(testAuthorKey)))
	o := IDBlockOptions{GuestSVN: 5, FamilyID: [16]byte{1}, ImageID: [16]byte{2}}
	for _, s := range []measure.SignOptions{{IDKey: id}, {IDKey: id, AuthorKey: author}} {
		f := small()
		signed, err := f.Sign(o, s)
		if err != nil {
			t.Fatal(err)
		}
		if f.IDBlock() != nil {
			t.Error("the unsigned file was changed")
		}
		read := must(Parse(must(signed.Encode())))
		g, err := read.VerifyIDBlock(SequenceOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if g.GuestSVN != 5 || g.FamilyID[0] != 1 || g.ImageID[0] != 2 || g.IDKeyDigest != must(measure.IDKeyDigest(&id.PublicKey)) || (g.AuthorKeyDigest != nil) != (s.AuthorKey != nil) {
			t.Errorf("found %+v", g)
		}
		if a, b := launchDigest(t, read, SequenceOptions{}), launchDigest(t, f, SequenceOptions{}); a != b {
			t.Error("the ID block changes the launch digest")
		}
		// The same bytes on QEMU's command line.
		block, auth := read.IDBlock().Block(policyDefault), must(read.IDBlock().Auth())
		want := must(measure.SignIDBlock(block, s))
		if !bytes.Equal(must(auth.Encode()), must(want.Encode())) {
			t.Error("the ID authentication information is another one than for the command line")
		}
		// Signing anew replaces the block.
		again := must(read.Sign(IDBlockOptions{GuestSVN: 6}, s))
		if len(again.Headers) != len(read.Headers) || again.IDBlock().GuestSVN != 6 {
			t.Error("the ID block was not replaced")
		}
		var other *DigestError
		if _, err := read.VerifyIDBlock(SequenceOptions{VCPUs: 2, CPUSignature: 1}); !errors.As(err, &other) || other.Found == other.Expected {
			t.Errorf("another launch: found error %v", err)
		}
	}
}

// TestSignRefuses: blocks of other launches, wrong signatures, files without
// policy.
func TestSignRefuses(t *testing.T) {
	id := must(measure.ParsePrivateKeyPEM([]byte(testIDKey)))
	f := small()
	block := must(f.NewIDBlock(IDBlockOptions{}))
	auth := must(measure.SignIDBlock(block, measure.SignOptions{IDKey: id}))
	if _, err := f.WithIDBlock(block, auth, SequenceOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		block func(*measure.IDBlock)
		words string
	}{
		"digest":    {func(b *measure.IDBlock) { b.LaunchDigest[0] ^= 1 }, "made for another launch"},
		"policy":    {func(b *measure.IDBlock) { b.Policy = 0x20000 }, "found policy 0x20000, expected 0x30000"},
		"signature": {func(b *measure.IDBlock) { b.GuestSVN++ }, "BAD_SIGNATURE"},
	} {
		b := *block
		c.block(&b)
		if _, err := f.WithIDBlock(&b, auth, SequenceOptions{}); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: found error %v, expected one with %q", name, err, c.words)
		}
	}
	bare := small(func(b *builder) { b.f.Headers = append(b.f.Headers[:1:1], b.f.Headers[2:]...) })
	if _, err := bare.Sign(IDBlockOptions{}, measure.SignOptions{IDKey: id}); !errors.Is(err, errNoPolicy) {
		t.Errorf("without policy: found error %v", err)
	}
	other := small(func(b *builder) { b.f.Headers[0].(*Platform).Platform = PlatformTDX })
	if _, err := other.Sign(IDBlockOptions{}, measure.SignOptions{IDKey: id}); !errors.Is(err, errNotSNP) {
		t.Errorf("for another platform: found error %v", err)
	}
	if _, err := f.VerifyIDBlock(SequenceOptions{}); !errors.Is(err, ErrNotSigned) {
		t.Errorf("without ID block: found error %v", err)
	}
	unpoliced := signedWith(nil)
	unpoliced.Headers = append(unpoliced.Headers[:1:1], unpoliced.Headers[2:]...)
	if _, err := unpoliced.VerifyIDBlock(SequenceOptions{}); !errors.Is(err, errNoPolicy) {
		t.Errorf("signed, then without policy: found error %v", err)
	}
	for name, change := range map[string]func(*SNPIDBlock){
		"version":          func(b *SNPIDBlock) { b.Version = 0 },
		"signature":        func(b *SNPIDBlock) { b.IDSignature[3] ^= 1 },
		"key":              func(b *SNPIDBlock) { b.IDKey[20] ^= 1 },
		"algorithm":        func(b *SNPIDBlock) { b.IDKeyAlgorithm = 2 },
		"digest":           func(b *SNPIDBlock) { b.LaunchDigest[9] ^= 1 },
		"image ID":         func(b *SNPIDBlock) { b.ImageID[9] ^= 1 },
		"author enabled":   func(b *SNPIDBlock) { b.AuthorKeyEnabled = true },
		"author unclaimed": func(b *SNPIDBlock) { b.AuthorKey, b.AuthorSignature, b.AuthorKeyAlgorithm = b.IDKey, b.IDSignature, 1 },
	} {
		if _, err := signedWith(change).VerifyIDBlock(SequenceOptions{}); err == nil {
			t.Errorf("a changed %s is taken", name)
		}
	}
	// igvmmeasure names an algorithm for an author key that is not there.
	if _, err := signedWith(func(b *SNPIDBlock) { b.AuthorKeyAlgorithm = 1 }).VerifyIDBlock(SequenceOptions{}); err != nil {
		t.Errorf("an author key's algorithm without the key: %v", err)
	}
}
