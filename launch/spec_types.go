package launch

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is an amount of memory in bytes. Its text form is a number with one of
// the units K, M, G, T, which are powers of 1024, as QEMU's -m has them.
type Size uint64

// Units of a [Size], largest first.
var sizeUnits = []struct {
	suffix string
	shift  uint
}{{"T", 40}, {"G", 30}, {"M", 20}, {"K", 10}}

// ParseSize reads a size such as 256M.
func ParseSize(text string) (Size, error) {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := parseNumber(digits)
		if err != nil || strings.HasPrefix(digits, "0x") {
			break
		}
		if n > math.MaxInt64>>u.shift {
			return 0, errors.New("too large")
		}
		return Size(n << u.shift), nil
	}
	return 0, errors.New("expected a number and a unit, such as 512M or 2G")
}

// String returns the size in the largest unit that gives a whole number.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if s != 0 && s&(1<<u.shift-1) == 0 {
			return strconv.FormatUint(uint64(s>>u.shift), 10) + u.suffix
		}
	}
	return strconv.FormatUint(uint64(s), 10)
}

// MarshalText implements [encoding.TextMarshaler].
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *Size) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSize(string(text))
	return err
}

// Duration is a time span whose text form is that of [time.Duration], such as
// 90s or 2m.
type Duration time.Duration

// String returns the duration as time.Duration does.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText implements [encoding.TextMarshaler].
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || strings.HasPrefix(string(text), "+") {
		return errors.New("expected a time span with a unit, such as 90s or 2m")
	}
	*d = Duration(v)
	return nil
}

// Policy is the guest policy of SNP_LAUNCH_START (SNP ABI 56860, Guest Policy).
// Its text form is a hexadecimal number such as 0x30000.
type Policy uint64

// ABI is the lowest version of the AMD-SP's ABI that the guest runs under.
func (p Policy) ABI() (major, minor uint8) { return uint8(p >> policyABIMajor), uint8(p) }

// DefaultPolicy allows SMT and nothing else: what QEMU takes by default.
const DefaultPolicy Policy = 1<<policyReservedOne | 1<<policySMT

// Bits of a guest policy. Bits 7:0 are ABI_MINOR, 15:8 ABI_MAJOR; bits 63:26 are
// reserved and zero.
const (
	policyABIMajor    = 8
	policySMT         = 16
	policyReservedOne = 17 // reserved, one
	policyDebug       = 19
	policyKnownBits   = 26
)

// policyBits names the bits that a spec can set by name: the names of a
// verification policy.
var policyBits = []struct {
	name string
	bit  uint
	doc  string
}{
	{"smt", policySMT, "May run with simultaneous multithreading."},
	{"migrate_ma", 18, "May be associated with a migration agent."},
	{"debug", policyDebug, "May be debugged: the host can read all of its memory."},
	{"single_socket", 20, "Must run on a single socket."},
	{"cxl", 21, "May use CXL memory or devices."},
	{"mem_aes_256_xts", 22, "Memory encryption must be AES-256 XTS."},
	{"rapl_disable", 23, "Running average power limit must be off."},
	{"ciphertext_hiding", 24, "Ciphertext hiding must be on."},
	{"page_swap_disable", 25, "Page swap, page move and page dismiss are off."},
}

// check refuses what the AMD-SP would refuse.
func (p Policy) check() error {
	switch {
	case p>>policyKnownBits != 0:
		return fmt.Errorf("found %s: bits 63 to %d are reserved, expected zero", p, policyKnownBits)
	case p>>policyReservedOne&1 == 0:
		return fmt.Errorf("found %s: bit %d is reserved, expected one: %s", p, policyReservedOne, p|1<<policyReservedOne)
	}
	return nil
}

// String returns the policy as a hexadecimal number.
func (p Policy) String() string { return fmt.Sprintf("%#x", uint64(p)) }

// MarshalText implements [encoding.TextMarshaler].
func (p Policy) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (p *Policy) UnmarshalText(text []byte) error {
	n, err := parseNumber(string(text))
	*p = Policy(n)
	return err
}

// parseNumber reads a decimal number, or a hexadecimal one after 0x. What looks
// octal, binary, signed or grouped is refused: readers of YAML differ about it.
func parseNumber(text string) (uint64, error) {
	digits, base := text, 10
	if rest, ok := strings.CutPrefix(text, "0x"); ok {
		digits, base = rest, 16
	} else if len(text) > 1 && text[0] == '0' {
		return 0, errors.New("a leading zero means octal to some readers; expected a decimal number, or hexadecimal after 0x")
	}
	n, err := strconv.ParseUint(digits, base, 64)
	if errors.Is(err, strconv.ErrRange) {
		return 0, errors.New("does not fit in 64 bits")
	}
	if err != nil {
		return 0, errors.New("expected a whole number, decimal or hexadecimal after 0x")
	}
	return n, nil
}
