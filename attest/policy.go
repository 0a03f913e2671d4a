package attest

import (
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/measure"
)

// PolicyVersion is the version of the policy file format.
const PolicyVersion = 1

// A Policy says what a report, its platform and its vTPM must show beyond being
// genuine. Form, signatures and chain are always checked; a policy cannot turn
// them off. It is read from YAML by [ParsePolicy].
type Policy struct {
	Version int    `yaml:"version"`
	Name    string `yaml:"name,omitempty"`

	Report ReportPolicy `yaml:"report"`

	// Products lists the accepted products by name; empty accepts all.
	Products NameList `yaml:"products"`
	// Signers lists the accepted kinds of signing key, "vcek" and "vlek".
	Signers []string `yaml:"signers"`
	// VMPL lists the accepted VMPLs of a bare report. A report that binds a
	// vTPM must come from VMPL 0 whatever stands here.
	VMPL []uint32 `yaml:"vmpl"`

	GuestPolicy GuestPolicyRules `yaml:"guest_policy,omitempty"`
	Platform    PlatformRules    `yaml:"platform,omitempty"`
	TCB         TCBRules         `yaml:"tcb"`
	Mitigations MitigationRules  `yaml:"mitigations,omitempty"`

	// ChipIDs lists the accepted chips; nil accepts all.
	ChipIDs []measure.HexBytes `yaml:"chip_ids,omitempty"`
	// CSPIDs lists the accepted providers of VLEKs, as the certificates name them
	// (cspID); nil accepts all. A VCEK is no provider's.
	CSPIDs []string `yaml:"csp_ids,omitempty"`
	// AllowMaskedChipID accepts a VCEK-signed report whose CHIP_ID is zero
	// (MASK_CHIP_ID), which cannot be tied to its certificate by chip.
	AllowMaskedChipID bool `yaml:"allow_masked_chip_id,omitempty"`

	// HostData is "zero", "any" or 32 bytes in hexadecimal. Golden values, when
	// there are any, decide instead.
	HostData string `yaml:"host_data"`

	IDBlock IDBlockRules `yaml:"id_block,omitempty"`

	// Revocation says when a CRL must be had: "required", "when-online" (a
	// verifier with a getter must get one), or "if-given". A CRL that was given
	// is judged in full under each.
	Revocation string `yaml:"revocation"`
	// CRLMaxAgeDays bounds the time since a CRL's thisUpdate; zero means no
	// bound but nextUpdate.
	CRLMaxAgeDays int `yaml:"crl_max_age_days,omitempty"`

	VTPM VTPMRules `yaml:"vtpm"`

	// permissive marks the built-in policy that may judge nothing beyond
	// authenticity. A file cannot set it.
	permissive bool
}

// ReportPolicy rules a report's form.
type ReportPolicy struct {
	// MinVersion is the lowest accepted report version, 2 to 5.
	MinVersion uint32 `yaml:"min_version"`
}

// GuestPolicyRules rule the guest policy.
type GuestPolicyRules struct {
	// Bits maps names (smt, migrate_ma, debug, single_socket, cxl,
	// mem_aes_256_xts, rapl_disable, ciphertext_hiding, page_swap_disable) to
	// required, forbidden or any. A name that is absent means any.
	Bits map[string]Want `yaml:"bits,omitempty"`
	// MinABI is the lowest accepted ABI_MAJOR.ABI_MINOR; empty accepts all.
	MinABI string `yaml:"min_abi,omitempty"`
}

// PlatformRules rule PLATFORM_INFO and the firmware.
type PlatformRules struct {
	// Bits maps names (smt, tsme, ecc, rapl_disabled, ciphertext_hiding,
	// alias_check_complete, iommu_write_safe, tio) to wants.
	Bits map[string]Want `yaml:"bits,omitempty"`
	// AllowUnknownBits accepts bits that the report's version does not define.
	AllowUnknownBits bool `yaml:"allow_unknown_bits,omitempty"`
	// MinFirmware is the lowest accepted major.minor.build of the current and
	// the committed firmware; empty accepts all.
	MinFirmware string `yaml:"min_firmware,omitempty"`
}

