package svsmimg

import (
	"errors"
	"strconv"
	"strings"
)

// Hex is a number whose text form is hexadecimal, with 0x: an address, a size, a
// policy.
type Hex uint64

// String returns the number as 0x and hexadecimal digits.
func (h Hex) String() string { return "0x" + strconv.FormatUint(uint64(h), 16) }

// MarshalText implements [encoding.TextMarshaler].
func (h Hex) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]. It reads decimal numbers
// too.
func (h *Hex) UnmarshalText(text []byte) error {
	digits, base := string(text), 10
	if rest, ok := strings.CutPrefix(digits, "0x"); ok {
		digits, base = rest, 16
	} else if len(digits) > 1 && digits[0] == '0' {
		return errors.New("a leading zero means octal to some readers; expected a decimal number, or hexadecimal after 0x")
	}
	if digits == "" || strings.ContainsAny(digits, "+-_") {
		return errors.New("expected a whole number, decimal or hexadecimal after 0x")
	}
	n, err := strconv.ParseUint(digits, base, 64)
	if err != nil {
		return errors.New("expected a whole number of 64 bits, decimal or hexadecimal after 0x")
	}
	*h = Hex(n)
	return nil
}
