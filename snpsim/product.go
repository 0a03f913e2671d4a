package snpsim

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A tcb holds the security patch levels that a simulated chip runs with.
type tcb struct{ fmc, bootloader, tee, snp, microcode uint8 }

// A product is a processor that can be simulated, and the platform around it.
type product struct {
	line        string // in the names of certificates
	productName string // extension productName, as AMD's certificates have it

	family, model, stepping uint8 // CPUID of the report

	tcb  tcb
	fmc  bool // the TCB layout of Turin and later, which has an FMC
	hwid int  // bytes of the chip's id that are not zero

	major, minor, build uint8 // SNP firmware; the ABI version is major.minor

	platformInfo uint64
	mitigations  uint64 // of version-5 reports, at launch and now
}

// PLATFORM_INFO (SNP ABI 56860, PLATFORM_INFO). SMT is off on the simulated
// platforms, so that guest policies with and without SMT start on them.
const (
	platformECC           = 1 << 2
	platformAliasCheck    = 1 << 5 // ALIAS_CHECK_COMPLETE
	platformIOMMUSafe     = 1 << 6
	allMitigations        = 0x1f // bits 0 to 4: those that bulletins of AMD name
	platformCommon        = platformECC | platformAliasCheck
	hwidFull, hwidOfTurin = 64, 8
)

// products are up-to-date machines: their levels lie at or above what AMD's
// bulletins of 2026 ask for. A launch on a machine below that is another story
// than the one which the simulator tells.
var products = map[string]product{
	"Milan": {
		line: "Milan", productName: "Milan-B0", family: 0x19, model: 0x01, stepping: 0x01,
		tcb: tcb{bootloader: 4, snp: 29, microcode: 222}, hwid: hwidFull,
		major: 1, minor: 55, build: 49, platformInfo: platformCommon, mitigations: allMitigations,
	},
	"Genoa": {
		line: "Genoa", productName: "Genoa", family: 0x19, model: 0x11, stepping: 0x01,
		tcb: tcb{bootloader: 10, snp: 28, microcode: 86}, hwid: hwidFull,
		major: 1, minor: 55, build: 49, platformInfo: platformCommon, mitigations: allMitigations,
	},
	"Turin": {
		line: "Turin", productName: "Turin", family: 0x1A, model: 0x02, stepping: 0x01,
		tcb: tcb{fmc: 1, bootloader: 1, tee: 1, snp: 4, microcode: 82}, fmc: true, hwid: hwidOfTurin,
		major: 1, minor: 58, build: 49, platformInfo: platformCommon | platformIOMMUSafe, mitigations: allMitigations,
	},
}

func productNamed(name string) (product, error) {
	p, ok := products[name]
	if !ok {
		return p, fmt.Errorf("simulated product: found %q, expected %s", name, strings.Join(slices.Sorted(maps.Keys(products)), ", "))
	}
	return p, nil
}

// version packs the levels into a TCB_VERSION (SNP ABI 56860, TCB_VERSION; the
// layout with an FMC is that of family 1Ah).
func (p *product) version() uint64 {
	t := p.tcb
	if p.fmc {
		return uint64(t.fmc) | uint64(t.bootloader)<<8 | uint64(t.tee)<<16 | uint64(t.snp)<<24 | uint64(t.microcode)<<56
	}
	return uint64(t.bootloader) | uint64(t.tee)<<8 | uint64(t.snp)<<48 | uint64(t.microcode)<<56
}
