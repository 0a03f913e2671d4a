package attest

// A CheckName names a check, in verdicts and documents. Names do not change.
type CheckName string

// A Reason says how a check failed. Reasons do not change their meaning.
type Reason string

// A CheckInfo describes a check: what it looks at, and how it can fail.
type CheckInfo struct {
	Name  CheckName
	Class Class
	// VTPM is true for the checks that only whole evidence has, not a bare
	// report.
	VTPM bool
	// Meaning in one line.
	Meaning string
	Reasons []ReasonInfo
}

// A ReasonInfo describes a reason.
type ReasonInfo struct {
	Reason  Reason
	Meaning string
}

// Names of the checks, in the order of a verdict.
const (
	CheckReportLength    CheckName = "report-length"
	CheckReportVersion   CheckName = "report-version"
	CheckReportReserved  CheckName = "report-reserved"
	CheckReportAlgorithm CheckName = "report-signature-algorithm"
	CheckReportSigner    CheckName = "report-signer"
	CheckReportSignature CheckName = "report-signature"

	CheckCertificates    CheckName = "certificates"
	CheckChain           CheckName = "chain"
	CheckPlatform        CheckName = "platform"
	CheckCertificateTime CheckName = "certificate-time"
	CheckLeaf            CheckName = "leaf-certificate"
	CheckSignerKind      CheckName = "signer-kind"
	CheckProduct         CheckName = "product"
	CheckChipBinding     CheckName = "chip-binding"
	CheckTCBBinding      CheckName = "tcb-binding"
	CheckCRL             CheckName = "crl"
	CheckRevocation      CheckName = "revocation"

	CheckPolicyVersion   CheckName = "policy-report-version"
	CheckPolicyProduct   CheckName = "policy-product"
	CheckPolicySigner    CheckName = "policy-signer"
	CheckPolicyCSP       CheckName = "policy-csp"
	CheckTCBForm         CheckName = "tcb-form"
	CheckTCBOrder        CheckName = "tcb-order"
	CheckFloorReported   CheckName = "tcb-reported"
	CheckFloorCommitted  CheckName = "tcb-committed"
	CheckFloorCurrent    CheckName = "tcb-current"
	CheckFloorLaunch     CheckName = "tcb-launch"
	CheckProvisional     CheckName = "firmware-committed"
	CheckFirmware        CheckName = "firmware-version"
	CheckMitigations     CheckName = "mitigations"
	CheckGuestPolicyForm CheckName = "guest-policy-form"
	CheckGuestPolicy     CheckName = "guest-policy"
	CheckGuestDebug      CheckName = "guest-policy-debug"
	CheckGuestMigration  CheckName = "guest-policy-migration"
	CheckGuestABI        CheckName = "guest-policy-abi"
	CheckGuestGolden     CheckName = "guest-policy-golden"
	CheckSMT             CheckName = "smt"
	CheckPlatformInfo    CheckName = "platform-info"
	CheckAliasCheck      CheckName = "alias-check"
	CheckHostData        CheckName = "host-data"
	CheckFamilyID        CheckName = "family-id"
	CheckImageID         CheckName = "image-id"
	CheckGuestSVN        CheckName = "guest-svn"
	CheckIDKey           CheckName = "id-key"
	CheckAuthorKey       CheckName = "author-key"
	CheckChip            CheckName = "chip"

	CheckMeasurement CheckName = "measurement"
	CheckVMPL        CheckName = "vmpl"
	CheckReportData  CheckName = "report-data"

	CheckNonce          CheckName = "nonce"
	CheckBinding        CheckName = "binding"
	CheckManifest       CheckName = "manifest"
	CheckEK             CheckName = "ek"
	CheckEKBound        CheckName = "ek-bound"
	CheckAK             CheckName = "ak"
	CheckAKResident     CheckName = "ak-resident"
	CheckQuoteForm      CheckName = "quote-form"
	CheckQuoteSignature CheckName = "quote-signature"
	CheckQuoteNonce     CheckName = "quote-nonce"
	CheckQuoteClock     CheckName = "quote-clock"
	CheckPCRSelection   CheckName = "pcr-selection"
	CheckPCRDigest      CheckName = "pcr-digest"
	CheckPCRGolden      CheckName = "pcr-golden"
	CheckPCRUnjudged    CheckName = "pcr-unjudged"
	CheckEventLogForm   CheckName = "event-log-form"
	CheckEventLogReplay CheckName = "event-log-replay"
	CheckEventLogData   CheckName = "event-log-data"
	CheckLifecycle      CheckName = "lifecycle"
)

