package measure

import (
	"encoding/hex"
	"fmt"
)

// DigestSize is the length in bytes of a launch digest and of every page
// digest folded into it: SHA-384 (SNP ABI 56860, PAGE_INFO).
const DigestSize = 48

// A Digest is a SHA-384 value: a launch digest, or the digest of one page.
// Its text form is 96 lower-case hexadecimal digits.
type Digest [DigestSize]byte

// String returns the digest as 96 lower-case hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether every byte is zero: the value a fold starts from,
// never the digest of a launch.
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText implements [encoding.TextMarshaler].
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]. It accepts exactly 96
// hexadecimal digits of either case.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != 2*DigestSize {
		return fmt.Errorf("launch digest: found %d characters, expected %d hexadecimal digits", len(text), 2*DigestSize)
	}
	if _, err := hex.Decode(d[:], text); err != nil {
		return fmt.Errorf("launch digest: %w", err)
	}
	return nil
}
