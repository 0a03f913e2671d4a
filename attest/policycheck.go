package attest

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/evtpm/evtpm/measure"
)

// checkPolicyVersion compares the report's version with the policy's lowest.
func checkPolicyVersion(r *Report, p *Policy) Check {
	found := fmt.Sprint(r.Version)
	if r.Version < p.Report.MinVersion {
		return fail(CheckPolicyVersion, ReasonVersionBelowPolicy, fmt.Sprintf("%d or more", p.Report.MinVersion), found)
	}
	return pass(CheckPolicyVersion, found)
}

// checkPolicyProduct looks the product up in the policy.
func checkPolicyProduct(product Product, p *Policy) Check {
	if len(p.Products) == 0 {
		return skip(CheckPolicyProduct, "the policy accepts any product").found(product.Name)
	}
	if !slices.Contains(p.Products, product.Name) {
		return fail(CheckPolicyProduct, ReasonProductNotAllowed, strings.Join(p.Products, ", "), product.Name)
	}
	return pass(CheckPolicyProduct, product.Name)
}

// checkPolicySigner looks the signing key's kind up in the policy.
func checkPolicySigner(r *Report, p *Policy) Check {
	kind := signingKeyName(r.SignerInfo.SigningKey())
	if !slices.Contains(p.Signers, kind) {
		return fail(CheckPolicySigner, ReasonSignerNotAllowed, strings.Join(p.Signers, ", "), kind)
	}
	return pass(CheckPolicySigner, kind)
}

// checkPolicyCSP looks a VLEK's provider up in the policy.
func checkPolicyCSP(leaf *Leaf, p *Policy) Check {
	if len(p.CSPIDs) == 0 {
		return skip(CheckPolicyCSP, "the policy accepts every provider's VLEK")
	}
	if leaf.Kind != "vlek" {
		return skip(CheckPolicyCSP, "a VCEK is no provider's")
	}
	if !slices.Contains(p.CSPIDs, leaf.CSPID) {
		return fail(CheckPolicyCSP, ReasonCSPNotAllowed, strings.Join(p.CSPIDs, ", "), leaf.CSPID)
	}
	return pass(CheckPolicyCSP, leaf.CSPID)
}

// checkTCBForm judges reserved bytes of the TCB versions.
func checkTCBForm(faults []string) Check {
	if len(faults) > 0 {
		return fail(CheckTCBForm, ReasonTCBReserved, "zeros", strings.Join(faults, "; "))
	}
	return pass(CheckTCBForm, "")
}

// checkTCBOrder refuses orders that firmware cannot produce: the host may report
// less than it runs (SNP_CONFIG), and commit later, but not the reverse. It may
// also go back to what it committed while the guest runs, which then started on
// more: a policy that allows firmware that can be rolled back allows this too.
func checkTCBOrder(t platformTCBs, p *Policy) Check {
	type named struct {
		name string
		tcb  TCB
	}
	atMost := []named{{"REPORTED_TCB", t.Reported}, {"COMMITTED_TCB", t.Committed}}
	if !p.TCB.AllowProvisional {
		atMost = append(atMost, named{"LAUNCH_TCB", t.Launch})
	}
	var faults []string
	for _, x := range atMost {
		if above := t.Current.below(x.tcb); above != "" {
			faults = append(faults, fmt.Sprintf("CURRENT_TCB below %s: %s", x.name, above))
		}
	}
	if len(faults) > 0 {
		return fail(CheckTCBOrder, ReasonTCBOrder, "nothing above CURRENT_TCB", strings.Join(faults, "; "))
	}
	return pass(CheckTCBOrder, "")
}

// floorFor finds the row of floors for a report; a check says why there is none.
func floorFor(r *Report, p *Policy) (floor *Floor, noRow string) {
	if r.CPUID == nil {
		return nil, "a report before version 3 does not name its processor"
	}
	if f := p.TCB.Floors.Table.Find(*r.CPUID); f != nil {
		return f, ""
	}
	return nil, "no row for " + r.CPUID.String()
}

