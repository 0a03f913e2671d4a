// Package evidence holds what travels between a verifier and a guest: the
// evidence itself, the versioned frames that carry it, and the messages of the
// challenge protocol. Everything here is bytes from an untrusted peer; package
// attest judges them.
//
// The package depends on the standard library alone, so that the guest agent
// stays small (the agent is part of a measured initramfs).
package evidence

// Schema names the version of [Evidence]'s JSON form.
const Schema = "evtpm.evidence/v1"

// Bindings: how REPORT_DATA ties the vTPM's EK to the report.
const (
	// BindingSVSM is the SVSM attestation protocol's single-service call for
	// the vTPM (AMD 58019, SVSM_ATTEST_SINGLE_SERVICE): REPORT_DATA =
	// SHA-512(nonce || manifest), manifest = the EK's TPMT_PUBLIC.
	BindingSVSM = "svsm"
	// BindingSVSMServices is the all-services call (SVSM_ATTEST_SERVICES):
	// REPORT_DATA = SHA-512(nonce || services manifest).
	BindingSVSMServices = "svsm-services"
	// BindingNV is the ACSAC 2023 paper's way: the report lies in NV index
	// 0x01C00002, REPORT_DATA = SHA-512(EK as TPM2B_PUBLIC). It carries no
	// nonce of the verifier; freshness comes from the quote alone.
	BindingNV = "nv"
)

// Evidence is one answer to one challenge: bytes from the guest, and never a
// claim. Byte strings are base64 in JSON.
type Evidence struct {
	Schema string `json:"schema"`

	// Nonce is the verifier's: 64 bytes. It went to the SVSM as the attestation
	// nonce, and its SHA-256 is the quote's extraData.
	Nonce []byte `json:"nonce"`

	// Binding is one of the Binding constants.
	Binding string `json:"binding"`

	// Report is the SNP attestation report as received: 1184 bytes.
	Report []byte `json:"report"`

	// Manifest is the SVSM's manifest as received; empty for BindingNV.
	Manifest        []byte `json:"manifest,omitempty"`
	ManifestVersion uint32 `json:"manifest_version,omitempty"`

	// Certificates is the certificate table that came with the report (GHCB
	// 56421, "SNP extended guest request"): VCEK or VLEK, ASK, ARK. Supplied by
	// the host, so never trusted by itself. May be empty.
	Certificates []byte `json:"certificates,omitempty"`

	// EKPublic and AKPublic are TPM2B_PUBLIC structures (big-endian size first).
	EKPublic []byte `json:"ek_public"`
	AKPublic []byte `json:"ak_public"`

	// Quote is the TPMS_ATTEST, QuoteSignature the TPMT_SIGNATURE over it.
	Quote          []byte `json:"quote"`
	QuoteSignature []byte `json:"quote_signature"`

	// PCRBank is the quoted bank ("sha256" or "sha384"); PCRs its values in the
	// order of PCR numbers, those selected by the challenge.
	PCRBank string `json:"pcr_bank"`
	PCRs    []PCR  `json:"pcrs"`

	// EventLog is the TCG crypto-agile event log of the firmware, as the kernel
	// shows it. May be empty.
	EventLog []byte `json:"event_log,omitempty"`

	// BootID is the guest kernel's random boot identifier.
	BootID string `json:"boot_id"`
}

// PCR is one PCR value.
type PCR struct {
	PCR   int    `json:"pcr"`
	Value []byte `json:"value"`
}
