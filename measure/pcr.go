package measure

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
)

// PCR prediction for a direct kernel boot: QEMU's -kernel, -initrd and -append
// under OVMF. From these three inputs follow PCR 4 and PCR 9 of the vTPM.
//
// PCR 4, extended by OVMF in this order (TCG PC Client Platform Firmware
// Profile 1.06, section 3.3.4.5):
//
//  1. EV_EFI_BOOT_SERVICES_APPLICATION: the kernel's Authenticode digest. It
//     comes before the action, unlike a boot from disk, because OVMF loads a
//     -kernel before it signals that it is ready to boot.
//  2. EV_EFI_ACTION: "Calling EFI Application from Boot Option", without a NUL.
//  3. EV_SEPARATOR: four zero bytes.
//
// PCR 9, extended by the kernel's EFI stub (Linux
// drivers/firmware/efi/libstub/efi-stub-helper.c):
//
//  1. "LOADED_IMAGE::LoadOptions": the command line as OVMF hands it over, in
//     UTF-16LE with its NUL. OVMF adds "initrd=initrd" when there is an initrd.
//  2. "Linux initrd": the initrd, if there is one.
const (
	bootAction    = "Calling EFI Application from Boot Option"
	bootSeparator = "\x00\x00\x00\x00"

	// An EFI stub that measures an input has the event's description in it: old
	// kernels measure neither, or the initrd alone.
	stubMeasuresOptions = "LOADED_IMAGE::LoadOptions"
	stubMeasuresInitrd  = "Linux initrd"
)

// PCRInputs are what the PCRs of a direct kernel boot follow from.
type PCRInputs struct {
	// Bank is "sha256" or "sha384".
	Bank string

	// Kernel is the file given to QEMU: a PE image with an EFI stub, such as a
	// bzImage.
	Kernel []byte

	// Initrd is the file given to QEMU; empty means none.
	Initrd []byte

	// Cmdline is what QEMU's -append gives, in ASCII; empty means none.
	Cmdline string

	// MemoryBytes is the guest's memory, which QEMU's changes to the kernel's
	// setup header depend on (see kernelForms). Zero leaves the changed form out:
	// right for SEV guests, whose kernel QEMU does not touch.
	MemoryBytes uint64
}

// PredictDirectBoot returns PCR 4 and PCR 9 of a direct kernel boot, or PCR 4 and
// PCR 12 when the kernel is a unified kernel image (see predictUnified). Where
// versions of QEMU and OVMF measure the same input in different forms, each form
// is an accepted value that says when it comes about.
func PredictDirectBoot(in PCRInputs) (*GoldenPCRs, error) {
	newHash, err := bankHash(in.Bank)
	if err != nil {
		return nil, err
	}
	kernel, err := unifiedKernel(in.Kernel)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("kernel: %w", err), checkCmdline(in.Cmdline))
	}
	if kernel != nil {
		return predictUnified(in, kernel, newHash)
	}
	pcr4, kernelErr := predictPCR4(in, newHash)
	pcr9, cmdlineErr := predictPCR9(in, newHash)
	if err := errors.Join(kernelErr, cmdlineErr); err != nil {
		return nil, err
	}
	return &GoldenPCRs{Bank: in.Bank, Values: []GoldenPCR{{PCR: 4, AnyOf: pcr4}, {PCR: 9, AnyOf: pcr9}}}, nil
}

// bankHash returns the hash function of a PCR bank.
func bankHash(bank string) (func() hash.Hash, error) {
	switch bank {
	case "sha256":
		return sha256.New, nil
	case "sha384":
		return sha512.New384, nil
	}
	return nil, fmt.Errorf("PCR bank: found %q, expected sha256 or sha384", bank)
}

// predictPCR4 returns the accepted values of PCR 4.
func predictPCR4(in PCRInputs, newHash func() hash.Hash) ([]GoldenPCRValue, error) {
	forms, err := kernelForms(in)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	var out []GoldenPCRValue
	for _, f := range forms {
		digest, err := authenticode(f.image, newHash())
		if err != nil {
			return nil, fmt.Errorf("kernel: %w", err)
		}
		p := newPCR(newHash)
		p.extend(digest)
		p.measure([]byte(bootAction))
		p.measure([]byte(bootSeparator))
		out = append(out, GoldenPCRValue{Value: p.value, When: f.when})
	}
	return out, nil
}

// predictPCR9 returns the accepted values of PCR 9.
func predictPCR9(in PCRInputs, newHash func() hash.Hash) ([]GoldenPCRValue, error) {
	if err := checkCmdline(in.Cmdline); err != nil {
		return nil, err
	}
	measuresOptions := bytes.Contains(in.Kernel, []byte(stubMeasuresOptions))
	measuresInitrd := bytes.Contains(in.Kernel, []byte(stubMeasuresInitrd))
	initrdDigest := sum(newHash, in.Initrd)
	value := func(options []byte) HexBytes {
		p := newPCR(newHash)
		if measuresOptions {
			p.measure(options)
		}
		if measuresInitrd && len(in.Initrd) > 0 {
			p.extend(initrdDigest)
		}
		return p.value
	}
	if len(in.Initrd) == 0 {
		return []GoldenPCRValue{{Value: value(loadOptions(in.Cmdline)), When: "any OVMF"}}, nil
	}
	if !measuresOptions {
		return []GoldenPCRValue{{Value: value(nil), When: "the kernel does not measure its command line"}}, nil
	}
	return []GoldenPCRValue{
		{Value: value(loadOptions(in.Cmdline + " initrd=initrd")), When: "OVMF up to 2025.02: initrd=initrd stands last"},
		{Value: value(loadOptions("initrd=initrd " + in.Cmdline)), When: "OVMF from 2025.11: initrd=initrd stands first"},
	}, nil
}

func checkCmdline(s string) error {
	for i := range len(s) {
		if c := s[i]; c == 0 || c >= 0x80 {
			return fmt.Errorf("cmdline: found byte %#02x at %d, expected ASCII", c, i)
		}
	}
	return nil
}

// loadOptions is a command line as EFI load options: UTF-16LE with a NUL, or
// nothing at all when it is empty.
func loadOptions(s string) []byte {
	if s == "" {
		return nil
	}
	out := make([]byte, 0, 2*len(s)+2)
	for i := range len(s) {
		out = append(out, s[i], 0)
	}
	return append(out, 0, 0)
}

// pcr is a PCR that starts from zeros.
type pcr struct {
	newHash func() hash.Hash
	value   HexBytes
}

func newPCR(newHash func() hash.Hash) *pcr {
	return &pcr{newHash: newHash, value: make(HexBytes, newHash().Size())}
}

// extend is TPM2_PCR_Extend: the new value is H(old value || digest).
func (p *pcr) extend(digest []byte) {
	p.value = sum(p.newHash, p.value, digest)
}

// measure extends the PCR with the digest of data.
func (p *pcr) measure(data []byte) { p.extend(sum(p.newHash, data)) }

func sum(newHash func() hash.Hash, parts ...[]byte) []byte {
	h := newHash()
	for _, b := range parts {
		h.Write(b)
	}
	return h.Sum(nil)
}