// checkFloor compares one TCB with the floors.
func checkFloor(name CheckName, tcb TCB, floor *Floor, noRow string) Check {
	if floor == nil {
		return fail(name, ReasonNoFloor, "a row in the table of floors", noRow)
	}
	if below := tcb.below(floor.TCB); below != "" {
		c := fail(name, ReasonTCBBelowFloor, floor.TCB.String(), tcb.String()).with(below)
		if name == CheckFloorLaunch {
			c.Note += "; start the machine again once the firmware is updated"
		}
		return c
	}
	return pass(name, tcb.String())
}

// checkFloors compares all four TCB versions with the floors.
func checkFloors(t platformTCBs, r *Report, p *Policy) []Check {
	names := []CheckName{CheckFloorReported, CheckFloorCommitted, CheckFloorCurrent, CheckFloorLaunch}
	tcbs := []TCB{t.Reported, t.Committed, t.Current, t.Launch}
	var out []Check
	if p.TCB.Floors.Name == "none" {
		for i, n := range names {
			out = append(out, skip(n, "the policy has no floors").found(tcbs[i].String()))
		}
		return out
	}
	floor, noRow := floorFor(r, p)
	for i, n := range names {
		out = append(out, checkFloor(n, tcbs[i], floor, noRow))
	}
	return out
}

// checkProvisional compares committed with current firmware: what is not
// committed can be rolled back while the guest runs.
func checkProvisional(r *Report, p *Policy) Check {
	same := r.CommittedTCB == r.CurrentTCB && r.CommittedVersion == r.CurrentVersion
	found := fmt.Sprintf("committed %s, current %s", r.CommittedVersion, r.CurrentVersion)
	switch {
	case same:
		return pass(CheckProvisional, found)
	case p.TCB.AllowProvisional:
		return skip(CheckProvisional, "current firmware is not committed, which the policy allows").found(found)
	}
	if r.CommittedTCB != r.CurrentTCB {
		found = fmt.Sprintf("committed TCB %#016x, current TCB %#016x", uint64(r.CommittedTCB), uint64(r.CurrentTCB))
	}
	return fail(CheckProvisional, ReasonProvisional, "committed equal to current", found)
}

// checkFirmware compares the firmware's versions with the policy's lowest.
func checkFirmware(r *Report, p *Policy) Check {
	lowest, err := p.Platform.minFirmware()
	found := fmt.Sprintf("current %s, committed %s", r.CurrentVersion, r.CommittedVersion)
	switch {
	case err != nil:
		return fail(CheckFirmware, ReasonFirmwareBelow, "a readable policy", err.Error())
	case p.Platform.MinFirmware == "":
		return skip(CheckFirmware, "the policy asks for no version").found(found)
	case r.CurrentVersion.below(lowest) || r.CommittedVersion.below(lowest):
		return fail(CheckFirmware, ReasonFirmwareBelow, lowest.String()+" or more", found)
	}
	return pass(CheckFirmware, found)
}

// checkMitigations looks for the mitigation bits that the policy asks for.
func checkMitigations(r *Report, p *Policy) Check {
	want := p.Mitigations
	found := fmt.Sprintf("launch %#x, current %#x", r.LaunchMitigations, r.CurrentMitigations)
	switch {
	case want == (MitigationRules{}):
		return skip(CheckMitigations, "the policy asks for none").found(found)
	case r.Version < mitigationVersion:
		return fail(CheckMitigations, ReasonMitigationUnprovable, fmt.Sprintf("a report of version %d or more", mitigationVersion), fmt.Sprintf("version %d", r.Version))
	case r.LaunchMitigations&want.Launch != want.Launch || r.CurrentMitigations&want.Current != want.Current:
		return fail(CheckMitigations, ReasonMitigationMissing, fmt.Sprintf("launch %#x, current %#x", want.Launch, want.Current), found)
	}
	return pass(CheckMitigations, found)
}

// checkGuestPolicyForm judges the reserved bits of the guest policy.
func checkGuestPolicyForm(r *Report) Check {
	found := fmt.Sprintf("%#x", uint64(r.Policy))
	if !r.Policy.Bit(policyReservedOne) || r.Policy>>policyFirstReservedMBZBit != 0 {
		return fail(CheckGuestPolicyForm, ReasonPolicyReserved, "bit 17 set, bits 63:26 clear", found)
	}
	return pass(CheckGuestPolicyForm, found)
}

