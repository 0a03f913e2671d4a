package attest

import (
	"fmt"

	"github.com/evtpm/evtpm/measure"
)

// Claims are the fields of a report under the names that Trustee's SNP verifier
// gives them (init_data is HOST_DATA), and further fields in the same manner.
// They say what the report says; whether that is to be believed, a verdict says.
type Claims struct {
	ReportVersion uint32 `json:"report_version"`
	// Product by CPUID; empty before version 3.
	Product string `json:"product,omitempty"`
	CPUID   string `json:"cpuid,omitempty"`
	VMPL    uint32 `json:"vmpl"`
	Signer  string `json:"signing_key"`

	Measurement measure.HexBytes `json:"measurement"`
	ReportData  measure.HexBytes `json:"report_data"`
	InitData    measure.HexBytes `json:"init_data"`

	PolicyABIMajor        uint8  `json:"policy_abi_major"`
	PolicyABIMinor        uint8  `json:"policy_abi_minor"`
	PolicySMTAllowed      bool   `json:"policy_smt_allowed"`
	PolicyMigrateMA       bool   `json:"policy_migrate_ma"`
	PolicyDebugAllowed    bool   `json:"policy_debug_allowed"`
	PolicySingleSocket    bool   `json:"policy_single_socket"`
	PolicyCXLAllowed      bool   `json:"policy_cxl_allowed"`
	PolicyMemAES256XTS    bool   `json:"policy_mem_aes_256_xts"`
	PolicyRAPLDisabled    bool   `json:"policy_rapl_disabled"`
	PolicyCiphertext      bool   `json:"policy_ciphertext_hiding"`
	PolicyPageSwapDisable bool   `json:"policy_page_swap_disabled"`
	Policy                string `json:"policy"`

	PlatformSMTEnabled    bool   `json:"platform_smt_enabled"`
	PlatformTSMEEnabled   bool   `json:"platform_tsme_enabled"`
	PlatformECCEnabled    bool   `json:"platform_ecc_enabled"`
	PlatformRAPLDisabled  bool   `json:"platform_rapl_disabled"`
	PlatformCiphertext    bool   `json:"platform_ciphertext_hiding"`
	PlatformAliasCheck    bool   `json:"platform_alias_check_complete"`
	PlatformIOMMUWriteOK  bool   `json:"platform_iommu_write_safe"`
	PlatformTIOEnabled    bool   `json:"platform_tio_enabled"`
	PlatformInfo          string `json:"platform_info"`
	ReportedTCBBootloader uint8  `json:"reported_tcb_bootloader"`
	ReportedTCBTEE        uint8  `json:"reported_tcb_tee"`
	ReportedTCBSNP        uint8  `json:"reported_tcb_snp"`
	ReportedTCBMicrocode  uint8  `json:"reported_tcb_microcode"`
	ReportedTCBFMC        *uint8 `json:"reported_tcb_fmc,omitempty"`

	CurrentTCB       TCB    `json:"current_tcb"`
	CommittedTCB     TCB    `json:"committed_tcb"`
	LaunchTCB        TCB    `json:"launch_tcb"`
	CurrentVersion   string `json:"current_version"`
	CommittedVersion string `json:"committed_version"`

	LaunchMitigations  *uint64 `json:"launch_mit_vector,omitempty"`
	CurrentMitigations *uint64 `json:"current_mit_vector,omitempty"`

	GuestSVN        uint32           `json:"guest_svn"`
	FamilyID        measure.HexBytes `json:"family_id"`
	ImageID         measure.HexBytes `json:"image_id"`
	IDKeyDigest     measure.HexBytes `json:"id_key_digest"`
	AuthorKeyDigest measure.HexBytes `json:"author_key_digest"`
	AuthorKeyEnable bool             `json:"author_key_en"`
	ReportID        measure.HexBytes `json:"report_id"`
	ReportIDMA      measure.HexBytes `json:"report_id_ma"`
	ChipID          measure.HexBytes `json:"chip_id"`
}

// Claims lists a report's fields. TCB versions are taken apart by the layout of
// the product that the CPUID names; before version 3 by Milan's and Genoa's.
func (r *Report) Claims() Claims {
	var product Product
	c := Claims{}
	if r.CPUID != nil {
		product, _ = r.CPUID.Product()
		c.CPUID = r.CPUID.String()
	}
	c.Product = product.Name
	// Reserved bits do not keep a report from being shown.
	t, _ := r.split(product.TCB)
	c.ReportVersion, c.VMPL, c.Signer = r.Version, r.VMPL, signingKeyName(r.SignerInfo.SigningKey())
	c.Measurement, c.ReportData, c.InitData = r.Measurement[:], r.ReportData[:], r.HostData[:]

	p := r.Policy
	c.PolicyABIMajor, c.PolicyABIMinor = p.ABI()
	c.PolicySMTAllowed, c.PolicyMigrateMA, c.PolicyDebugAllowed = p.Bit(PolicySMT), p.Bit(PolicyMigrateMA), p.Bit(PolicyDebug)
	c.PolicySingleSocket, c.PolicyCXLAllowed, c.PolicyMemAES256XTS = p.Bit(PolicySingleSocket), p.Bit(PolicyCXLAllow), p.Bit(PolicyMemAES256XTS)
	c.PolicyRAPLDisabled, c.PolicyCiphertext, c.PolicyPageSwapDisable = p.Bit(PolicyRAPLDisable), p.Bit(PolicyCiphertextHiding), p.Bit(PolicyPageSwapDisable)
	c.Policy = fmt.Sprintf("%#x", uint64(p))

	i := r.PlatformInfo
	c.PlatformSMTEnabled, c.PlatformTSMEEnabled, c.PlatformECCEnabled = i.Bit(PlatformSMT), i.Bit(PlatformTSME), i.Bit(PlatformECC)
	c.PlatformRAPLDisabled, c.PlatformCiphertext = i.Bit(PlatformRAPLDisabled), i.Bit(PlatformCiphertextHiding)
	c.PlatformAliasCheck, c.PlatformIOMMUWriteOK, c.PlatformTIOEnabled = i.Bit(PlatformAliasCheck), i.Bit(PlatformIOMMUWriteSafe), i.Bit(PlatformTIO)
	c.PlatformInfo = fmt.Sprintf("%#x", uint64(i))

	c.ReportedTCBBootloader, c.ReportedTCBTEE, c.ReportedTCBSNP = t.Reported.Bootloader, t.Reported.TEE, t.Reported.SNP
	c.ReportedTCBMicrocode, c.ReportedTCBFMC = t.Reported.Microcode, t.Reported.FMC
	c.CurrentTCB, c.CommittedTCB, c.LaunchTCB = t.Current, t.Committed, t.Launch
	c.CurrentVersion, c.CommittedVersion = r.CurrentVersion.String(), r.CommittedVersion.String()
	if r.Version >= mitigationVersion {
		launch, current := r.LaunchMitigations, r.CurrentMitigations
		c.LaunchMitigations, c.CurrentMitigations = &launch, &current
	}

	c.GuestSVN, c.FamilyID, c.ImageID = r.GuestSVN, r.FamilyID[:], r.ImageID[:]
	c.IDKeyDigest, c.AuthorKeyDigest, c.AuthorKeyEnable = r.IDKeyDigest[:], r.AuthorKeyDigest[:], r.SignerInfo.AuthorKeyEnabled()
	c.ReportID, c.ReportIDMA, c.ChipID = r.ReportID[:], r.ReportIDMA[:], r.ChipID[:]
	return c
}
