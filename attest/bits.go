package attest

import (
	"fmt"
	"strings"
)

// GuestPolicy is the guest policy given at SNP_LAUNCH_START (SNP ABI 56860,
// Guest Policy).
type GuestPolicy uint64

// Bits of a guest policy. Bits 7:0 are ABI_MINOR, 15:8 ABI_MAJOR.
const (
	PolicySMT                 = 16
	policyReservedOne         = 17 // must be one
	PolicyMigrateMA           = 18
	PolicyDebug               = 19
	PolicySingleSocket        = 20
	PolicyCXLAllow            = 21
	PolicyMemAES256XTS        = 22
	PolicyRAPLDisable         = 23
	PolicyCiphertextHiding    = 24
	PolicyPageSwapDisable     = 25
	policyFirstReservedMBZBit = 26
)

// Bit reports whether a bit is set.
func (p GuestPolicy) Bit(n int) bool { return p>>n&1 != 0 }

// ABI is the lowest firmware ABI that the guest accepts.
func (p GuestPolicy) ABI() (major, minor uint8) { return uint8(p >> 8), uint8(p) }

// PlatformInfo is PLATFORM_INFO (SNP ABI 56860, PLATFORM_INFO).
type PlatformInfo uint64

// Bits of PLATFORM_INFO.
const (
	PlatformSMT              = 0
	PlatformTSME             = 1
	PlatformECC              = 2
	PlatformRAPLDisabled     = 3
	PlatformCiphertextHiding = 4
	PlatformAliasCheck       = 5
	PlatformIOMMUWriteSafe   = 6
	PlatformTIO              = 7
)

// Bit reports whether a bit is set.
func (p PlatformInfo) Bit(n int) bool { return p>>n&1 != 0 }

// knownPlatformBits is the mask of the bits that a report version may set.
// Firmware that writes version 2 knows none above the alias check.
func knownPlatformBits(version uint32) PlatformInfo {
	if version < cpuidVersion {
		return 1<<(PlatformAliasCheck+1) - 1
	}
	return 1<<(PlatformTIO+1) - 1
}

// A namedBit is a bit under the name that policy files and claims use.
type namedBit struct {
	bit  int
	name string
}

// guestPolicyBits and platformBits name the bits that a policy can speak of.
var (
	guestPolicyBits = []namedBit{
		{PolicySMT, "smt"},
		{PolicyMigrateMA, "migrate_ma"},
		{PolicyDebug, "debug"},
		{PolicySingleSocket, "single_socket"},
		{PolicyCXLAllow, "cxl"},
		{PolicyMemAES256XTS, "mem_aes_256_xts"},
		{PolicyRAPLDisable, "rapl_disable"},
		{PolicyCiphertextHiding, "ciphertext_hiding"},
		{PolicyPageSwapDisable, "page_swap_disable"},
	}
	platformBits = []namedBit{
		{PlatformSMT, "smt"},
		{PlatformTSME, "tsme"},
		{PlatformECC, "ecc"},
		{PlatformRAPLDisabled, "rapl_disabled"},
		{PlatformCiphertextHiding, "ciphertext_hiding"},
		{PlatformAliasCheck, "alias_check_complete"},
		{PlatformIOMMUWriteSafe, "iommu_write_safe"},
		{PlatformTIO, "tio"},
	}
)

// A Want says what a policy expects of a bit.
type Want string

// Wants. The zero value means [Any].
const (
	Any       Want = "any"
	Required  Want = "required"
	Forbidden Want = "forbidden"
)

// bitFaults compares bits with wants, by name; it lists what differs.
func bitFaults(names []namedBit, wants map[string]Want, bit func(int) bool) string {
	var out []string
	for _, n := range names {
		switch w := wants[n.name]; {
		case w == Required && !bit(n.bit):
			out = append(out, fmt.Sprintf("%s is 0, required", n.name))
		case w == Forbidden && bit(n.bit):
			out = append(out, fmt.Sprintf("%s is 1, forbidden", n.name))
		}
	}
	return strings.Join(out, ", ")
}