// checkGuestPolicy judges the bits that have no check of their own.
func checkGuestPolicy(r *Report, p *Policy) Check {
	wants := map[string]Want{}
	for name, w := range p.GuestPolicy.Bits {
		if name != "debug" && name != "migrate_ma" {
			wants[name] = w
		}
	}
	found := fmt.Sprintf("%#x", uint64(r.Policy))
	if faults := bitFaults(guestPolicyBits, wants, r.Policy.Bit); faults != "" {
		return fail(CheckGuestPolicy, ReasonPolicyBits, "the policy's bits", faults)
	}
	return pass(CheckGuestPolicy, found)
}

// checkGuestDebug judges the debug bit.
func checkGuestDebug(r *Report, p *Policy) Check {
	want := map[string]Want{"debug": p.GuestPolicy.Bits["debug"]}
	if faults := bitFaults(guestPolicyBits, want, r.Policy.Bit); faults != "" {
		return fail(CheckGuestDebug, ReasonDebugAllowed, string(want["debug"]), faults)
	}
	if r.Policy.Bit(PolicyDebug) {
		return skip(CheckGuestDebug, "debugging is allowed, and the policy does not forbid it")
	}
	return pass(CheckGuestDebug, "debug is 0")
}

// checkGuestMigration judges the migration bit and the migration agent's report
// id, which is all ones when there is none (SNP ABI 56860, REPORT_ID_MA).
func checkGuestMigration(r *Report, p *Policy) Check {
	none := bytes.Count(r.ReportIDMA[:], []byte{0xFF}) == len(r.ReportIDMA)
	if !r.Policy.Bit(PolicyMigrateMA) && !none {
		return fail(CheckGuestMigration, ReasonMigrationFields, "REPORT_ID_MA all ones, since no migration agent is allowed", fmt.Sprintf("%x", r.ReportIDMA))
	}
	want := map[string]Want{"migrate_ma": p.GuestPolicy.Bits["migrate_ma"]}
	if faults := bitFaults(guestPolicyBits, want, r.Policy.Bit); faults != "" {
		return fail(CheckGuestMigration, ReasonMigrationAllowed, string(want["migrate_ma"]), faults)
	}
	if r.Policy.Bit(PolicyMigrateMA) {
		return skip(CheckGuestMigration, "a migration agent is allowed, and the policy does not forbid it")
	}
	return pass(CheckGuestMigration, "migrate_ma is 0")
}

// checkGuestABI compares the ABI that the guest policy asks for with the
// policy's lowest.
func checkGuestABI(r *Report, p *Policy) Check {
	wantMajor, wantMinor, err := p.GuestPolicy.minABI()
	major, minor := r.Policy.ABI()
	found := fmt.Sprintf("%d.%d", major, minor)
	switch {
	case err != nil:
		return fail(CheckGuestABI, ReasonPolicyABI, "a readable policy", err.Error())
	case p.GuestPolicy.MinABI == "":
		return skip(CheckGuestABI, "the policy asks for none").found(found)
	case major < wantMajor || major == wantMajor && minor < wantMinor:
		return fail(CheckGuestABI, ReasonPolicyABI, fmt.Sprintf("%d.%d or more", wantMajor, wantMinor), found)
	}
	return pass(CheckGuestABI, found)
}

// checkGuestGolden compares the guest policy with the golden one.
func checkGuestGolden(r *Report, g *measure.Golden) Check {
	found := fmt.Sprintf("%#x", uint64(r.Policy))
	if g == nil {
		return skip(CheckGuestGolden, "no golden values were given").found(found)
	}
	if uint64(r.Policy) != g.Policy {
		return fail(CheckGuestGolden, ReasonPolicyGolden, fmt.Sprintf("%#x", g.Policy), found)
	}
	return pass(CheckGuestGolden, found)
}

// checkSMT compares the guest policy with the platform.
func checkSMT(r *Report) Check {
	if r.PlatformInfo.Bit(PlatformSMT) && !r.Policy.Bit(PolicySMT) {
		return fail(CheckSMT, ReasonSMT, "SMT off", "SMT on")
	}
	return pass(CheckSMT, "")
}