// TCBRules rule the four TCB versions.
type TCBRules struct {
	// Floors are the lowest accepted levels.
	Floors FloorSource `yaml:"floors"`
	// AllowProvisional accepts committed firmware older than the current one,
	// to which the host can roll back.
	AllowProvisional bool `yaml:"allow_provisional,omitempty"`
	// MaxAgeDays makes a verdict warn when the table of floors is older. Zero
	// means never.
	MaxAgeDays int `yaml:"max_age_days,omitempty"`
}

// MitigationRules name the bits that the mitigation vectors of a version-5
// report must have. Zero means none.
type MitigationRules struct {
	Launch  uint64 `yaml:"launch,omitempty"`
	Current uint64 `yaml:"current,omitempty"`
}

// IDBlockRules rule the ID block's fields. Golden values, when there are any,
// decide instead.
type IDBlockRules struct {
	// IDKeys and AuthorKeys list accepted key digests (48 bytes); nil accepts all.
	IDKeys     []measure.HexBytes `yaml:"id_keys,omitempty"`
	AuthorKeys []measure.HexBytes `yaml:"author_keys,omitempty"`
	// FamilyID and ImageID are 16 bytes; empty accepts all.
	FamilyID    measure.HexBytes `yaml:"family_id,omitempty"`
	ImageID     measure.HexBytes `yaml:"image_id,omitempty"`
	MinGuestSVN uint32           `yaml:"min_guest_svn,omitempty"`
}

// VTPMRules rule the vTPM's part of evidence.
type VTPMRules struct {
	// Bindings lists the accepted bindings of evidence.
	Bindings []string `yaml:"bindings"`
	// EventLog is "required" or "if-present".
	EventLog string `yaml:"event_log"`
	// ManifestVersions lists the accepted versions of the vTPM's manifest;
	// empty means 0 alone, the only one that the SVSM specification defines.
	ManifestVersions []uint32 `yaml:"manifest_versions,omitempty"`
}

// Values of Policy.Revocation, VTPMRules.EventLog and Policy.HostData.
const (
	RevocationRequired   = "required"
	RevocationWhenOnline = "when-online"
	RevocationIfGiven    = "if-given"

	EventLogRequired  = "required"
	EventLogIfPresent = "if-present"

	HostDataZero = "zero"
	HostDataAny  = "any"
)

// A NameList is a list of names, or "any" in YAML, which is the empty list.
type NameList []string

// A FloorSource is where floors come from: "default" is this package's table,
// "none" judges no levels, otherwise the rows stand in the policy itself.
type FloorSource struct {
	Name  string
	Table *FloorTable
}

// A FloorTable lists the lowest accepted TCB levels of processors.
type FloorTable struct {
	Version int    `yaml:"version"`
	Date    string `yaml:"date"` // 2006-01-02
	// Note says where the values are from.
	Note   string  `yaml:"note,omitempty"`
	Floors []Floor `yaml:"floors"`
}

// A Floor is one row: a processor, and the lowest levels that it must show.
type Floor struct {
	// CPUID is family/model/stepping in hexadecimal.
	CPUID    string          `yaml:"cpuid"`
	Name     string          `yaml:"name"`
	TCB      TCB             `yaml:"tcb"`
	Platform map[string]Want `yaml:"platform,omitempty"`
	Sources  []string        `yaml:"sources,omitempty"`
	// Warning is added to every verdict about such a processor.
	Warning string `yaml:"warning,omitempty"`
}

// Find returns the row of a processor, nil when there is none.
func (t *FloorTable) Find(c CPUID) *Floor {
	for i := range t.Floors {
		if strings.EqualFold(t.Floors[i].CPUID, c.String()) {
			return &t.Floors[i]
		}
	}
	return nil
}