// Reasons.
const (
	// ReasonNotMade is given by every check that an earlier failure made
	// impossible; its class is that failure's.
	ReasonNotMade Reason = "not-made"

	ReasonReportLength       Reason = "report-length"
	ReasonReportVersion      Reason = "report-version-unsupported"
	ReasonReservedNotZero    Reason = "reserved-not-zero"
	ReasonSignatureAlgorithm Reason = "signature-algorithm"
	ReasonSignerInfo         Reason = "signer-info-malformed"
	ReasonNotSigned          Reason = "report-not-signed"
	ReasonSignatureRange     Reason = "signature-out-of-range"
	ReasonSignatureInvalid   Reason = "signature-invalid"

	ReasonCertificatesUnavailable Reason = "certificates-unavailable"
	ReasonCertificateTable        Reason = "certificate-table-malformed"
	ReasonARKUntrusted            Reason = "ark-untrusted"
	ReasonChainBroken             Reason = "chain-broken"
	ReasonChainRole               Reason = "chain-role"
	ReasonPlatformMismatch        Reason = "platform-mismatch"
	ReasonCertificateExpired      Reason = "certificate-expired"
	ReasonCertificateNotYetValid  Reason = "certificate-not-yet-valid"
	ReasonClockImplausible        Reason = "clock-implausible"
	ReasonLeafMalformed           Reason = "leaf-malformed"
	ReasonSignerKind              Reason = "signer-kind-mismatch"
	ReasonProductUnknown          Reason = "product-unknown"
	ReasonProductMismatch         Reason = "product-mismatch"
	ReasonProductAmbiguous        Reason = "product-ambiguous"
	ReasonChipIDMismatch          Reason = "chip-id-mismatch"
	ReasonChipIDMasked            Reason = "chip-id-masked"
	ReasonTCBBinding              Reason = "tcb-certificate-mismatch"
	ReasonCRLUnavailable          Reason = "crl-unavailable"
	ReasonCRLMalformed            Reason = "crl-malformed"
	ReasonCRLSignature            Reason = "crl-signature"
	ReasonCRLExpired              Reason = "crl-expired"
	ReasonCRLNotYetValid          Reason = "crl-not-yet-valid"
	ReasonCRLTooOld               Reason = "crl-too-old"
	ReasonRevoked                 Reason = "certificate-revoked"

	ReasonVersionBelowPolicy   Reason = "report-version-below-policy"
	ReasonProductNotAllowed    Reason = "product-not-allowed"
	ReasonSignerNotAllowed     Reason = "signer-not-allowed"
	ReasonCSPNotAllowed        Reason = "csp-not-allowed"
	ReasonTCBReserved          Reason = "tcb-reserved-not-zero"
	ReasonTCBOrder             Reason = "tcb-order"
	ReasonTCBBelowFloor        Reason = "tcb-below-floor"
	ReasonNoFloor              Reason = "tcb-no-floor"
	ReasonProvisional          Reason = "firmware-provisional"
	ReasonFirmwareBelow        Reason = "firmware-below-policy"
	ReasonMitigationMissing    Reason = "mitigation-missing"
	ReasonMitigationUnprovable Reason = "mitigation-not-provable"
	ReasonPolicyReserved       Reason = "guest-policy-reserved"
	ReasonPolicyBits           Reason = "guest-policy-bits"
	ReasonDebugAllowed         Reason = "debug-allowed"
	ReasonMigrationAllowed     Reason = "migration-allowed"
	ReasonMigrationFields      Reason = "migration-inconsistent"
	ReasonPolicyABI            Reason = "guest-policy-abi"
	ReasonPolicyGolden         Reason = "guest-policy-differs"
	ReasonSMT                  Reason = "smt-inconsistent"
	ReasonPlatformBits         Reason = "platform-info-bits"
	ReasonPlatformUnknown      Reason = "platform-info-unknown"
	ReasonAliasCheck           Reason = "alias-check-incomplete"
	ReasonHostData             Reason = "host-data-differs"
	ReasonFamilyID             Reason = "family-id-differs"
	ReasonImageID              Reason = "image-id-differs"
	ReasonGuestSVN             Reason = "guest-svn-differs"
	ReasonIDKey                Reason = "id-key-differs"
	ReasonAuthorKey            Reason = "author-key-differs"
	ReasonAuthorKeyFields      Reason = "author-key-inconsistent"
	ReasonChipNotAllowed       Reason = "chip-not-allowed"
	ReasonChipRelayed          Reason = "chip-not-launch-host"
	ReasonChipUnprovable       Reason = "chip-not-provable"

	ReasonMeasurement    Reason = "measurement-differs"
	ReasonVMPL           Reason = "vmpl-not-accepted"
	ReasonVMPLNotZero    Reason = "vmpl-not-zero"
	ReasonVMPLHost       Reason = "vmpl-host-requested"
	ReasonVMPLMalformed  Reason = "vmpl-malformed"
	ReasonReportData     Reason = "report-data-differs"
	ReasonNonceForm      Reason = "nonce-malformed"
	ReasonNonceForeign   Reason = "nonce-not-ours"
	ReasonNonceUsed      Reason = "nonce-used"
	ReasonBinding        Reason = "binding-not-accepted"
	ReasonBindingForeign Reason = "binding-not-asked-for"
	ReasonManifest       Reason = "manifest-malformed"
	ReasonManifestNoVTPM Reason = "manifest-without-vtpm"
	ReasonManifestVer    Reason = "manifest-version"
	ReasonManifestNone   Reason = "manifest-missing"
	ReasonManifestExtra  Reason = "manifest-unexpected"
	ReasonEKMalformed    Reason = "ek-malformed"
	ReasonEKTemplate     Reason = "ek-template"
	ReasonEKMismatch     Reason = "ek-mismatch"
	ReasonAKMalformed    Reason = "ak-malformed"
	ReasonAKAttributes   Reason = "ak-attributes"
	ReasonAKAlgorithm    Reason = "ak-algorithm"
	ReasonAKNotResident  Reason = "ak-not-resident"
	ReasonEvidenceMixed  Reason = "evidence-not-from-session"
	ReasonQuoteMalformed Reason = "quote-malformed"
	ReasonQuoteMagic     Reason = "quote-magic"
	ReasonQuoteType      Reason = "quote-type"
	ReasonQuoteAlgorithm Reason = "quote-algorithm"
	ReasonQuoteSignature Reason = "quote-signature-invalid"
	ReasonQuoteNonce     Reason = "quote-nonce-differs"
	ReasonClockBackwards Reason = "clock-backwards"
	ReasonTPMReset       Reason = "tpm-reset"
	ReasonPCRBank        Reason = "pcr-bank"
	ReasonPCRSelection   Reason = "pcr-selection-differs"
	ReasonPCRForm        Reason = "pcr-malformed"
	ReasonPCRDigest      Reason = "pcr-digest-differs"
	ReasonPCRGolden      Reason = "pcr-differs"
	ReasonPCRMissing     Reason = "pcr-not-quoted"
	ReasonLogMissing     Reason = "event-log-missing"
	ReasonLogMalformed   Reason = "event-log-malformed"
	ReasonLogBank        Reason = "event-log-without-bank"
	ReasonLogReplay      Reason = "event-log-replay-differs"
	ReasonLogData        Reason = "event-log-data-differs"
	ReasonLogSeparator   Reason = "event-log-separator"
	ReasonEKReused       Reason = "ek-reused"
	ReasonReportID       Reason = "report-id-changed"
	ReasonRegistry       Reason = "registry-unavailable"
)

