package explain

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/evtpm/evtpm/measure"
)

// Fields are what a report says of a launch besides the launch digest.
type Fields struct {
	Policy          uint64
	HostData        [32]byte
	FamilyID        [16]byte
	ImageID         [16]byte
	GuestSVN        uint32
	IDKeyDigest     measure.Digest
	AuthorKeyDigest measure.Digest // zeros without author key
}

// Compare lists the fields that differ from golden values. A launch whose digest
// is right can still be another one: with debugging allowed, or without the ID
// block.
func Compare(g *measure.Golden, f *Fields) []Difference {
	var out []Difference
	add := func(field, expected, found, format string, args ...any) {
		if expected != found {
			out = append(out, Difference{field, expected, found, fmt.Sprintf(format, args...)})
		}
	}
	add("policy", hex(g.Policy), hex(f.Policy), "policy 0x%x instead of 0x%x (%s)", f.Policy, g.Policy, policyChanges(g.Policy, f.Policy))
	hostData := make([]byte, len(f.HostData))
	copy(hostData, g.HostData)
	if !bytes.Equal(hostData, f.HostData[:]) {
		add("host_data", fmt.Sprintf("%x", hostData), fmt.Sprintf("%x", f.HostData), "host data %x instead of %x", f.HostData, hostData)
	}
	want := g.IDBlock
	if want == nil {
		want = &measure.GoldenIDBlock{FamilyID: make([]byte, 16), ImageID: make([]byte, 16)}
	}
	add("family_id", want.FamilyID.String(), fmt.Sprintf("%x", f.FamilyID), "family ID %x instead of %s", f.FamilyID, want.FamilyID)
	add("image_id", want.ImageID.String(), fmt.Sprintf("%x", f.ImageID), "image ID %x instead of %s", f.ImageID, want.ImageID)
	add("svn", fmt.Sprint(want.GuestSVN), fmt.Sprint(f.GuestSVN), "guest SVN %d instead of %d", f.GuestSVN, want.GuestSVN)
	key := func(field, name string, expected, found measure.Digest) {
		switch {
		case expected.IsZero():
			add(field, expected.String(), found.String(), "an ID block with %s %s where none is expected", name, found)
		case found.IsZero():
			add(field, expected.String(), found.String(), "no ID block with %s %s", name, expected)
		default:
			add(field, expected.String(), found.String(), "%s %s instead of %s", name, found, expected)
		}
	}
	key("id_key", "ID key", want.IDKeyDigest, f.IDKeyDigest)
	var author measure.Digest
	if want.AuthorKeyDigest != nil {
		author = *want.AuthorKeyDigest
	}
	key("author_key", "author key", author, f.AuthorKeyDigest)
	return out
}

// policyBits are the bits of a guest policy (SNP ABI 56860, guest policy).
var policyBits = []struct {
	bit  uint64
	name string
}{
	{1 << 16, "SMT"},
	{1 << 17, "the bit that is always one"},
	{1 << 18, "migration agent"},
	{1 << 19, "debugging"},
	{1 << 20, "single socket"},
	{1 << 21, "CXL"},
	{1 << 22, "AES-256-XTS memory encryption"},
	{1 << 23, "RAPL disabled"},
	{1 << 24, "ciphertext hiding"},
	{1 << 25, "page swap disabled"},
}

// policyChanges says in words what differs between two policies.
func policyChanges(expected, found uint64) string {
	var out []string
	changed := expected ^ found
	if changed&0xffff != 0 {
		out = append(out, fmt.Sprintf("ABI version at least %d.%d instead of %d.%d", found>>8&0xff, found&0xff, expected>>8&0xff, expected&0xff))
	}
	for _, b := range policyBits {
		switch {
		case changed&b.bit == 0:
		case found&b.bit != 0:
			out = append(out, "with "+b.name)
		default:
			out = append(out, "without "+b.name)
		}
		changed &^= b.bit
	}
	if changed &^= 0xffff; changed != 0 {
		out = append(out, fmt.Sprintf("unknown bits 0x%x", changed))
	}
	return strings.Join(out, ", ")
}