// platformWants are the policy's wants of PLATFORM_INFO, and those that come with
// the floors of the report's processor where the policy says nothing.
func platformWants(r *Report, p *Policy) map[string]Want {
	wants := map[string]Want{}
	maps.Copy(wants, p.Platform.Bits)
	if r.CPUID != nil && p.TCB.Floors.Table != nil {
		if f := p.TCB.Floors.Table.Find(*r.CPUID); f != nil {
			for name, w := range f.Platform {
				if wants[name] == "" {
					wants[name] = w
				}
			}
		}
	}
	return wants
}

// aliasCheckBit has a check of its own.
const aliasCheckBit = "alias_check_complete"

// checkPlatformInfo judges PLATFORM_INFO.
func checkPlatformInfo(r *Report, p *Policy) Check {
	found := fmt.Sprintf("%#x", uint64(r.PlatformInfo))
	if unknown := r.PlatformInfo &^ knownPlatformBits(r.Version); unknown != 0 && !p.Platform.AllowUnknownBits {
		return fail(CheckPlatformInfo, ReasonPlatformUnknown, fmt.Sprintf("bits of %#x", uint64(knownPlatformBits(r.Version))), found)
	}
	wants := platformWants(r, p)
	delete(wants, aliasCheckBit)
	if faults := bitFaults(platformBits, wants, r.PlatformInfo.Bit); faults != "" {
		return fail(CheckPlatformInfo, ReasonPlatformBits, "the policy's bits", faults)
	}
	return pass(CheckPlatformInfo, found)
}

// checkAliasCheck judges ALIAS_CHECK_COMPLETE (AMD-SB-3015).
func checkAliasCheck(r *Report, p *Policy) Check {
	want := map[string]Want{aliasCheckBit: platformWants(r, p)[aliasCheckBit]}
	if faults := bitFaults(platformBits, want, r.PlatformInfo.Bit); faults != "" {
		return fail(CheckAliasCheck, ReasonAliasCheck, string(want[aliasCheckBit]), faults)
	}
	if !r.PlatformInfo.Bit(PlatformAliasCheck) {
		return skip(CheckAliasCheck, "the check was not made, and the policy does not ask for it")
	}
	return pass(CheckAliasCheck, "alias_check_complete is 1")
}

// equalField compares a field with an expected value.
func equalField(name CheckName, reason Reason, want, got []byte) Check {
	if !bytes.Equal(want, got) {
		return fail(name, reason, fmt.Sprintf("%x", want), fmt.Sprintf("%x", got))
	}
	return pass(name, fmt.Sprintf("%x", got))
}

// checkHostData compares HOST_DATA with the golden value, else the policy's.
func checkHostData(r *Report, g *measure.Golden, p *Policy) Check {
	var want []byte
	switch {
	case g != nil && len(g.HostData) > 0:
		want = g.HostData
	case g != nil:
		want = make([]byte, len(r.HostData))
	default:
		var err error
		if want, err = p.hostData(); err != nil {
			return fail(CheckHostData, ReasonHostData, "a readable policy", err.Error())
		}
		if want == nil {
			return skip(CheckHostData, "the policy accepts any").found(fmt.Sprintf("%x", r.HostData))
		}
	}
	return equalField(CheckHostData, ReasonHostData, want, r.HostData[:])
}

// checkIDBlock judges the fields that an ID block sets, against the golden
// values, else the policy's.
func checkIDBlock(r *Report, g *measure.Golden, p *Policy) []Check {
	if g != nil {
		return checkGoldenIDBlock(r, g.IDBlock)
	}
	rules := p.IDBlock
	return []Check{
		optionalField(CheckFamilyID, ReasonFamilyID, rules.FamilyID, r.FamilyID[:]),
		optionalField(CheckImageID, ReasonImageID, rules.ImageID, r.ImageID[:]),
		checkMinSVN(r, rules),
		checkKeyList(CheckIDKey, ReasonIDKey, rules.IDKeys, r.IDKeyDigest[:]),
		checkAuthorFields(r, checkKeyList(CheckAuthorKey, ReasonAuthorKey, rules.AuthorKeys, r.AuthorKeyDigest[:])),
	}
}

func optionalField(name CheckName, reason Reason, want, got []byte) Check {
	if want == nil {
		return skip(name, "nothing is expected").found(fmt.Sprintf("%x", got))
	}
	return equalField(name, reason, want, got)
}

