package svsmimg

// Structures that COCONUT-SVSM's boot loader and kernel read (boot/defs/src of
// COCONUT-SVSM, August 2026). Little-endian; fields in the order of memory,
// without padding.

// bootParams is BootParamBlock: a measured page that says where the unmeasured
// parameters lie.
type bootParams struct {
	areaSize, generalAt, madtAt, madtSize, dtAt, dtSize, memoryMapAt, guestContextAt uint32

	serialPort                                               uint16
	alternateInjection, qemuTestDevice, testIO, vmsaInKernel bool

	firmware                     firmwareInfo
	kernelBase                   uint64
	kernelMinSize, kernelMaxSize uint32
}

const (
	bootParamsFirmware = 40 // offset of the firmwareInfo
	bootParamsKernel   = bootParamsFirmware + firmwareInfoSize
	bootParamsSize     = bootParamsKernel + 16
)

func (p *bootParams) encode() []byte {
	b := make([]byte, 0, bootParamsSize)
	for _, v := range []uint32{p.areaSize, p.generalAt, p.madtAt, p.madtSize, p.dtAt, p.dtSize, p.memoryMapAt, p.guestContextAt} {
		b = le.AppendUint32(b, v)
	}
	b = le.AppendUint16(b, p.serialPort)
	for _, v := range []bool{p.alternateInjection, p.qemuTestDevice, p.testIO, p.vmsaInKernel} {
		b = append(b, flag(v))
	}
	b = append(b, 0, 0)
	b = append(b, p.firmware.encode()...)
	b = le.AppendUint64(b, p.kernelBase)
	b = le.AppendUint32(b, p.kernelMinSize)
	return le.AppendUint32(b, p.kernelMaxSize)
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// maxPrevalidated is how many ranges of memory GuestFwInfoBlock has room for.
const maxPrevalidated = 8

// firmwareInfo is GuestFwInfoBlock: what the SVSM must know of the firmware that it
// starts.
type firmwareInfo struct {
	start, size                    uint32
	memoryMapPrevalidated          bool
	secrets, caa, cpuid            uint32
	memoryMapAddress, memoryMapLen uint32
	prevalidated                   []memoryRange
}

type memoryRange struct{ base, size uint32 }

const (
	firmwareInfoVTOM = 8 // offset of the vTOM
	firmwareInfoSize = 112
)

func (i *firmwareInfo) encode() []byte {
	b := make([]byte, 0, firmwareInfoSize)
	b = le.AppendUint32(b, i.start)
	b = le.AppendUint32(b, i.size)
	b = le.AppendUint64(b, 0)                       // vTOM, Hyper-V's
	b = append(b, 0, flag(i.memoryMapPrevalidated)) // not in low memory
	b = append(b, make([]byte, 6)...)               // reserved
	for _, v := range []uint32{i.secrets, i.caa, i.cpuid, i.memoryMapAddress, i.memoryMapLen, uint32(len(i.prevalidated))} {
		b = le.AppendUint32(b, v)
	}
	for _, r := range i.prevalidated {
		b = le.AppendUint32(b, r.base)
		b = le.AppendUint32(b, r.size)
	}
	return b[:firmwareInfoSize]
}

// launchInfo is KernelLaunchInfo, which the SVSM's kernel finds by its initial
// stack.
type launchInfo struct {
	regionStart, regionEnd, heapOffset, heapPages uint64
	virtStart, directMap, fsStart, fsEnd          uint64
	bldrStart, bldrEnd, cpuid, secrets            uint64
	idt, bootParams, symtab, symtabLen            uint64
	strtab, strtabLen, vtom, pageTable            uint64
	apStartContext                                uint32
	serialPort                                    uint16
	vmsaInHeap, alternateInjection                bool
}

func (l *launchInfo) encode() []byte {
	var b []byte
	for _, v := range []uint64{
		l.regionStart, l.regionEnd, l.heapOffset, l.heapPages, l.virtStart, l.directMap, l.fsStart, l.fsEnd,
		l.bldrStart, l.bldrEnd, l.cpuid, l.secrets, l.idt, l.bootParams, l.symtab, l.symtabLen,
		l.strtab, l.strtabLen, l.vtom, l.pageTable,
	} {
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, l.apStartContext)
	b = le.AppendUint16(b, l.serialPort)
	return append(b, flag(l.vmsaInHeap), flag(l.alternateInjection))
}

// loaderInfo is BldrLaunchInfo, at the top of the boot loader's stack.
type loaderInfo struct {
	kernelPDPT, kernelLaunchInfo, kernelEntry, kernelStack, kernelPT, kernelPTPages, mapVaddr uint64
	ptStart, ptEnd, ptRoot, cpuid                                                             uint32
	kernelPML4E, apStartContext                                                               uint32
}

const loaderInfoSize = 88

func (l *loaderInfo) encode() []byte {
	var b []byte
	for _, v := range []uint64{l.kernelPDPT, l.kernelLaunchInfo, l.kernelEntry, l.kernelStack, l.kernelPT, l.kernelPTPages, l.mapVaddr} {
		b = le.AppendUint64(b, v)
	}
	// Platform type and C-bit position are the boot loader's to fill in.
	for _, v := range []uint32{l.ptStart, l.ptEnd, l.ptRoot, l.cpuid, 0, 0, l.kernelPML4E, l.apStartContext} {
		b = le.AppendUint32(b, v)
	}
	return b
}

// cpuidLeaves are the leaves that the SVSM wants the AMD-SP to check: EAX and ECX.
var cpuidLeaves = [][2]uint32{
	{0x8000001f}, {0}, {1}, {2}, {4}, {4, 1}, {4, 2}, {4, 3}, {5}, {6}, {7}, {7, 1}, {0xb}, {0xb, 1}, {0xd, 0}, {0xd, 1}, {0xd, 2},
	{0x80000000}, {0x80000001}, {0x80000002}, {0x80000003}, {0x80000004}, {0x80000005}, {0x80000006}, {0x80000007}, {0x80000008},
	{0x8000000a}, {0x80000019}, {0x8000001a}, {0x8000001d}, {0x8000001d, 1}, {0x8000001d, 2}, {0x8000001d, 3}, {0x8000001e},
}

// cpuidPage is the CPUID page that asks for them (SNP ABI 56860, CPUID page: a
// count, and entries of 48 bytes).
func cpuidPage() []byte {
	const header, entry = 16, 48
	page := make([]byte, pageSize)
	le.PutUint32(page, uint32(len(cpuidLeaves)))
	for i, l := range cpuidLeaves {
		le.PutUint32(page[header+i*entry:], l[0])
		le.PutUint32(page[header+i*entry+4:], l[1])
	}
	return page
}
