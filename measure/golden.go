package measure

// GoldenSchema names the version of [Golden]'s JSON form.
const GoldenSchema = "evtpm.golden/v1"

// Golden holds the values that a tenant expects of a launch. It says nothing
// of how they were found out; it is compared with evidence, never with claims.
type Golden struct {
	Schema string `json:"schema"`

	// Name is the machine's or image's name, for people. May be empty.
	Name string `json:"name,omitempty"`

	// Platform is "snp" or "sim". A sim golden value never accepts a report
	// signed under an AMD root, nor the reverse.
	Platform string `json:"platform"`

	// HostProfile names the rules by which the host's KVM measures (which
	// VMSAs, features, FPU state, VMM); it is printed with every digest.
	HostProfile string `json:"host_profile"`

	// LaunchDigests are the accepted launch digests; at least one.
	LaunchDigests []Digest `json:"launch_digests"`

	// Policy is the guest policy given to SNP_LAUNCH_START.
	Policy uint64 `json:"policy"`

	// HostData is HOST_DATA: 32 bytes in hex; empty means all zeros expected.
	HostData HexBytes `json:"host_data,omitempty"`

	// IDBlock expectations; nil means that the launch has no ID block and that
	// every one of its report fields must be zero.
	IDBlock *GoldenIDBlock `json:"id_block,omitempty"`

	// PCRs are the predicted values of the vTPM's banks. A PCR that is not
	// listed is shown in a verdict, not judged.
	PCRs *GoldenPCRs `json:"pcrs,omitempty"`

	// Inputs are the files and parameters that the values derive from, for
	// people and for explain: never judged.
	Inputs []GoldenInput `json:"inputs,omitempty"`
}

// GoldenIDBlock holds what a report must say of the ID block.
type GoldenIDBlock struct {
	FamilyID        HexBytes `json:"family_id"`                   // 16 bytes
	ImageID         HexBytes `json:"image_id"`                    // 16 bytes
	GuestSVN        uint32   `json:"guest_svn"`                   // exact
	IDKeyDigest     Digest   `json:"id_key_digest"`               // SHA-384 of the 0x404-byte key
	AuthorKeyDigest *Digest  `json:"author_key_digest,omitempty"` // nil: AUTHOR_KEY_EN must be 0
}

// GoldenPCRs holds predicted PCR values of one bank.
type GoldenPCRs struct {
	// Bank is the TCG algorithm name: "sha256" or "sha384".
	Bank string `json:"bank"`

	// Values lists the accepted values for each predicted PCR, in the order of
	// PCR numbers. More than one value means that the same measured input is
	// extended in more than one form, depending on QEMU's and OVMF's version.
	Values []GoldenPCR `json:"values"`
}

// GoldenPCR is one predicted PCR.
type GoldenPCR struct {
	PCR int `json:"pcr"`
	// AnyOf are the accepted values; at least one.
	AnyOf []GoldenPCRValue `json:"any_of"`
}

// GoldenPCRValue is an accepted value, and how it comes about.
type GoldenPCRValue struct {
	Value HexBytes `json:"value"`
	// When says in words which boot path gives this value.
	When string `json:"when,omitempty"`
}

// GoldenInput is one input of the launch: a file by its SHA-256, or a value.
type GoldenInput struct {
	Name   string   `json:"name"`
	SHA256 HexBytes `json:"sha256,omitempty"`
	Value  string   `json:"value,omitempty"`
}
