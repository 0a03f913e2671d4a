package attest

import "fmt"

// A CPUID names a processor by extended family, extended model and stepping, as
// a report carries them from version 3 on.
type CPUID struct{ Family, Model, Stepping uint8 }

// String returns family/model/stepping in hexadecimal: "19/01/01".
func (c CPUID) String() string {
	return fmt.Sprintf("%02x/%02x/%02x", c.Family, c.Model, c.Stepping)
}

// A Product is a family of processors that shares a name.
type Product struct {
	// Name as AMD uses it: "Milan", "Genoa", "Bergamo-Siena", "Turin",
	// "Turin-Dense", "Venice".
	Name string
	// Line is the name in certificates and in the Key Distribution Service:
	// Bergamo and Siena have Genoa's, Turin Dense has Turin's.
	Line string
	// TCB is the layout of its TCB versions.
	TCB TCBLayout
}

// productRange is one row of the table of products.
type productRange struct {
	family           uint8
	modelLo, modelHi uint8
	product          Product
}

// products lists AMD's SNP-capable products by CPUID (AMD 56860, ATTESTATION_REPORT,
// CPUID_FAM_ID and CPUID_MOD_ID; model ranges as in the Linux kernel's
// arch/x86/kernel/cpu/amd.c).
var products = []productRange{
	{0x19, 0x00, 0x0F, Product{"Milan", "Milan", TCBLayoutMilan}},
	{0x19, 0x10, 0x1F, Product{"Genoa", "Genoa", TCBLayoutMilan}},
	{0x19, 0xA0, 0xAF, Product{"Bergamo-Siena", "Genoa", TCBLayoutMilan}},
	{0x1A, 0x00, 0x0F, Product{"Turin", "Turin", TCBLayoutTurin}},
	{0x1A, 0x10, 0x1F, Product{"Turin-Dense", "Turin", TCBLayoutTurin}},
	{0x1A, 0x50, 0x5F, Product{"Venice", "Venice", TCBLayoutTurin}},
}

// Product returns the product that a CPUID belongs to, false if it is none that
// this package knows.
func (c CPUID) Product() (Product, bool) {
	for _, r := range products {
		if c.Family == r.family && c.Model >= r.modelLo && c.Model <= r.modelHi {
			return r.product, true
		}
	}
	return Product{}, false
}

// productOfLine returns the product that gave a line its name.
func productOfLine(line string) (Product, bool) {
	for _, r := range products {
		if r.product.Name == line {
			return r.product, true
		}
	}
	return Product{}, false
}
