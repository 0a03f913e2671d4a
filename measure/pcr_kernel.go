package measure

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Offsets of the x86 setup header (Linux Documentation/arch/x86/boot.rst,
// section 1.2); fields are little-endian.
const (
	setupVidModeAt  = 0x1fa // u16
	setupMagicAt    = 0x202 // u32 "HdrS"
	setupVersionAt  = 0x206 // u16
	setupLoaderAt   = 0x210 // u8
	setupFlagsAt    = 0x211 // u8
	setupRamdiskAt  = 0x218 // u32
	setupRamSizeAt  = 0x21c // u32
	setupHeapEndAt  = 0x224 // u16
	setupCmdlineAt  = 0x228 // u32
	setupInitMaxAt  = 0x22c // u32
	setupXLoadAt    = 0x236 // u16
	setupHeaderSize = 0x268

	setupMagic      = 0x53726448 // "HdrS"
	setupLoadedHigh = 0x01       // of setupFlagsAt
	setupCanUseHeap = 0x80
	setupAbove4G    = 0x02 // of setupXLoadAt
)

// What QEMU writes there (hw/i386/x86-common.c, x86_load_linux; q35's memory
// layout from hw/i386/pc_q35.c and pc.c).
const (
	qemuLoaderType  = 0xb0
	qemuRealAddr    = 0x10000
	qemuCmdlineAddr = 0x20000
	qemuACPISize    = 0x28000 // kept free below the top of low memory

	// q35 puts at most 2.75 GiB of memory below 4 GiB, and 2 GiB when there is
	// more than that.
	q35LowMax  = 0xb0000000
	q35LowMore = 0x80000000
)

// kernelForm is an image that firmware may measure.
type kernelForm struct {
	image []byte
	when  string
}

// kernelForms returns the forms in which firmware gets the kernel. QEMU offers
// the file as it is from version 10.0 on, and the older OVMFs do not know that:
// they take the file with QEMU's changes to its setup header.
func kernelForms(in PCRInputs) ([]kernelForm, error) {
	forms := []kernelForm{{in.Kernel, "the kernel's file as it is: QEMU from 10.0 with OVMF from 2025.02, and every SEV guest"}}
	if in.MemoryBytes == 0 {
		return forms, nil
	}
	if len(in.Kernel) < setupHeaderSize || binary.LittleEndian.Uint32(in.Kernel[setupMagicAt:]) != setupMagic {
		// A PE image that is no bzImage: QEMU has no header to change.
		return forms, nil
	}
	patched, err := patchSetup(in)
	if err != nil {
		return nil, err
	}
	return append(forms, kernelForm{patched, "setup header filled in by QEMU: QEMU before 10.0, or OVMF before 2025.02"}), nil
}

// patchSetup returns the kernel with the setup header as QEMU fills it in.
func patchSetup(in PCRInputs) ([]byte, error) {
	out := slices.Clone(in.Kernel)
	le := binary.LittleEndian
	version := le.Uint16(out[setupVersionAt:])
	if version < 0x202 || out[setupFlagsAt]&setupLoadedHigh == 0 {
		// QEMU places such a kernel elsewhere; none of them has an EFI stub.
		return nil, fmt.Errorf("boot protocol is %d.%02d, expected 2.02 or later with a high load address", version>>8, version&0xff)
	}
	if mode, found, err := videoMode(in.Cmdline); err != nil {
		return nil, err
	} else if found {
		le.PutUint16(out[setupVidModeAt:], mode)
	}
	out[setupLoaderAt] = qemuLoaderType
	out[setupFlagsAt] |= setupCanUseHeap
	le.PutUint16(out[setupHeapEndAt:], qemuCmdlineAddr-qemuRealAddr-0x200)
	le.PutUint32(out[setupCmdlineAt:], qemuCmdlineAddr)
	if len(in.Initrd) > 0 {
		addr, err := initrdAddress(out, uint64(len(in.Initrd)), in.MemoryBytes)
		if err != nil {
			return nil, err
		}
		le.PutUint32(out[setupRamdiskAt:], addr)
		le.PutUint32(out[setupRamSizeAt:], uint32(len(in.Initrd)))
	}
	return out, nil
}

// initrdAddress is where QEMU says that it loads an initrd: as high as it may.
func initrdAddress(kernel []byte, size, memory uint64) (uint32, error) {
	le := binary.LittleEndian
	version := le.Uint16(kernel[setupVersionAt:])
	limit := uint64(0x37ffffff)
	switch {
	case version >= 0x20c && le.Uint16(kernel[setupXLoadAt:])&setupAbove4G != 0:
		limit = math.MaxUint32
	case version >= 0x203:
		limit = uint64(le.Uint32(kernel[setupInitMaxAt:]))
	}
	low := memory
	switch {
	case memory >= q35LowMax:
		low = q35LowMore
	case memory < qemuACPISize:
		return 0, fmt.Errorf("memory: found %d bytes, expected at least %d", memory, qemuACPISize)
	}
	limit = min(limit, low-qemuACPISize-1)
	if size >= limit {
		return 0, fmt.Errorf("initrd: found %d bytes, but with %d bytes of memory QEMU takes less than %d", size, memory, limit)
	}
	return uint32(limit-size) &^ 0xfff, nil
}

// videoMode reads the command line's first vga= as QEMU does: anywhere, as a C
// number that ends at a space, or a word that begins like one of three.
func videoMode(cmdline string) (mode uint16, found bool, err error) {
	_, s, found := strings.Cut(cmdline, "vga=")
	if !found {
		return 0, false, nil
	}
	for _, w := range []struct {
		word string
		mode uint16
	}{{"normal", 0xffff}, {"ext", 0xfffe}, {"ask", 0xfffd}} {
		if strings.HasPrefix(s, w.word) {
			return w.mode, true, nil
		}
	}
	s, _, _ = strings.Cut(s, " ")
	number, base := s, 10
	switch {
	case strings.HasPrefix(s, "0x"), strings.HasPrefix(s, "0X"):
		number, base = s[2:], 16
	case len(s) > 1 && s[0] == '0':
		number, base = s[1:], 8
	}
	n, err := strconv.ParseUint(number, base, 32)
	if err != nil {
		return 0, false, fmt.Errorf("cmdline: vga=%s: %w", s, errors.Unwrap(err))
	}
	return uint16(n), true, nil
}
