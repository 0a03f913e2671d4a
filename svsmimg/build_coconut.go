package svsmimg

import (
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"slices"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

// The layout of COCONUT-SVSM's igvmbuilder of August 2026 for QEMU
// (tools/igvmbuilder/src/gpa_map.rs, boot/bootimg/src). Addresses that are not here
// follow from the sizes of the inputs.
const (
	bldrStackSize   = 0x6000
	bldrTables      = 4
	bldrMapVaddr    = 4 << 30 // where the boot loader maps pages: behind its identity map
	kernelRegion    = 0x08000000
	kernelRegionLen = 16 << 20
	kernelStack     = 8 * pageSize
	kernelStackTop  = 24 // what the initial stack holds
)

// The parameter area: pages after the measured parameter block.
const (
	paramGeneral   = 1 * pageSize
	paramMADT      = 2 * pageSize
	paramMemoryMap = 3 * pageSize
	paramDT        = 4 * pageSize
	paramSize      = 5 * pageSize

	areaGeneral   = 0 // indices of the parameter areas
	areaMemoryMap = 1
	areaMADT      = 2
	areaDT        = 3

	generalVPCount     = 0 // offsets in the general area
	generalEnvironment = 4
)

// coconutInputs are the files that an image is put together from.
type coconutInputs struct {
	bootLoader, kernel, filesystem, firmware []byte
}

// A coconut is an image in the making.
type coconut struct {
	b        *builder
	r        *Recipe
	in       *coconutInputs
	mask     uint32
	kernel   *kernelImage
	heapNext uint64 // pages taken of the kernel's heap
	heapBase uint64 // physical address
	direct   uint64 // virtual address of the kernel's region
	tables   *pageTables
}

func (r *Recipe) coconut(in *coconutInputs) (*File, error) {
	c := &coconut{r: r, in: in}
	var err error
	if c.kernel, err = parseKernel(in.kernel); err != nil {
		return nil, err
	}
	version := uint32(1)
	if r.onFor("snp") {
		c.mask |= maskSNP
	}
	if r.onFor("native") {
		c.mask, version = c.mask|maskNative, 2
	}
	c.b = newBuilder(version)
	params, err := c.params()
	if err != nil {
		return nil, err
	}
	highest := uint8(0)
	if in.firmware != nil {
		highest = 2
	}
	if c.mask&maskSNP != 0 {
		c.b.add(&Platform{Mask: maskSNP, HighestVTL: highest, Platform: PlatformSNP, Version: 1})
	}
	if c.mask&maskNative != 0 {
		c.b.add(&Platform{Mask: maskNative, Platform: PlatformNative, Version: 1})
	}
	if c.mask&maskSNP != 0 {
		c.b.add(&GuestPolicy{Policy: r.policy(), Mask: maskSNP})
	}
	c.b.add(&RequiredMemory{GPA: kernelRegion, Mask: c.mask, Bytes: kernelRegionLen})
	// Pages come last, in the order of their addresses; the parameters' place is
	// known when the kernel's heap has been filled.
	at := len(c.b.f.Headers)
	if err := c.pages(params); err != nil {
		return nil, err
	}
	pages := slices.Clone(c.b.f.Headers[at:])
	c.b.f.Headers = c.b.f.Headers[:at]
	c.parameters()
	slices.SortStableFunc(pages, func(a, b Header) int { return cmp.Compare(a.(*PageData).GPA, b.(*PageData).GPA) })
	c.b.f.Headers = append(c.b.f.Headers, pages...)
	c.vmsa()
	return c.b.file()
}

// bldr is where the parts of the boot loader lie.
type bldrLayout struct{ stack, stackEnd, tables, tablesEnd, cpuid, end uint64 }

func (c *coconut) bldr() bldrLayout {
	var l bldrLayout
	l.stack = bldrBase + alignUp(uint64(len(c.in.bootLoader)), pageSize)
	l.stackEnd = l.stack + bldrStackSize
	l.tables = l.stackEnd
	l.tablesEnd = l.tables + bldrTables*pageSize
	l.cpuid = l.tablesEnd
	l.end = l.cpuid + pageSize
	return l
}

func (c *coconut) vmsaInKernel() bool { return c.r.VMSA == vmsaGuestMemory }

// params is the measured parameter block.
func (c *coconut) params() (*bootParams, error) {
	var errs []error
	bldr := c.bldr()
	if len(c.in.bootLoader) == 0 || bldr.end > filesystemBase {
		errs = append(errs, fmt.Errorf("boot loader: found %d bytes, expected 1 to %d", len(c.in.bootLoader), filesystemBase-bldrBase-bldrStackSize-(bldrTables+1)*pageSize))
	}
	if end := filesystemBase + alignUp(uint64(len(c.in.filesystem)), pageSize); end > kernelRegion {
		errs = append(errs, fmt.Errorf("filesystem: found %d bytes, expected at most %d", len(c.in.filesystem), kernelRegion-filesystemBase))
	}
	p := &bootParams{
		areaSize: paramSize, generalAt: paramGeneral, madtAt: paramMADT, madtSize: pageSize, dtAt: paramDT, dtSize: pageSize, memoryMapAt: paramMemoryMap,
		serialPort: comPorts[max(c.r.ConsolePort, 1)-1], alternateInjection: c.r.AlternateInjection,
		qemuTestDevice: true, testIO: true, vmsaInKernel: c.vmsaInKernel(),
		kernelBase: kernelRegion, kernelMinSize: kernelRegionLen, kernelMaxSize: kernelRegionLen,
	}
	if c.in.firmware != nil {
		info, err := newFirmwareInfo(c.in.firmware)
		if err != nil {
			errs = append(errs, err)
		} else {
			p.firmware = *info
		}
	}
	return p, errors.Join(errs...)
}

// newFirmwareInfo tells the SVSM of an OVMF image what its metadata says.
func newFirmwareInfo(firmware []byte) (*firmwareInfo, error) {
	img, err := ovmf.Parse(firmware)
	if err != nil {
		return nil, err
	}
	if err := img.CheckSNP(); err != nil {
		return nil, err
	}
	meta, err := igvmMetadata(img)
	if err != nil {
		return nil, err
	}
	i := &firmwareInfo{start: uint32(img.GPA()), size: img.Size}
	// The table is read from its end, and the order of ranges is measured.
	sev := slices.IndexFunc(img.Table, func(e ovmf.Entry) bool { return e.GUID == guidSEVMetadata })
	igvm := slices.IndexFunc(img.Table, func(e ovmf.Entry) bool { return e.GUID == guidIGVM })
	steps := []func() error{func() error { return i.addSEV(img) }, func() error { return i.addIGVM(meta) }}
	if igvm > sev {
		slices.Reverse(steps)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return i, i.check()
}

func (i *firmwareInfo) addSEV(img *ovmf.Image) error {
	for _, s := range img.Sections {
		switch s.Type {
		case ovmf.SectionSecMem, ovmf.SectionKernelHashes:
			if err := i.prevalidate(s.GPA, s.Size); err != nil {
				return err
			}
		case ovmf.SectionSecrets:
			i.secrets = s.GPA
		case ovmf.SectionCPUID:
			i.cpuid = s.GPA
		case ovmf.SectionSVSMCAA:
			i.caa = s.GPA
		}
	}
	return nil
}

func (i *firmwareInfo) addIGVM(meta []igvmSection) error {
	var area uint32
	for _, s := range meta {
		switch s.kind {
		case igvmParamArea:
			area = s.start
		case igvmMemoryMap:
			i.memoryMapAddress, i.memoryMapLen, i.memoryMapPrevalidated = area+s.start, s.size, true
			continue
		case igvmHOBArea:
		default:
			continue
		}
		if err := i.prevalidate(s.start, s.size); err != nil {
			return err
		}
	}
	return nil
}

// prevalidate adds a range that the SVSM gives the firmware ready for use. A range
// that touches a known one lengthens it.
func (i *firmwareInfo) prevalidate(base, size uint32) error {
	end := uint64(base) + uint64(size)
	for n := range i.prevalidated {
		r := &i.prevalidated[n]
		if rEnd := uint64(r.base) + uint64(r.size); uint64(base) <= rEnd && end >= uint64(r.base) {
			start := min(r.base, base)
			r.base, r.size = start, uint32(max(end, rEnd)-uint64(start))
			return nil
		}
	}
	if len(i.prevalidated) == maxPrevalidated {
		return fmt.Errorf("firmware: found more than %d ranges of memory that it wants at launch", maxPrevalidated)
	}
	i.prevalidated = append(i.prevalidated, memoryRange{base, size})
	return nil
}

func (i *firmwareInfo) check() error {
	if i.start < 3<<30 {
		return fmt.Errorf("firmware: found 0x%x bytes, expected at most 1 GiB below 4 GiB", i.size)
	}
	for n, a := range i.prevalidated {
		for _, b := range i.prevalidated[:n] {
			if uint64(a.base) < uint64(b.base)+uint64(b.size) && uint64(b.base) < uint64(a.base)+uint64(a.size) {
				return fmt.Errorf("firmware: ranges 0x%x+0x%x and 0x%x+0x%x of memory that it wants at launch overlap", a.base, a.size, b.base, b.size)
			}
		}
	}
	return nil
}

// heap takes pages of the kernel's heap, which follows the kernel in its region,
// and returns their physical and virtual address.
func (c *coconut) heap(pages uint64) (paddr, vaddr uint64, err error) {
	limit := uint64(kernelRegionLen/pageSize) - c.kernel.pages
	if c.vmsaInKernel() {
		limit--
	}
	if pages > limit-c.heapNext {
		return 0, 0, fmt.Errorf("SVSM kernel: with page tables and symbols it takes more than the %d bytes of its region", kernelRegionLen)
	}
	offset := (c.kernel.pages + c.heapNext) * pageSize
	c.heapNext += pages
	return kernelRegion + offset, c.direct + offset, nil
}

// heapData takes as many pages as data needs, and fills them.
func (c *coconut) heapData(data []byte) (paddr, vaddr uint64, err error) {
	paddr, vaddr, err = c.heap((uint64(len(data)) + pageSize - 1) / pageSize)
	if err == nil {
		c.b.pages(paddr, c.mask, data)
	}
	return paddr, vaddr, err
}

// pages adds everything that is loaded. What the kernel's heap holds, and in which
// order, is measured.
func (c *coconut) pages(params *bootParams) error {
	k := c.kernel
	if k.pages >= kernelRegionLen/pageSize {
		return fmt.Errorf("SVSM kernel: found 0x%x bytes, expected less than its region, 0x%x", k.pages*pageSize, kernelRegionLen)
	}
	stackBase := k.virtBase + k.virtLen + pageSize // after a guard page
	idt := stackBase + kernelStack
	c.direct = alignUp(k.virtBase+k.virtLen+kernelStack+2*pageSize, largePage)
	c.heapBase = kernelRegion + k.pages*pageSize
	var err error
	if c.tables, err = newPageTables(k.virtBase, c.direct, kernelRegionLen); err != nil {
		return err
	}
	var tablesVaddr uint64
	if c.tables.root, tablesVaddr, err = c.heap(c.tables.pages()); err != nil {
		return err
	}
	if err := c.segments(); err != nil {
		return err
	}
	stack, _, err := c.heap(kernelStack / pageSize)
	if err != nil {
		return err
	}
	idtPage, _, err := c.heap(1)
	if err != nil {
		return err
	}
	if err := errors.Join(c.tables.mapRange(stackBase, kernelStack, stack, pteRW), c.tables.mapRange(idt, pageSize, idtPage, pteRW)); err != nil {
		return err
	}
	paramsAt, paramsVaddr, err := c.heap(paramSize / pageSize)
	if err != nil {
		return err
	}
	c.b.page(paramsAt, c.mask, DataNormal, params.encode())
	_, cpuidVaddr, err := c.heap(1)
	if err != nil {
		return err
	}
	secrets, secretsVaddr, err := c.heap(1)
	if err != nil {
		return err
	}
	info := &launchInfo{
		regionStart: kernelRegion, regionEnd: kernelRegion + kernelRegionLen, heapOffset: c.heapBase - kernelRegion,
		virtStart: k.virtBase, directMap: c.direct, fsStart: filesystemBase, fsEnd: filesystemBase + uint64(len(c.in.filesystem)),
		bldrStart: bldrBase, bldrEnd: c.bldr().end, cpuid: cpuidVaddr, secrets: secretsVaddr, idt: idt, bootParams: paramsVaddr,
		pageTable: tablesVaddr, apStartContext: uint32(c.bldr().stack), serialPort: params.serialPort,
		vmsaInHeap: c.vmsaInKernel(), alternateInjection: c.r.AlternateInjection,
	}
	if len(k.symtab) > 0 {
		info.symtabLen = uint64(len(k.symtab))
		if _, info.symtab, err = c.heapData(k.symtab); err != nil {
			return err
		}
	}
	if k.strtab != nil {
		info.strtabLen = uint64(len(k.strtab))
		if _, info.strtab, err = c.heapData(k.strtab); err != nil {
			return err
		}
	}
	top, pdpt, pd := c.tables.upper(kernelRegion, kernelRegionLen)
	for i, table := range [][]byte{top, pdpt, pd} {
		c.b.page(c.tables.root+uint64(i)*pageSize, c.mask, DataNormal, table)
	}
	c.b.pages(c.tables.root+3*pageSize, c.mask, c.tables.leaves)
	infoAt, infoVaddr, err := c.heap(1)
	if err != nil {
		return err
	}
	info.heapPages = c.heapNext
	c.b.page(infoAt, c.mask, DataNormal, info.encode())

	// The initial stack: its last words lead the kernel to everything else.
	c.b.empty(stack, kernelStack-pageSize, c.mask, DataNormal)
	words := make([]byte, pageSize)
	for i, v := range []uint64{c.tables.root, infoVaddr, stackBase} {
		le.PutUint64(words[pageSize-kernelStackTop+8*i:], v)
	}
	c.b.page(stack+kernelStack-pageSize, c.mask, DataNormal, words)

	c.bootLoaderPages(&loaderInfo{
		kernelPDPT: c.tables.root + pageSize, kernelLaunchInfo: infoVaddr, kernelEntry: k.entry,
		kernelStack: stackBase + kernelStack - kernelStackTop, kernelPT: c.tables.root, kernelPTPages: c.tables.pages(),
		mapVaddr: bldrMapVaddr, kernelPML4E: uint32(tableIndex(k.virtBase, 3)),
	})
	c.b.pages(filesystemBase, c.mask, c.in.filesystem)
	if c.in.firmware != nil {
		c.b.pages(top4G-uint64(len(c.in.firmware)), c.mask, c.in.firmware)
	}
	if c.mask&maskSNP != 0 {
		c.b.page(c.bldr().cpuid, maskSNP, DataCPUID, cpuidPage())
		c.b.empty(secrets, pageSize, maskSNP, DataSecrets)
	}
	return nil
}

// segments loads the kernel: its segments one after another, without the gaps that
// they have in virtual memory.
func (c *coconut) segments() error {
	at := uint64(kernelRegion)
	for _, s := range c.kernel.segments {
		flags := uint64(pteRO)
		switch {
		case s.flags&elf.PF_X != 0:
			flags = pteExec
		case s.flags&elf.PF_W != 0:
			flags = pteRW
		}
		if err := c.tables.mapRange(s.vaddr, s.memory, at, flags); err != nil {
			return err
		}
		c.b.pages(at, c.mask, s.data)
		filled := alignUp(uint64(len(s.data)), pageSize)
		c.b.empty(at+filled, s.memory-filled, c.mask, DataNormal)
		at += s.memory
	}
	return nil
}

// bootLoaderPages adds the boot loader, its stack and its page tables: an identity
// map of 4 GiB with pages of 1 GiB, and an empty table behind it.
func (c *coconut) bootLoaderPages(info *loaderInfo) {
	l := c.bldr()
	c.b.pages(bldrBase, c.mask, c.in.bootLoader)
	info.ptStart, info.ptEnd, info.ptRoot = uint32(l.tables), uint32(l.tablesEnd), uint32(l.tablesEnd-pageSize)
	info.cpuid, info.apStartContext = uint32(l.cpuid), uint32(l.stack)
	c.b.empty(l.stack, bldrStackSize-pageSize, c.mask, DataNormal)
	top := make([]byte, pageSize)
	copy(top[pageSize-loaderInfoSize:], info.encode())
	c.b.page(l.stackEnd-pageSize, c.mask, DataNormal, top)
	var tables [bldrTables][pageSize]byte
	for i := range uint64(4) {
		le.PutUint64(tables[2][8*i:], i<<30|pteTable|pteLarge)
	}
	le.PutUint64(tables[2][8*4:], l.tables+pageSize|pteTable)
	le.PutUint64(tables[1][:], l.tables|pteTable)
	le.PutUint64(tables[3][:], l.tables+2*pageSize|pteTable)
	for i := range tables {
		c.b.page(l.tables+uint64(i)*pageSize, c.mask, DataNormal, tables[i][:])
	}
}

// paramsAt is where the parameter block lies: the heap holds page tables, stack
// and IDT before it.
func (c *coconut) paramsAt() uint64 {
	return c.heapBase + (c.tables.pages()+kernelStack/pageSize+1)*pageSize
}

// parameters adds the parameter areas, what the loader writes into them, and their
// places.
func (c *coconut) parameters() {
	for _, i := range []uint32{areaMemoryMap, areaMADT, areaDT, areaGeneral} {
		c.b.add(&ParameterArea{Bytes: pageSize, Index: i})
	}
	c.b.add(&Parameter{Kind: TypeVPCount, Index: areaGeneral, Offset: generalVPCount})
	c.b.add(&Parameter{Kind: TypeEnvironmentInfo, Index: areaGeneral, Offset: generalEnvironment})
	c.b.add(&Parameter{Kind: TypeMADT, Index: areaMADT})
	if c.r.DeviceTree != "off" {
		c.b.add(&Parameter{Kind: TypeDeviceTree, Index: areaDT})
	}
	c.b.add(&Parameter{Kind: TypeMemoryMap, Index: areaMemoryMap})
	at := c.paramsAt()
	for _, p := range []struct {
		offset uint64
		index  uint32
	}{{paramMemoryMap, areaMemoryMap}, {paramMADT, areaMADT}, {paramDT, areaDT}, {paramGeneral, areaGeneral}} {
		c.b.add(&ParameterInsert{GPA: at + p.offset, Mask: c.mask, Index: p.index})
	}
	if c.mask&maskNative != 0 {
		c.b.context(0, maskNative, c.nativeContext().Page())
	}
}

// Registers that the boot loader starts with (tools/igvmbuilder/src/context.rs).
const (
	startCode32  = 0xc09b // attributes of descriptors: 32-bit code
	startData    = 0xa093
	startLimit   = 0xffffffff
	startCR0     = 0x80000031
	startCR0Off  = 0x80000000 // paging, which a 32-bit start has off
	startCR4     = 0x60
	startEFER    = 0xd00
	startEFEROff = 0x500 // long mode
	startPAT     = 0x0007040600070406
	startSNP     = 1 // the platform, in RAX

	// coconutFeatures are SNPActive, RestrictedInjection and DebugSwap.
	coconutFeatures = measure.FeatureSNPActive | measure.FeatureRestrictedInjection | measure.FeatureDebugSwap
)

// entry skips the jump of vCPUs that are started by SIPI.
func (c *coconut) entry() (rip, rsp, cr3 uint64) {
	l := c.bldr()
	return bldrBase + 2, l.stackEnd - loaderInfoSize, l.tablesEnd - pageSize
}

func (c *coconut) nativeContext() *NativeContext {
	n := &NativeContext{
		CodeSelector: 8, CodeAttributes: startCode32, CodeLimit: startLimit, DataSelector: 0x10, DataAttributes: startData, DataLimit: startLimit,
		CR0: startCR0, CR4: startCR4, EFER: startEFER, RFLAGS: rflagsAlways,
	}
	n.RIP, n.RSP, n.CR3 = c.entry()
	return n
}

// vmsa adds the boot vCPU's VMSA, as the last directive: hosts differ in whether
// they measure it there or at the end.
func (c *coconut) vmsa() {
	if c.mask&maskSNP == 0 {
		return
	}
	// A VMSA's 12 attribute bits leave out bits 8 to 11 of a descriptor's.
	attrib := func(a uint16) uint16 { return a&0xff | a>>4&0xf00 }
	data := measure.Segment{Selector: 0x10, Attrib: attrib(startData), Limit: startLimit}
	v := &measure.VMSA{
		CS: measure.Segment{Selector: 8, Attrib: attrib(startCode32), Limit: startLimit},
		DS: data, ES: data, SS: data, FS: data, GS: data,
		EFER: startEFER&^startEFEROff | eferSVME, CR0: startCR0 &^ startCR0Off, CR4: startCR4, RFLAGS: rflagsAlways,
		PAT: startPAT, XCR0: 1, RAX: startSNP, SEVFeatures: coconutFeatures,
	}
	v.RIP, v.RSP, v.CR3 = c.entry()
	if c.r.SEVFeatures != nil {
		v.SEVFeatures = uint64(*c.r.SEVFeatures)
	}
	gpa := uint64(measure.VMSAGPA)
	if c.vmsaInKernel() {
		gpa = kernelRegion + kernelRegionLen - pageSize
	}
	c.b.context(gpa, maskSNP, v.Page())
}