// age returns the time since the table's date.
func (t *FloorTable) age(now time.Time) (time.Duration, error) {
	d, err := time.Parse(time.DateOnly, t.Date)
	if err != nil {
		return 0, fmt.Errorf("date of the floors: %w", err)
	}
	return now.Sub(d), nil
}

//go:embed policies/default.yaml
var defaultPolicyYAML []byte

//go:embed policies/permissive.yaml
var permissivePolicyYAML []byte

//go:embed policies/floors.yaml
var floorsYAML []byte

// DefaultPolicy is the strict policy that holds when none is given.
func DefaultPolicy() *Policy { return mustPolicy(defaultPolicyYAML, "default") }

// sharedDefault is the default policy, read once; nobody changes it.
var sharedDefault = sync.OnceValue(DefaultPolicy)

// DefaultPolicyYAML is the text of the default policy, with its comments.
func DefaultPolicyYAML() []byte { return slices.Clone(defaultPolicyYAML) }

// PermissivePolicy judges form, signature and chain alone.
func PermissivePolicy() *Policy { return mustPolicy(permissivePolicyYAML, "permissive") }

// PermissivePolicyYAML is the text of the permissive policy.
func PermissivePolicyYAML() []byte { return slices.Clone(permissivePolicyYAML) }

// DefaultFloors is the table of floors that the default policy uses.
func DefaultFloors() *FloorTable {
	t := new(FloorTable)
	if err := decodeYAML(floorsYAML, "floors", t); err != nil {
		panic(err)
	}
	return t
}

// mustPolicy reads a policy that is part of this package: an error is a defect
// of the build, which the tests would have shown.
func mustPolicy(text []byte, name string) *Policy {
	p, err := parsePolicy(text, name, true)
	if err != nil {
		panic(err)
	}
	return p
}

// ParsePolicy reads a policy file. The name is for error messages. Unknown
// fields, duplicate keys, aliases, a second document, and a policy that checks
// nothing are errors.
func ParsePolicy(text []byte, name string) (*Policy, error) {
	return parsePolicy(text, name, false)
}

func parsePolicy(text []byte, name string, builtin bool) (*Policy, error) {
	p := new(Policy)
	if err := decodeYAML(text, name, p); err != nil {
		return nil, err
	}
	p.permissive = builtin
	if p.TCB.Floors.Name == "default" {
		p.TCB.Floors.Table = DefaultFloors()
	}
	if err := p.Validate(); err != nil {
		return nil, inFile(name, err)
	}
	return p, nil
}

// Validate reports every field whose value has no meaning, and a policy that
// checks nothing.
func (p *Policy) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if p.Version != PolicyVersion {
		bad("version is %d, expected %d", p.Version, PolicyVersion)
	}
	if v := p.Report.MinVersion; v < minReportVersion || v > maxReportVersion {
		bad("report.min_version is %d, expected %d to %d", v, minReportVersion, maxReportVersion)
	}
	var known []string
	for _, r := range products {
		known = append(known, r.product.Name)
	}
	for _, n := range p.Products {
		if !slices.Contains(known, n) {
			bad("products: unknown product %q%s", n, near(n, known))
		}
	}
	if len(p.Signers) == 0 {
		bad("signers is empty: no report would be accepted")
	}
	for _, s := range p.Signers {
		if s != "vcek" && s != "vlek" {
			bad("signers: found %q, expected vcek or vlek", s)
		}
	}
	if len(p.VMPL) == 0 {
		bad("vmpl is empty: no report would be accepted")
	}
	for _, v := range p.VMPL {
		if v > 3 {
			bad("vmpl: found %d, expected 0 to 3", v)
		}
	}
	errs = append(errs, validateWants("guest_policy.bits", p.GuestPolicy.Bits, guestPolicyBits)...)
	errs = append(errs, validateWants("platform.bits", p.Platform.Bits, platformBits)...)
	if _, _, err := p.GuestPolicy.minABI(); err != nil {
		bad("guest_policy.min_abi: %w", err)
	}
	if _, err := p.Platform.minFirmware(); err != nil {
		bad("platform.min_firmware: %w", err)
	}
	errs = append(errs, p.TCB.validate()...)
	if p.ChipIDs != nil && len(p.ChipIDs) == 0 {
		bad("chip_ids is empty: no report would be accepted; leave it out to accept any chip")
	}
	for _, id := range p.ChipIDs {
		if len(id) != 64 {
			bad("chip_ids: found %d bytes, expected 64", len(id))
		} else if allZero(id) {
			bad("chip_ids: an id of zeros names no chip")
		}
	}
	if p.CSPIDs != nil && len(p.CSPIDs) == 0 {
		bad("csp_ids is empty: no VLEK would be accepted; leave it out to accept any provider's, or leave vlek out of signers")
	}
	if slices.Contains(p.CSPIDs, "") {
		bad("csp_ids: an empty name is no provider's")
	}
	if _, err := p.hostData(); err != nil {
		bad("host_data: %w, or zero, or any", err)
	}
	errs = append(errs, p.IDBlock.validate()...)
	if !slices.Contains([]string{RevocationRequired, RevocationWhenOnline, RevocationIfGiven}, p.Revocation) {
		bad("revocation is %q, expected %s, %s or %s", p.Revocation, RevocationRequired, RevocationWhenOnline, RevocationIfGiven)
	}
	if p.CRLMaxAgeDays < 0 {
		bad("crl_max_age_days is %d, expected 0 or more", p.CRLMaxAgeDays)
	}
	errs = append(errs, p.VTPM.validate()...)
	if len(errs) == 0 && !p.permissive && p.checksNothing() {
		bad("the policy checks nothing beyond what is always checked; use the permissive policy if that is meant")
	}
	return errors.Join(errs...)
}