// Checks lists every check with its reasons, in the order of a verdict.
func Checks() []CheckInfo {
	out := make([]CheckInfo, len(checkTable))
	copy(out, checkTable)
	return out
}

// checkTable is the one place that says what a check is.
var checkTable = []CheckInfo{
	{CheckReportLength, ClassSignature, false, "the report is 1184 bytes", []ReasonInfo{
		{ReasonReportLength, "another length"},
	}},
	{CheckReportVersion, ClassSignature, false, "the report's version is 2 to 5", []ReasonInfo{
		{ReasonReportVersion, "a version whose layout is not known; 0, 1 and 6 or more"},
	}},
	{CheckReportReserved, ClassSignature, false, "reserved bytes are zero for the report's version, those of the signature included", []ReasonInfo{
		{ReasonReservedNotZero, "a reserved byte is set"},
	}},
	{CheckReportAlgorithm, ClassSignature, false, "SIGNATURE_ALGO is ECDSA P-384 with SHA-384", []ReasonInfo{
		{ReasonSignatureAlgorithm, "another algorithm"},
	}},
	{CheckReportSigner, ClassSignature, false, "SIGNER_INFO is well formed and names a key", []ReasonInfo{
		{ReasonSignerInfo, "a reserved signing key or reserved bits"},
		{ReasonNotSigned, "the firmware was told not to sign (MASK_CHIP_KEY), or no key is named"},
	}},
	{CheckReportSignature, ClassSignature, false, "the leaf certificate's key signed bytes 0 to 0x29F", []ReasonInfo{
		{ReasonSignatureRange, "R or S is zero or not below the curve's order"},
		{ReasonSignatureInvalid, "the signature does not verify"},
	}},
	{CheckCertificates, ClassCertificates, false, "leaf, intermediate and root certificates could be had", []ReasonInfo{
		{ReasonCertificatesUnavailable, "a certificate is missing, or the key distribution service did not answer"},
		{ReasonCertificateTable, "the certificate table or a certificate in it is malformed"},
	}},
	{CheckChain, ClassSignature, false, "leaf, intermediate and root sign each other, each in its role, and the root is pinned", []ReasonInfo{
		{ReasonARKUntrusted, "the root is none of the pinned ones, byte for byte"},
		{ReasonChainBroken, "a certificate is not signed by the next, or not fit to sign"},
		{ReasonChainRole, "a VLEK under an ASK, a VCEK under an ASVK, or another name than the role has"},
	}},
	{CheckPlatform, ClassSignature, false, "the root's kind is the platform that the golden values are for", []ReasonInfo{
		{ReasonPlatformMismatch, "a simulated root for golden values of real hardware, or the reverse"},
	}},
	{CheckCertificateTime, ClassSignature, false, "every certificate is valid at the time of verification", []ReasonInfo{
		{ReasonCertificateExpired, "past its end"},
		{ReasonCertificateNotYetValid, "before its start"},
		{ReasonClockImplausible, "the verifier's clock is off by decades"},
	}},
	{CheckLeaf, ClassSignature, false, "the leaf certificate has AMD's extensions, each once and well formed", []ReasonInfo{
		{ReasonLeafMalformed, "an extension is missing, repeated, or not of its type"},
	}},
	{CheckSignerKind, ClassSignature, false, "SIGNER_INFO names the kind of key that the leaf certificate is for", []ReasonInfo{
		{ReasonSignerKind, "VCEK by the report, VLEK by the certificate, or the reverse"},
	}},
	{CheckProduct, ClassSignature, false, "report, leaf and chain are of one product", []ReasonInfo{
		{ReasonProductUnknown, "the CPUID is none of a known product"},
		{ReasonProductMismatch, "report, leaf certificate and chain differ"},
		{ReasonProductAmbiguous, "a version-2 report does not say how to read its TCB versions, and the policy does not pin the product"},
	}},
	{CheckChipBinding, ClassSignature, false, "CHIP_ID is the chip that the VCEK certificate is for", []ReasonInfo{
		{ReasonChipIDMismatch, "another chip"},
		{ReasonChipIDMasked, "CHIP_ID is zero, so that the certificate cannot be compared"},
	}},
	{CheckTCBBinding, ClassSignature, false, "REPORTED_TCB is the TCB that the leaf certificate is for", []ReasonInfo{
		{ReasonTCBBinding, "a component differs"},
	}},
	{CheckCRL, ClassCRL, false, "a current CRL, signed by the root, could be had", []ReasonInfo{
		{ReasonCRLUnavailable, "there is none, and the policy asks for one"},
		{ReasonCRLMalformed, "not a complete CRL as RFC 5280 wants it"},
		{ReasonCRLSignature, "not signed by the root"},
		{ReasonCRLExpired, "past nextUpdate"},
		{ReasonCRLNotYetValid, "before thisUpdate"},
		{ReasonCRLTooOld, "older than the policy allows"},
	}},
	{CheckRevocation, ClassSignature, false, "no certificate of the chain is on the CRL", []ReasonInfo{
		{ReasonRevoked, "a serial number of the chain is listed"},
	}},
	{CheckPolicyVersion, ClassPolicy, false, "the report's version is at least the policy's", []ReasonInfo{
		{ReasonVersionBelowPolicy, "below"},
	}},
	{CheckPolicyProduct, ClassPolicy, false, "the product is one that the policy accepts", []ReasonInfo{
		{ReasonProductNotAllowed, "it is not"},
	}},
	{CheckPolicySigner, ClassPolicy, false, "the kind of signing key is one that the policy accepts", []ReasonInfo{
		{ReasonSignerNotAllowed, "it is not"},
	}},
	{CheckPolicyCSP, ClassPolicy, false, "a VLEK's provider is one that the policy accepts", []ReasonInfo{
		{ReasonCSPNotAllowed, "another provider's VLEK"},
	}},
	{CheckTCBForm, ClassPolicy, false, "reserved bytes of the four TCB versions are zero", []ReasonInfo{
		{ReasonTCBReserved, "a reserved byte is set"},
	}},
	{CheckTCBOrder, ClassPolicy, false, "reported and committed TCB are at most the current one, and so is the launch TCB where all firmware must be committed", []ReasonInfo{
		{ReasonTCBOrder, "an order that firmware cannot produce"},
	}},
	{CheckFloorReported, ClassPolicy, false, "REPORTED_TCB meets the floors of this processor", floorReasons},
	{CheckFloorCommitted, ClassPolicy, false, "COMMITTED_TCB meets the floors: the host cannot roll back below them", floorReasons},
	{CheckFloorCurrent, ClassPolicy, false, "CURRENT_TCB meets the floors", floorReasons},
	{CheckFloorLaunch, ClassPolicy, false, "LAUNCH_TCB meets the floors: the guest was started on such firmware", floorReasons},
	{CheckProvisional, ClassPolicy, false, "committed firmware is the current one, so that it cannot be rolled back", []ReasonInfo{
		{ReasonProvisional, "current firmware is not committed"},
	}},
	{CheckFirmware, ClassPolicy, false, "current and committed firmware are at least the policy's version", []ReasonInfo{
		{ReasonFirmwareBelow, "below"},
	}},
	{CheckMitigations, ClassPolicy, false, "the mitigation vectors have the bits that the policy asks for", []ReasonInfo{
		{ReasonMitigationMissing, "a bit is missing at launch or now"},
		{ReasonMitigationUnprovable, "the report's version has no mitigation vectors"},
	}},
	{CheckGuestPolicyForm, ClassPolicy, false, "reserved bits of the guest policy are as the ABI has them", []ReasonInfo{
		{ReasonPolicyReserved, "bit 17 is clear, or a bit above 25 is set"},
	}},
	{CheckGuestPolicy, ClassPolicy, false, "the guest policy's bits are as the policy asks", []ReasonInfo{
		{ReasonPolicyBits, "a required bit is clear, or a forbidden one set"},
	}},
	{CheckGuestDebug, ClassPolicy, false, "the host cannot debug the guest", []ReasonInfo{
		{ReasonDebugAllowed, "it can read and write the guest's memory"},
	}},
	{CheckGuestMigration, ClassPolicy, false, "no migration agent can move the guest, and the report's fields agree", []ReasonInfo{
		{ReasonMigrationAllowed, "a migration agent may be associated"},
		{ReasonMigrationFields, "a migration agent's report id without the policy bit"},
	}},
	{CheckGuestABI, ClassPolicy, false, "the guest policy asks for at least the policy's ABI", []ReasonInfo{
		{ReasonPolicyABI, "below"},
	}},
	{CheckGuestGolden, ClassPolicy, false, "the guest policy is the golden one", []ReasonInfo{
		{ReasonPolicyGolden, "it differs"},
	}},
	{CheckSMT, ClassPolicy, false, "a guest that forbids SMT does not run on a host that has it", []ReasonInfo{
		{ReasonSMT, "SMT is on although the guest policy forbids it"},
	}},
	{CheckPlatformInfo, ClassPolicy, false, "PLATFORM_INFO's bits are known and as the policy asks", []ReasonInfo{
		{ReasonPlatformBits, "a required bit is clear, or a forbidden one set"},
		{ReasonPlatformUnknown, "a bit that the report's version does not define"},
	}},
	{CheckAliasCheck, ClassPolicy, false, "the firmware looked for aliased memory (BadRAM)", []ReasonInfo{
		{ReasonAliasCheck, "it did not, and the policy asks for it"},
	}},
	{CheckHostData, ClassPolicy, false, "HOST_DATA is the expected one", []ReasonInfo{{ReasonHostData, "it differs"}}},
	{CheckFamilyID, ClassPolicy, false, "FAMILY_ID is the expected one", []ReasonInfo{{ReasonFamilyID, "it differs"}}},
	{CheckImageID, ClassPolicy, false, "IMAGE_ID is the expected one", []ReasonInfo{{ReasonImageID, "it differs"}}},
	{CheckGuestSVN, ClassPolicy, false, "GUEST_SVN is the expected one, or at least the policy's", []ReasonInfo{{ReasonGuestSVN, "it differs or is below"}}},
	{CheckIDKey, ClassPolicy, false, "ID_KEY_DIGEST is an expected one", []ReasonInfo{{ReasonIDKey, "it differs"}}},
	{CheckAuthorKey, ClassPolicy, false, "AUTHOR_KEY_DIGEST is an expected one and agrees with AUTHOR_KEY_EN", []ReasonInfo{
		{ReasonAuthorKey, "it differs"},
		{ReasonAuthorKeyFields, "a digest without AUTHOR_KEY_EN, or the reverse"},
	}},
	{CheckChip, ClassPolicy, false, "CHIP_ID is the launch host's, or one that the policy lists", []ReasonInfo{
		{ReasonChipRelayed, "another machine's report"},
		{ReasonChipNotAllowed, "not on the policy's list"},
		{ReasonChipUnprovable, "CHIP_ID is masked or the report is VLEK-signed: it names no chip"},
	}},
	{CheckMeasurement, ClassMeasurement, false, "MEASUREMENT is a golden launch digest", []ReasonInfo{
		{ReasonMeasurement, "it is none of them"},
	}},
	{CheckVMPL, ClassVTPM, false, "the report was asked for from VMPL 0, where the SVSM runs", []ReasonInfo{
		{ReasonVMPLNotZero, "from VMPL 1 to 3: the guest made it, not the SVSM"},
		{ReasonVMPL, "from a VMPL that the policy does not accept"},
		{ReasonVMPLHost, "the host asked for it, not the guest"},
		{ReasonVMPLMalformed, "no VMPL"},
	}},
	{CheckReportData, ClassVTPM, false, "REPORT_DATA is what the binding says it must be", []ReasonInfo{
		{ReasonReportData, "it differs: another EK, another nonce, or another manifest"},
	}},
	{CheckNonce, ClassVTPM, true, "the nonce is 64 bytes, ours, and used for the first time", []ReasonInfo{
		{ReasonNonceForm, "another length, or zeros"},
		{ReasonNonceForeign, "not the nonce of this challenge"},
		{ReasonNonceUsed, "this challenge was judged before"},
	}},
	{CheckBinding, ClassVTPM, true, "the evidence binds the vTPM in a way that was asked for and that the policy accepts", []ReasonInfo{
		{ReasonBinding, "the policy does not accept it, or it is unknown"},
		{ReasonBindingForeign, "the challenge asked for another"},
	}},
	{CheckManifest, ClassVTPM, true, "the SVSM's manifest is whole and well formed", []ReasonInfo{
		{ReasonManifestNone, "there is none"},
		{ReasonManifestExtra, "there is one where the binding has none"},
		{ReasonManifest, "truncated, overlapping, repeated or trailing parts"},
		{ReasonManifestNoVTPM, "no vTPM service in it"},
		{ReasonManifestVer, "a version that is unknown, not accepted, or not the blob's"},
	}},
	{CheckEK, ClassVTPM, true, "the EK has the TCG template of an RSA-2048 EK (L-1)", []ReasonInfo{
		{ReasonEKMalformed, "not exactly one TPM2B_PUBLIC"},
		{ReasonEKTemplate, "other attributes, policy or parameters"},
	}},
	{CheckEKBound, ClassVTPM, true, "the EK is the one in the manifest", []ReasonInfo{
		{ReasonEKMismatch, "another key"},
	}},
	{CheckAK, ClassVTPM, true, "the AK is a restricted signing key that never left its TPM", []ReasonInfo{
		{ReasonAKMalformed, "not exactly one TPM2B_PUBLIC"},
		{ReasonAKAttributes, "an attribute is missing, or one too many"},
		{ReasonAKAlgorithm, "a key or scheme that is not accepted"},
	}},
	{CheckAKResident, ClassVTPM, true, "AK and EK are in one TPM: it opened a credential made for both", []ReasonInfo{
		{ReasonAKNotResident, "it did not"},
		{ReasonEvidenceMixed, "the evidence is not that of the live challenge"},
	}},
	{CheckQuoteForm, ClassVTPM, true, "the quote is a TPMS_ATTEST made by a TPM, of type quote", []ReasonInfo{
		{ReasonQuoteMalformed, "truncated or trailing bytes"},
		{ReasonQuoteMagic, "not TPM_GENERATED_VALUE"},
		{ReasonQuoteType, "another attestation"},
	}},
	{CheckQuoteSignature, ClassVTPM, true, "the AK signed the quote", []ReasonInfo{
		{ReasonQuoteAlgorithm, "another scheme than the AK's, or a weak hash"},
		{ReasonQuoteSignature, "the signature does not verify"},
	}},
	{CheckQuoteNonce, ClassVTPM, true, "the quote's extraData is SHA-256 of the nonce", []ReasonInfo{
		{ReasonQuoteNonce, "it differs: an old quote, or another challenge's"},
	}},
	{CheckQuoteClock, ClassVTPM, true, "the TPM was not reset since it was last seen, and its clock and counters did not run backwards", []ReasonInfo{
		{ReasonClockBackwards, "they did"},
		{ReasonTPMReset, "it was: its PCRs started anew while the launch went on"},
	}},
	{CheckPCRSelection, ClassVTPM, true, "the quote covers exactly the PCRs and the bank that were asked for", []ReasonInfo{
		{ReasonPCRBank, "another bank"},
		{ReasonPCRSelection, "other PCRs"},
		{ReasonPCRForm, "a value of the wrong length, or out of order"},
	}},
	{CheckPCRDigest, ClassVTPM, true, "the quote's digest is that of the PCR values", []ReasonInfo{
		{ReasonPCRDigest, "it differs"},
	}},
	{CheckPCRGolden, ClassMeasurement, true, "PCRs with golden values have one of them", []ReasonInfo{
		{ReasonPCRGolden, "a PCR differs"},
		{ReasonPCRMissing, "a PCR with golden values was not quoted, or another bank was"},
	}},
	{CheckPCRUnjudged, ClassMeasurement, true, "lists the PCRs that have no golden value: shown, not judged", nil},
	{CheckEventLogForm, ClassMeasurement, true, "the event log is a whole TCG crypto-agile log with the quoted bank", []ReasonInfo{
		{ReasonLogMissing, "there is none, and the policy asks for one"},
		{ReasonLogMalformed, "truncated, or counts and sizes that do not fit"},
		{ReasonLogBank, "the quoted bank is not in it"},
	}},
	{CheckEventLogReplay, ClassMeasurement, true, "replaying the event log gives the quoted PCRs 0 to 9", []ReasonInfo{
		{ReasonLogReplay, "a PCR differs"},
		{ReasonLogSeparator, "a PCR has two separators, or an error separator"},
	}},
	{CheckEventLogData, ClassMeasurement, true, "the data of events that are interpreted has the digest that was extended", []ReasonInfo{
		{ReasonLogData, "it does not"},
	}},
	{CheckLifecycle, ClassVTPM, true, "the EK was never seen with another launch, nor the boot with another report id", []ReasonInfo{
		{ReasonEKReused, "the EK was seen in another launch: the vTPM is not ephemeral, or its state was copied"},
		{ReasonReportID, "the report id changed within one boot of the guest"},
		{ReasonRegistry, "the registry could not be read or written"},
	}},
}

var floorReasons = []ReasonInfo{
	{ReasonTCBBelowFloor, "a component is below"},
	{ReasonNoFloor, "the table has no floors for this processor"},
}

// checkIndex finds a check's place in the table.
var checkIndex = func() map[CheckName]int {
	m := make(map[CheckName]int, len(checkTable))
	for i, c := range checkTable {
		m[c.Name] = i
	}
	return m
}()

// classOf is the class of a check.
func classOf(name CheckName) Class { return checkTable[checkIndex[name]].Class }

// pass, fail and skip make the three kinds of check.
func pass(name CheckName, found string) Check {
	return Check{Name: string(name), Status: Passed, Class: classOf(name), Found: found}
}

func fail(name CheckName, reason Reason, expected, found string) Check {
	return Check{Name: string(name), Status: Failed, Reason: string(reason), Class: classOf(name), Expected: expected, Found: found}
}

func skip(name CheckName, note string) Check {
	return Check{Name: string(name), Status: NotApplicable, Class: classOf(name), Note: note}
}

func (c Check) with(note string) Check {
	c.Note = note
	return c
}
