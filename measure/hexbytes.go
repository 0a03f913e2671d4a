package measure

import (
	"encoding/hex"
	"fmt"
)

// HexBytes is a byte string whose text form is lower-case hexadecimal.
type HexBytes []byte

// String returns the bytes as lower-case hexadecimal digits.
func (b HexBytes) String() string { return hex.EncodeToString(b) }

// MarshalText implements [encoding.TextMarshaler].
func (b HexBytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (b *HexBytes) UnmarshalText(text []byte) error {
	out, err := hex.DecodeString(string(text))
	if err != nil {
		return fmt.Errorf("hexadecimal bytes: %w", err)
	}
	*b = out
	return nil
}
