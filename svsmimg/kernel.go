package svsmimg

import (
	"bytes"
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"slices"
)

// maxKernel bounds the SVSM's kernel file.
const maxKernel = 256 << 20

// A segment is a loadable part of the kernel.
type segment struct {
	vaddr, memory uint64 // memory in bytes, whole pages
	data          []byte // the part that the file has
	flags         elf.ProgFlag
}

// A kernelImage is the SVSM's kernel as an ELF file.
type kernelImage struct {
	segments       []segment
	entry          uint64
	virtBase       uint64
	virtLen        uint64 // whole pages
	pages          uint64
	symtab, strtab []byte // symtab in the kernel's own form; both empty without symbols
}

// parseKernel reads a statically linked x86-64 ELF file.
func parseKernel(data []byte) (k *kernelImage, err error) {
	if len(data) > maxKernel {
		return nil, fmt.Errorf("SVSM kernel: found %d bytes, expected at most %d", len(data), maxKernel)
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("SVSM kernel: %w", err)
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 || f.Data != elf.ELFDATA2LSB {
		return nil, fmt.Errorf("SVSM kernel: found %s for %s, expected ELFCLASS64 for EM_X86_64", f.Class, f.Machine)
	}
	k = &kernelImage{entry: f.Entry}
	var align uint64
	for i, p := range f.Progs {
		fail := func(format string, args ...any) error {
			return fmt.Errorf("SVSM kernel: program header %d: %w", i, fmt.Errorf(format, args...))
		}
		switch {
		case p.Type == elf.PT_DYNAMIC || p.Type == elf.PT_INTERP:
			return nil, fail("found %s: a kernel that must be relocated cannot be built into an image", p.Type)
		case p.Type != elf.PT_LOAD || p.Memsz == 0:
			continue
		case p.Vaddr%pageSize != 0:
			return nil, fail("found address 0x%x, expected a multiple of %d", p.Vaddr, pageSize)
		case p.Filesz > p.Memsz || p.Off+p.Filesz < p.Off || p.Off+p.Filesz > uint64(len(data)):
			return nil, fail("found 0x%x bytes at offset 0x%x for 0x%x bytes of memory, in a file of 0x%x", p.Filesz, p.Off, p.Memsz, len(data))
		case p.Memsz > MaxPages*pageSize || p.Vaddr+p.Memsz+pageSize < p.Vaddr:
			return nil, fail("found 0x%x bytes of memory at 0x%x", p.Memsz, p.Vaddr)
		case p.Align > 1 && p.Align&(p.Align-1) != 0:
			return nil, fail("found alignment 0x%x, expected a power of two", p.Align)
		}
		align = max(align, p.Align)
		k.segments = append(k.segments, segment{p.Vaddr, alignUp(p.Memsz, pageSize), data[p.Off : p.Off+p.Filesz], p.Flags})
	}
	if len(k.segments) == 0 {
		return nil, errors.New("SVSM kernel: found no loadable segment")
	}
	slices.SortFunc(k.segments, func(a, b segment) int { return cmp.Compare(a.vaddr, b.vaddr) })
	for i := 1; i < len(k.segments); i++ {
		if a, b := k.segments[i-1], k.segments[i]; a.vaddr+a.memory > b.vaddr {
			return nil, fmt.Errorf("SVSM kernel: segment at 0x%x overlaps that at 0x%x", a.vaddr, b.vaddr)
		}
	}
	last := k.segments[len(k.segments)-1]
	k.virtBase = k.segments[0].vaddr
	if align > 1 {
		k.virtBase &^= align - 1
	}
	if k.virtBase%largePage != 0 {
		return nil, fmt.Errorf("SVSM kernel: found base address 0x%x, expected a multiple of 2 MiB", k.virtBase)
	}
	k.virtLen = last.vaddr + last.memory - k.virtBase
	for _, s := range k.segments {
		k.pages += s.memory / pageSize
	}
	if k.entry < k.virtBase || k.entry >= k.virtBase+k.virtLen {
		return nil, fmt.Errorf("SVSM kernel: found entry point 0x%x outside of its segments", k.entry)
	}
	return k, k.symbols(f, data)
}

// symbols finds the tables of symbols, by which the kernel prints traces.
func (k *kernelImage) symbols(f *elf.File, data []byte) error {
	piece := func(s *elf.Section) ([]byte, error) {
		if s.FileSize > uint64(len(data)) || s.Offset > uint64(len(data))-s.FileSize {
			return nil, fmt.Errorf("SVSM kernel: section %s: found 0x%x bytes at offset 0x%x of a file of 0x%x", clip(s.Name), s.FileSize, s.Offset, len(data))
		}
		return data[s.Offset : s.Offset+s.FileSize], nil
	}
	var symtab, strtab *elf.Section
	for _, s := range f.Sections {
		switch {
		case s.Type == elf.SHT_SYMTAB && symtab == nil:
			symtab = s
		case s.Type == elf.SHT_STRTAB && s.Name == ".strtab" && strtab == nil:
			strtab = s
		}
	}
	if symtab == nil || strtab == nil {
		return nil
	}
	if symtab.Entsize != elf.Sym64Size || symtab.FileSize%elf.Sym64Size != 0 {
		return fmt.Errorf("SVSM kernel: symbol table: found 0x%x bytes in entries of %d, expected entries of %d", symtab.FileSize, symtab.Entsize, elf.Sym64Size)
	}
	raw, err := piece(symtab)
	if err != nil {
		return err
	}
	if k.strtab, err = piece(strtab); err != nil {
		return err
	}
	// The kernel's own form of a symbol: u64 address, u32 size, u32 name.
	for ; len(raw) > 0; raw = raw[elf.Sym64Size:] {
		size := min(le.Uint64(raw[16:]), 0xffffffff)
		k.symtab = le.AppendUint64(k.symtab, le.Uint64(raw[8:]))
		k.symtab = le.AppendUint32(k.symtab, uint32(size))
		k.symtab = le.AppendUint32(k.symtab, le.Uint32(raw))
	}
	return nil
}

// Page table entries of x86-64, with accessed and dirty bits set.
const (
	ptePresent  = 1 << 0
	pteWritable = 1 << 1
	pteAccessed = 1 << 5
	pteDirty    = 1 << 6
	pteLarge    = 1 << 7
	pteGlobal   = 1 << 8
	pteNoExec   = 1 << 63

	pteTable   = ptePresent | pteWritable | pteAccessed | pteDirty
	pteSelfMap = pteTable | pteNoExec
	pteRW      = pteTable | pteGlobal | pteNoExec
	pteRWLarge = pteRW | pteLarge
	pteRO      = ptePresent | pteAccessed | pteGlobal | pteNoExec
	pteExec    = ptePresent | pteAccessed | pteGlobal

	entriesPerTable = 512
	selfMapIndex    = 493 // of the top table, where the kernel maps its page tables
)

func tableIndex(vaddr uint64, level int) uint64 { return vaddr >> (12 + 9*level) % entriesPerTable }

// pageTables are the kernel's: a top table, one table of each level below, and the
// leaf tables of the kernel's own addresses. The rest of the kernel's region is
// mapped with 2 MiB pages, one after another, from directMap on.
type pageTables struct {
	root      uint64 // physical address: tables lie one after another
	virtBase  uint64
	leafCount uint64
	leaves    []byte // entries of the leaf tables
}

func newPageTables(virtBase, directMap, regionSize uint64) (*pageTables, error) {
	t := &pageTables{virtBase: virtBase}
	n := (directMap - virtBase) / pageSize
	t.leafCount = (n + entriesPerTable - 1) / entriesPerTable
	if tableIndex(virtBase, 1)+t.leafCount+(regionSize+largePage-1)/largePage > entriesPerTable {
		return nil, fmt.Errorf("SVSM kernel: %d bytes of addresses and the kernel's region do not fit in the 1 GiB at 0x%x", directMap-virtBase, virtBase)
	}
	if tableIndex(virtBase, 3) == selfMapIndex {
		return nil, fmt.Errorf("SVSM kernel: address 0x%x is where the page tables are mapped", virtBase)
	}
	t.leaves = make([]byte, n*8)
	return t, nil
}

// pages is the number of tables.
func (t *pageTables) pages() uint64 { return t.leafCount + 3 }

// mapRange maps whole pages.
func (t *pageTables) mapRange(vaddr, size, paddr, flags uint64) error {
	at := (vaddr - t.virtBase) / pageSize * 8
	if vaddr < t.virtBase || at+size/pageSize*8 > uint64(len(t.leaves)) {
		return fmt.Errorf("SVSM kernel: 0x%x bytes at 0x%x lie outside of the kernel's addresses", size, vaddr)
	}
	for end := paddr + size; paddr < end; paddr += pageSize {
		le.PutUint64(t.leaves[at:], paddr|flags)
		at += 8
	}
	return nil
}

// upper returns the three upper tables.
func (t *pageTables) upper(regionStart, regionSize uint64) (top, pdpt, pd []byte) {
	put := func(table []byte, index, entry uint64) { le.PutUint64(table[index*8:], entry) }
	top, pdpt, pd = make([]byte, pageSize), make([]byte, pageSize), make([]byte, pageSize)
	put(top, selfMapIndex, t.root|pteSelfMap)
	put(top, tableIndex(t.virtBase, 3), t.root+pageSize|pteTable)
	put(pdpt, tableIndex(t.virtBase, 2), t.root+2*pageSize|pteTable)
	first := tableIndex(t.virtBase, 1)
	for i := range t.leafCount {
		put(pd, first+i, t.root+(3+i)*pageSize|pteTable)
	}
	for i := range (regionSize + largePage - 1) / largePage {
		put(pd, first+t.leafCount+i, regionStart+i*largePage|pteRWLarge)
	}
	return top, pdpt, pd
}
