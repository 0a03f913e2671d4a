package measure

import (
	"bytes"
	"errors"
	"fmt"
	"hash"
	"strings"
)

// A unified kernel image is systemd's stub with a kernel, an initrd and a command
// line in sections of its own (UAPI.5). From a direct boot of one, without initrd,
// follow:
//
//   - PCR 4: as of any kernel. Stubs that leave the kernel inside to the firmware
//     have its Authenticode digest extended once more, after the separator.
//   - PCR 12: what the stub is given from outside, above all a command line in the
//     place of its own: UTF-16LE with its NUL, extended once. Zeros without.
//
// PCR 9 depends on files that the stub adds to the initrd, and is not predicted:
// PCR 4 has the initrd and PCR 12 the command line.
const (
	unifiedLinux = ".linux"

	whenStubLoads     = "the image's stub starts the kernel inside by itself: systemd 262"
	whenFirmwareLoads = "the image's stub has the firmware load the kernel inside: systemd 252 to 257"
)

// unifiedKernel returns the kernel inside a unified kernel image; nil when the
// image is another PE image.
func unifiedKernel(image []byte) ([]byte, error) {
	p, err := parsePE(image)
	if err != nil {
		return nil, err
	}
	var kernel []byte
	for _, s := range p.sections {
		switch {
		case s.name != unifiedLinux:
			continue
		case kernel != nil:
			return nil, errors.New("unified kernel image: found two sections .linux, expected one")
		case s.virtual == 0 || s.virtual > s.size:
			return nil, fmt.Errorf("unified kernel image: section .linux: found %d bytes in the file for %d in memory", s.size, s.virtual)
		}
		kernel = image[s.at : s.at+s.virtual]
	}
	return kernel, nil
}

// predictUnified returns the PCRs of a direct boot of a unified kernel image with
// the given kernel inside.
func predictUnified(in PCRInputs, kernel []byte, newHash func() hash.Hash) (*GoldenPCRs, error) {
	var errs []error
	if len(in.Initrd) > 0 {
		errs = append(errs, errors.New("initrd: found one beside a unified kernel image, which QEMU refuses (linux kernel too old to load a ram disk)"))
	}
	if err := checkCmdline(in.Cmdline); err != nil {
		errs = append(errs, err)
	}
	if strings.TrimSpace(in.Cmdline) != in.Cmdline || strings.ContainsFunc(in.Cmdline, func(r rune) bool { return r < ' ' }) {
		errs = append(errs, fmt.Errorf("cmdline: found %q, which a unified kernel image's stub changes: expected no control characters and no space at its ends", in.Cmdline))
	}
	outer, err := authenticode(in.Kernel, newHash())
	if err != nil {
		errs = append(errs, fmt.Errorf("kernel: %w", err))
	}
	inner, err := authenticode(kernel, newHash())
	if err != nil {
		errs = append(errs, fmt.Errorf("kernel: section .linux: %w", err))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	p := newPCR(newHash)
	p.extend(outer)
	p.measure([]byte(bootAction))
	p.measure([]byte(bootSeparator))
	alone := bytes.Clone(p.value)
	p.extend(inner)
	options := newPCR(newHash)
	if in.Cmdline != "" {
		options.measure(loadOptions(in.Cmdline))
	}
	return &GoldenPCRs{Bank: in.Bank, Values: []GoldenPCR{
		{PCR: 4, AnyOf: []GoldenPCRValue{{Value: alone, When: whenStubLoads}, {Value: p.value, When: whenFirmwareLoads}}},
		{PCR: 12, AnyOf: []GoldenPCRValue{{Value: options.value, When: "any OVMF"}}},
	}}, nil
}
