package evidence

// Hello is the first frame that the guest sends on a connection.
type Hello struct {
	AgentVersion string `json:"agent_version"`
	BootID       string `json:"boot_id"`
	// Sources are the bindings the guest can answer, best first. Informative.
	Sources []string `json:"sources"`
}

// Challenge asks for evidence.
type Challenge struct {
	// Nonce is 64 random bytes, used once.
	Nonce []byte `json:"nonce"`
	// Binding is one of the Binding constants, or empty for the guest's best.
	Binding string `json:"binding,omitempty"`
	// PCRBank is "sha256" or "sha384"; PCRs the selection, ascending.
	PCRBank string `json:"pcr_bank"`
	PCRs    []int  `json:"pcrs"`
}

// Activate carries TPM2_MakeCredential's output for the AK named in the
// evidence, made for the EK in the evidence.
type Activate struct {
	CredentialBlob []byte `json:"credential_blob"` // TPM2B_ID_OBJECT
	Secret         []byte `json:"secret"`          // TPM2B_ENCRYPTED_SECRET
}

// Activated carries what TPM2_ActivateCredential gave.
type Activated struct {
	CertInfo []byte `json:"cert_info"`
}

// Failure says that the peer could not answer, and why.
type Failure struct {
	Message string `json:"message"`
}

// SVSMAttest is a call of the SVSM attestation protocol (AMD 58019, chapter 7)
// as the simulated SVSM takes it: the fields of the operation structure,
// without the guest-physical addresses.
type SVSMAttest struct {
	Call uint32 `json:"call"` // 0 SVSM_ATTEST_SERVICES, 1 SVSM_ATTEST_SINGLE_SERVICE
	// Nonce must be 64 bytes.
	Nonce []byte `json:"nonce"`
	// GUID of the service for call 1, in wire (mixed-endian) order, 16 bytes.
	GUID            []byte `json:"guid,omitempty"`
	ManifestVersion uint32 `json:"manifest_version"`
}

// SVSMAttestResult is the SVSM's answer.
type SVSMAttestResult struct {
	Report       []byte `json:"report"`
	Manifest     []byte `json:"manifest"`
	Certificates []byte `json:"certificates"`
}

// GuestReport is MSG_REPORT_REQ as a guest kernel below the SVSM can send it
// (SNP ABI 56860): VMPL must not be more privileged than the guest's own.
type GuestReport struct {
	ReportData []byte `json:"report_data"` // 64 bytes
	VMPL       uint32 `json:"vmpl"`
}

// GuestReportReply is MSG_REPORT_RSP with the certificate table of an extended
// guest request.
type GuestReportReply struct {
	Report       []byte `json:"report"`
	Certificates []byte `json:"certificates"`
}