func checkMinSVN(r *Report, rules IDBlockRules) Check {
	found := fmt.Sprint(r.GuestSVN)
	switch {
	case rules.MinGuestSVN == 0:
		return skip(CheckGuestSVN, "nothing is expected").found(found)
	case r.GuestSVN < rules.MinGuestSVN:
		return fail(CheckGuestSVN, ReasonGuestSVN, fmt.Sprintf("%d or more", rules.MinGuestSVN), found)
	}
	return pass(CheckGuestSVN, found)
}

func checkKeyList(name CheckName, reason Reason, accepted []measure.HexBytes, got []byte) Check {
	found := fmt.Sprintf("%x", got)
	if len(accepted) == 0 {
		return skip(name, "nothing is expected").found(found)
	}
	var want []string
	for _, k := range accepted {
		if bytes.Equal(k, got) {
			return pass(name, found)
		}
		want = append(want, k.String())
	}
	return fail(name, reason, strings.Join(want, " or "), found)
}

// checkAuthorFields fails a check that AUTHOR_KEY_EN contradicts.
func checkAuthorFields(r *Report, c Check) Check {
	if c.Status == Failed || r.SignerInfo.AuthorKeyEnabled() != allZero(r.AuthorKeyDigest[:]) {
		return c
	}
	return fail(CheckAuthorKey, ReasonAuthorKeyFields,
		fmt.Sprintf("a digest if and only if AUTHOR_KEY_EN is set (it is %t)", r.SignerInfo.AuthorKeyEnabled()), fmt.Sprintf("%x", r.AuthorKeyDigest))
}

// checkGoldenIDBlock judges the fields of an ID block exactly; nil means that
// there is none, so that all of them are zero.
func checkGoldenIDBlock(r *Report, want *measure.GoldenIDBlock) []Check {
	if want == nil {
		want = new(measure.GoldenIDBlock)
	}
	author := measure.Digest{}
	if want.AuthorKeyDigest != nil {
		author = *want.AuthorKeyDigest
	}
	svn := pass(CheckGuestSVN, fmt.Sprint(r.GuestSVN))
	if r.GuestSVN != want.GuestSVN {
		svn = fail(CheckGuestSVN, ReasonGuestSVN, fmt.Sprint(want.GuestSVN), fmt.Sprint(r.GuestSVN))
	}
	return []Check{
		equalField(CheckFamilyID, ReasonFamilyID, padded(want.FamilyID, 16), r.FamilyID[:]),
		equalField(CheckImageID, ReasonImageID, padded(want.ImageID, 16), r.ImageID[:]),
		svn,
		equalField(CheckIDKey, ReasonIDKey, want.IDKeyDigest[:], r.IDKeyDigest[:]),
		checkAuthorFields(r, equalField(CheckAuthorKey, ReasonAuthorKey, author[:], r.AuthorKeyDigest[:])),
	}
}

// padded is b, or n zeros when b is empty.
func padded(b []byte, n int) []byte {
	if len(b) == 0 {
		return make([]byte, n)
	}
	return b
}

// checkChip judges which chip signed: the launch host's when that is pinned, and
// one of the policy's.
func checkChip(r *Report, leaf *Leaf, pinned []byte, p *Policy) Check {
	if len(pinned) == 0 && len(p.ChipIDs) == 0 {
		return skip(CheckChip, "no chip is pinned")
	}
	found := fmt.Sprintf("%x", r.ChipID)
	if leaf.Kind != "vcek" || allZero(r.ChipID[:]) {
		return fail(CheckChip, ReasonChipUnprovable, "a VCEK-signed report with a CHIP_ID", leaf.Kind+", CHIP_ID "+found)
	}
	if len(pinned) > 0 && !bytes.Equal(pinned, r.ChipID[:]) {
		return fail(CheckChip, ReasonChipRelayed, fmt.Sprintf("%x", pinned), found)
	}
	if len(p.ChipIDs) > 0 && !slices.ContainsFunc(p.ChipIDs, func(id measure.HexBytes) bool { return bytes.Equal(id, r.ChipID[:]) }) {
		return fail(CheckChip, ReasonChipNotAllowed, "a chip of the policy's list", found)
	}
	return pass(CheckChip, found)
}

// found sets what was found, for a check that does not apply.
func (c Check) found(s string) Check {
	c.Found = s
	return c
}