func validateWants(field string, wants map[string]Want, names []namedBit) []error {
	var errs []error
	var known []string
	for _, n := range names {
		known = append(known, n.name)
	}
	for name, w := range wants {
		if !slices.Contains(known, name) {
			errs = append(errs, fmt.Errorf("%s: unknown bit %q%s", field, name, near(name, known)))
		}
		if w != Any && w != Required && w != Forbidden {
			errs = append(errs, fmt.Errorf("%s.%s is %q, expected required, forbidden or any", field, name, w))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errs
}

// minABI reads MinABI; the zero values accept everything.
func (g GuestPolicyRules) minABI() (major, minor uint8, err error) {
	if g.MinABI == "" {
		return 0, 0, nil
	}
	parts, err := dottedBytes(g.MinABI, 2)
	if err != nil {
		return 0, 0, err
	}
	return parts[0], parts[1], nil
}

// minFirmware reads MinFirmware; the zero value accepts everything.
func (r PlatformRules) minFirmware() (FirmwareVersion, error) {
	if r.MinFirmware == "" {
		return FirmwareVersion{}, nil
	}
	parts, err := dottedBytes(r.MinFirmware, 3)
	if err != nil {
		return FirmwareVersion{}, err
	}
	return FirmwareVersion{Major: parts[0], Minor: parts[1], Build: parts[2]}, nil
}

func (r TCBRules) validate() []error {
	var errs []error
	if r.MaxAgeDays < 0 {
		errs = append(errs, fmt.Errorf("tcb.max_age_days is %d, expected 0 or more", r.MaxAgeDays))
	}
	t := r.Floors.Table
	switch {
	case r.Floors.Name == "none":
		return errs
	case t == nil:
		return append(errs, errors.New("tcb.floors is missing: expected default, none, or a table"))
	}
	return append(errs, t.validate()...)
}

func (t *FloorTable) validate() []error {
	var errs []error
	if _, err := t.age(time.Time{}); err != nil {
		errs = append(errs, err)
	}
	if len(t.Floors) == 0 {
		errs = append(errs, errors.New("tcb.floors: the table has no rows: no report would be accepted"))
	}
	seen := map[string]bool{}
	for _, f := range t.Floors {
		c, err := parseCPUID(f.CPUID)
		if err != nil {
			errs = append(errs, fmt.Errorf("tcb.floors: %w", err))
			continue
		}
		if seen[c.String()] {
			errs = append(errs, fmt.Errorf("tcb.floors: %s is listed twice", c))
		}
		seen[c.String()] = true
		product, known := c.Product()
		switch {
		case !known:
			errs = append(errs, fmt.Errorf("tcb.floors: %s is no known product", c))
		case (product.TCB == TCBLayoutTurin) != (f.TCB.FMC != nil):
			errs = append(errs, fmt.Errorf("tcb.floors: %s (%s): fmc must be given for Turin and later, and only there", c, product.Name))
		}
		errs = append(errs, validateWants("tcb.floors: "+c.String()+": platform", f.Platform, platformBits)...)
	}
	return errs
}

// hostData returns the expected HOST_DATA, nil when any is accepted.
func (p *Policy) hostData() ([]byte, error) {
	switch p.HostData {
	case HostDataAny:
		return nil, nil
	case HostDataZero:
		return make([]byte, 32), nil
	}
	return fixedHex(p.HostData, 32)
}

func (r IDBlockRules) validate() []error {
	var errs []error
	size := func(name string, b []byte, n int) {
		if len(b) != n {
			errs = append(errs, fmt.Errorf("id_block.%s: found %d bytes, expected %d", name, len(b), n))
		}
	}
	keys := func(name string, list []measure.HexBytes) {
		if list != nil && len(list) == 0 {
			errs = append(errs, fmt.Errorf("id_block.%s is empty: no report would be accepted; leave it out to accept any key", name))
		}
		for _, k := range list {
			size(name, k, measure.DigestSize)
		}
	}
	keys("id_keys", r.IDKeys)
	keys("author_keys", r.AuthorKeys)
	if r.FamilyID != nil {
		size("family_id", r.FamilyID, 16)
	}
	if r.ImageID != nil {
		size("image_id", r.ImageID, 16)
	}
	return errs
}

func (r VTPMRules) validate() []error {
	var errs []error
	if len(r.Bindings) == 0 {
		errs = append(errs, errors.New("vtpm.bindings is empty: no evidence would be accepted"))
	}
	known := []string{evidence.BindingSVSM, evidence.BindingSVSMServices, evidence.BindingNV, BindingAzureHCL}
	for _, b := range r.Bindings {
		if !slices.Contains(known, b) {
			errs = append(errs, fmt.Errorf("vtpm.bindings: unknown binding %q", b))
		}
	}
	if r.EventLog != EventLogRequired && r.EventLog != EventLogIfPresent {
		errs = append(errs, fmt.Errorf("vtpm.event_log is %q, expected %s or %s", r.EventLog, EventLogRequired, EventLogIfPresent))
	}
	for _, v := range r.ManifestVersions {
		if v > 1 {
			errs = append(errs, fmt.Errorf("vtpm.manifest_versions: found %d, expected 0 or 1", v))
		}
	}
	return errs
}

// checksNothing reports whether no rule can refuse a genuine report.
func (p *Policy) checksNothing() bool {
	wants := func(m map[string]Want) bool {
		for _, w := range m {
			if w == Required || w == Forbidden {
				return true
			}
		}
		return false
	}
	judges := p.Report.MinVersion > minReportVersion || len(p.Products) > 0 || len(p.Signers) == 1 || len(p.VMPL) < 4 ||
		wants(p.GuestPolicy.Bits) || p.GuestPolicy.MinABI != "" ||
		wants(p.Platform.Bits) || p.Platform.MinFirmware != "" ||
		p.TCB.Floors.Name != "none" || p.Mitigations != (MitigationRules{}) ||
		len(p.ChipIDs) > 0 || len(p.CSPIDs) > 0 || p.HostData != HostDataAny ||
		len(p.IDBlock.IDKeys) > 0 || len(p.IDBlock.AuthorKeys) > 0 || p.IDBlock.FamilyID != nil || p.IDBlock.ImageID != nil || p.IDBlock.MinGuestSVN > 0 ||
		p.Revocation == RevocationRequired
	return !judges
}
