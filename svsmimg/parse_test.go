package svsmimg

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
	"github.com/evtpm/evtpm/ovmf/ovmftest"
)

// vmsaPage is a VMSA as KVM makes it after a reset.
func vmsaPage() []byte {
	v := must(measure.VCPU{Signature: 0x800f12, Features: measure.FeatureSNPActive, EIP: measure.ResetEIP}.VMSA())
	return v.Page()
}

// small builds a small image for SEV_SNP: policy, parameters, a few pages of every
// kind, firmware at 4 GiB, one VMSA.
func small(change ...func(*builder)) *File {
	b := newBuilder(1)
	b.add(&Platform{Mask: maskSNP, HighestVTL: 2, Platform: PlatformSNP, Version: 1})
	b.add(&GuestPolicy{Policy: policyDefault, Mask: maskSNP})
	b.add(&ParameterArea{Bytes: pageSize, Index: 7})
	b.add(&Parameter{Kind: TypeVPCount, Index: 7, Offset: 8})
	b.add(&ParameterInsert{GPA: 0x5000, Mask: maskSNP, Index: 7})
	b.pages(0x10000, maskSNP, filler(3*pageSize, 1))
	b.empty(0x20000, 2*pageSize, maskSNP, DataNormal)
	b.empty(0x30000, pageSize, maskSNP, DataSecrets)
	b.page(0x31000, maskSNP, DataCPUID, cpuidPage())
	fw := firmware(64<<10, 3)
	b.pages(top4G-uint64(len(fw)), maskSNP, fw)
	b.context(measure.VMSAGPA, maskSNP, vmsaPage())
	for _, c := range change {
		c(b)
	}
	f := b.f
	return &f
}

// encoded is a file's bytes, without a look at what it says.
func encoded(f *File) []byte {
	fixed := must(f.fixedSize())
	size := 0
	for _, h := range f.Headers {
		size += headerContent + int(alignUp(uint64(sizeOf(h)), headerAlign))
	}
	out := make([]byte, fixed+size, fixed+size+len(f.Data))
	copy(out, magic)
	le.PutUint32(out[fixedVersion:], f.Version)
	le.PutUint32(out[fixedHeadersAt:], uint32(fixed))
	le.PutUint32(out[fixedHeadersSize:], uint32(size))
	le.PutUint32(out[fixedTotalSize:], uint32(fixed+size+len(f.Data)))
	if f.Version == 2 {
		le.PutUint32(out[fixedPageSize:], pageSize)
	}
	at := fixed
	for _, h := range f.Headers {
		le.PutUint32(out[at:], uint32(h.Type()))
		le.PutUint32(out[at+4:], uint32(sizeOf(h)))
		encode(h, out[at+8:at+8+sizeOf(h)], uint32(fixed+size))
		at += headerContent + int(alignUp(uint64(sizeOf(h)), headerAlign))
	}
	out = append(out, f.Data...)
	seal(out)
	return out
}

// seal makes a file's checksum right.
func seal(data []byte) {
	fixed := fixedSizeV1
	if data[fixedVersion] == 2 {
		fixed = fixedSizeV2
	}
	end := min(int(le.Uint32(data[fixedHeadersAt:]))+int(le.Uint32(data[fixedHeadersSize:])), len(data))
	h := bytes.Clone(data[:fixed])
	le.PutUint32(h[fixedChecksum:], 0)
	le.PutUint32(data[fixedChecksum:], crc32.Update(crc32.ChecksumIEEE(h), crc32.IEEETable, data[fixed:max(end, fixed)]))
}

// refused parses a file that must be refused, for a reason that contains words.
func refused(t *testing.T, data []byte, words string) {
	t.Helper()
	_, err := Parse(data)
	if err == nil || !strings.Contains(err.Error(), words) {
		t.Errorf("found error %v, expected one with %q", err, words)
	}
}

// TestFixtures rebuilds the IGVM files of a launch of svsm.bin that hardware has
// measured: the same bytes, and the digests that the hardware gave (2 and 4 vCPUs)
// and sev-snp-measure (1 vCPU).
func TestFixtures(t *testing.T) {
	for _, c := range []struct {
		vcpus             int
		sha, zero, normal string
	}{
		{4, "c8465c133225daf68e7b24bcf26303d531903d777736aa6d0d0a4526aa97cabb",
			"27d154c27b7b359c935e250ec6fee72aa0ae8c1225e3b0e1cf46a9567e938066d7d6f94bbdc4a857818bdb79277a44b2",
			"6609cb03a5c2920b40c0b30841a1e54f70ce9f6cc9c638473e20c1ff7af21a827befe369ceac05e5366a876995ccd5a2"},
		{2, "d8d2319f6ec80f06222ae96567e27c3a370bf7b52573a5729aefafb53dc41ad7",
			"9b94745036aafddf4f7f8b00c7513abb5b7703178cb95aaa57928bd963d68d3bfcb715d6019b9167ee2517b11b0d9be7",
			"f8b7ef61557050b716be719a0fb7e3533a8ce4ee7ea3b6876482db654b5e204f96461f0e07f67837b665dff66251fffc"},
		{1, "7291ac60a47ea6e80511e451239ce650c86e422b973acc4c2fd23bcb23dbd62f",
			"35782e6d1b45207504c6d4b267423a2291af6112f53b26eb76fb292619b41b3c9e4312608cfae25ba9d6dbeb7a5b78ae",
			"2018dc1676a76833480c9fb9c70c52dc002d0c0cd391869141fa2137e469252ea686087e4febad88a051ccd8fb93c13a"},
	} {
		data := must(svsmBinFile(t, c.vcpus).Encode())
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != c.sha {
			t.Errorf("%d vCPUs: found a file with SHA-256 %x, expected %s", c.vcpus, sum, c.sha)
		}
		f := must(Parse(data))
		for _, p := range []Profile{ProfileFile, ProfileKVM} {
			for zero, want := range map[bool]string{true: c.zero, false: c.normal} {
				s, err := f.Sequence(SequenceOptions{Profile: p, NativeZero: zero})
				if err != nil {
					t.Fatal(err)
				}
				if d := must(s.LaunchDigest()); d.String() != want {
					t.Errorf("%d vCPUs, %s, native zero %t: found %s, expected %s", c.vcpus, p, zero, d, want)
				}
			}
		}
	}
	// The file that was made elsewhere is the same, and reads the same.
	data := testdata(t, "fixtures/svsm/svsm-epyc-v4-4vcpu.igvm")
	if !bytes.Equal(data, must(svsmBinFile(t, 4).Encode())) {
		t.Error("the fixture's bytes differ from those that were built")
	}
}

// everything is a file with a header of every type.
func everything() *File {
	b := newBuilder(2)
	b.add(&Platform{Mask: maskSNP, HighestVTL: 2, Platform: PlatformSNP, Version: 1, SharedGPABoundary: 1 << 46})
	b.add(&Platform{Mask: maskNative, Platform: PlatformNative, Version: 1})
	b.add(&Platform{Mask: 4, Platform: PlatformTDX, Version: 1})
	b.add(&Platform{Mask: 8, HighestVTL: 2, Platform: PlatformVSM, Version: 1})
	b.add(&Unknown{Kind: 0x42, Content: []byte("early")})
	b.add(&GuestPolicy{Policy: 0xb0000, Mask: maskSNP})
	b.add(&RelocatableRegion{Mask: 8, VPIndex: 0, VTL: 2, Flags: 7, Alignment: 0x2000, GPA: 0x4000, Size: 0x3000, MinGPA: 0x2000, MaxGPA: 0x100000})
	b.add(&PageTableRelocation{Mask: 8, VPIndex: 0, VTL: 2, GPA: 0x9000, Size: 0x3000, UsedSize: 0x1000})
	b.add(&CoRIM{Kind: TypeCoRIMDocument, Mask: maskSNP, Data: b.blob([]byte("a CoRIM document"))})
	b.add(&CoRIM{Kind: TypeCoRIMSignature, Mask: maskSNP, Data: b.blob([]byte("its signature"))})
	b.add(&CCAPolicy{Mask: 8, RequiredZeroes: 1, RequiredOnes: 2, HashAlgorithm: 1, LFAPolicy: 1})
	b.add(&ParameterArea{Bytes: 2 * pageSize, Index: 1, Data: b.blob(filler(2*pageSize, 5))})
	b.add(&ParameterArea{Bytes: pageSize, Index: 0})
	for i, k := range []HeaderType{TypeVPCount, TypeSRAT, TypeMADT, TypeMMIORanges, TypeMemoryMap, TypeCommandLine, TypeSLIT, TypePPTT, TypeDeviceTree, TypeEnvironmentInfo} {
		b.add(&Parameter{Kind: k, Index: 1, Offset: uint32(64 * i), Optional: k == TypeDeviceTree})
	}
	b.add(&ParameterInsert{GPA: 0x100000, Mask: maskSNP | maskNative, Index: 1})
	b.add(&RequiredMemory{GPA: 0x8000000, Mask: maskSNP, Bytes: 0x1000000, Flags: 1})
	b.add(&ErrorRange{GPA: 0x7000, Mask: maskSNP, Bytes: pageSize})
	b.add(&PageData{GPA: 0x200000, Mask: maskSNP, Flags: Page2MiB, Data: b.blob(filler(largePage, 8))})
	b.add(&PageData{GPA: 0x400000, Mask: 0xf, Flags: PageUnmeasured | PageShared, Data: b.blob(filler(pageSize, 9))})
	b.add(&PageData{GPA: 0x401000, Mask: maskSNP, Kind: DataCPUIDXF})
	b.add(&PageData{GPA: 0x402000, Mask: maskSNP, Kind: DataSecrets})
	b.context(measure.VMSAGPA, maskSNP, vmsaPage())
	b.context(0, maskNative, (&NativeContext{RIP: 0xfff0, R15: 4, CodeBase: 0xffff0000, GDTRLimit: 9, DataLimit: 5, EFER: 1}).Page())
	registers := append(le.AppendUint32(nil, 2), filler(2*vbsRegister, 4)...)
	b.context(0, 8, registers)
	b.add(&VBSMeasurement{Mask: 8, Rest: [860]byte(filler(860, 6))})
	key := must(measure.ParsePrivateKeyPEM([]byte(testIDKey)))
	block := &measure.IDBlock{LaunchDigest: measure.Digest{1}, GuestSVN: 3, Policy: 0xb0000}
	b.add(must(NewSNPIDBlock(maskSNP, block, must(measure.SignIDBlock(block, measure.SignOptions{IDKey: key, AuthorKey: key})))))
	b.add(&Unknown{Kind: 0x3ff, Content: filler(13, 2)})
	b.add(&Unknown{Kind: 0x12345, Content: nil})
	return must(b.file())
}

// TestRoundTrip writes and reads a file with every type of header.
func TestRoundTrip(t *testing.T) {
	f := everything()
	seen := make(map[HeaderType]bool)
	for _, h := range f.Headers {
		seen[h.Type()] = true
	}
	for typ := range contentSizes {
		if !seen[typ] {
			t.Errorf("%s is not part of the test", typ)
		}
	}
	data := must(f.Encode())
	if !bytes.Equal(data, encodedOptional(f)) {
		t.Error("two writers differ")
	}
	read, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(f, read, cmp.Comparer(func(a, b []byte) bool { return bytes.Equal(a, b) })); d != "" {
		t.Errorf("what was read differs from what was written (-written +read):\n%s", d)
	}
	if again := must(read.Encode()); !bytes.Equal(again, data) {
		t.Error("what was read is written differently")
	}
}

// encodedOptional is encoded with the optional bits.
func encodedOptional(f *File) []byte {
	data := encoded(f)
	at := must(f.fixedSize())
	for _, h := range f.Headers {
		optional := false
		switch h := h.(type) {
		case *Unknown:
			optional = true
		case *Parameter:
			optional = h.Optional
		}
		if optional {
			le.PutUint32(data[at:], le.Uint32(data[at:])|typeOptional)
		}
		at += headerContent + int(alignUp(uint64(sizeOf(h)), headerAlign))
	}
	seal(data)
	if f.Version == 2 {
		le.PutUint32(data[fixedPageSize:], pageSize)
		seal(data)
	}
	return data
}

// TestCanonical lays out data anew: what nothing refers to goes, what is there
// twice is there once, and the launch stays the same.
func TestCanonical(t *testing.T) {
	f := small()
	want := must(must(f.Sequence(SequenceOptions{})).LaunchDigest())
	loose := *f
	loose.Data = append(slices.Clone(f.Data), filler(3*pageSize, 77)...)
	loose.Headers = slices.Clone(f.Headers)
	for i, h := range loose.Headers {
		if p, ok := h.(*PageData); ok && p.GPA == 0x11000 {
			c := *p
			c.Data = Blob{Offset: uint32(len(loose.Data)), Size: pageSize}
			loose.Data = append(loose.Data, f.Bytes(p.Data)...)
			loose.Headers[i] = &c
		}
	}
	a, b := must(f.Canonical()), must(loose.Canonical())
	if bytes.Equal(must(loose.Encode()), must(f.Encode())) {
		t.Fatal("the test's two files do not differ")
	}
	if !bytes.Equal(must(a.Encode()), must(b.Encode())) {
		t.Error("two files that say the same have different canonical forms")
	}
	if !bytes.Equal(must(must(a.Canonical()).Encode()), must(a.Encode())) {
		t.Error("a canonical form has another canonical form")
	}
	if got := must(must(a.Sequence(SequenceOptions{})).LaunchDigest()); got != want {
		t.Errorf("found launch digest %s, expected %s", got, want)
	}
	none := &File{Version: 1, Headers: []Header{f.Headers[0], &PageData{GPA: 0x1000, Mask: 1}}, Data: []byte{1}}
	if c := must(none.Canonical()); len(c.Data) == 0 {
		t.Error("found a file without file data, which loaders refuse")
	}
}

// TestI14SVSMBin: an svsm.bin whose info entry is missing, or leads out of the
// image, is refused.
func TestI14SVSMBin(t *testing.T) {
	info := ovmftest.Entry{GUID: ovmftest.SVSMInfo, Data: ovmftest.U32(0x1000)}
	image := func(e ...ovmftest.Entry) []byte {
		i := ovmftest.AmdSev()
		i.Entries = append(slices.Clone(i.Entries), e...)
		i.Metadata = ovmftest.Metadata(ovmf.Section{GPA: 0, Size: 0x1000, Type: ovmf.SectionSecrets}, ovmf.Section{GPA: 0x1000, Size: 0x1000, Type: ovmf.SectionCPUID})
		return ovmftest.Build(i)
	}
	fw := must(ovmf.Parse(ovmftest.Build(ovmftest.AmdSev())))
	measureIt := func(data []byte) error {
		s, err := ParseSVSMBin(data)
		if err != nil {
			return err
		}
		_, err = SVSMBinSequence(s, fw, ovmf.SVSMOptions{VarsSize: pageSize, VCPUs: 2, CPUSignature: 0x800f12})
		return err
	}
	if err := measureIt(image(info)); err != nil {
		t.Fatalf("a good image is refused: %v", err)
	}
	for name, c := range map[string]struct {
		data  []byte
		words string
	}{
		"no info":   {image(), "no SVSM info entry"},
		"short":     {image(ovmftest.Entry{GUID: ovmftest.SVSMInfo, Data: []byte{1, 2}}), "expected 4"},
		"beyond":    {image(ovmftest.Entry{GUID: ovmftest.SVSMInfo, Data: ovmftest.U32(0x10000)}), "launch offset 0x10000"},
		"unaligned": {image(ovmftest.Entry{GUID: ovmftest.SVSMInfo, Data: ovmftest.U32(0x123)}), "launch offset 0x123"},
		"truncated": {image(info)[:0x8000], "no table of GUIDs"},
		"IGVM":      {encoded(small()), ""},
	} {
		if err := measureIt(c.data); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: found error %v, expected one with %q", name, err, c.words)
		}
	}
}

// TestI15FixedHeader: magic, version, sizes, architecture, page size and checksum.
func TestI15FixedHeader(t *testing.T) {
	for name, c := range map[string]struct {
		version uint32
		change  func([]byte) []byte
		words   string
	}{
		"magic":          {1, func(d []byte) []byte { d[0] = 'J'; return d }, "not an IGVM file"},
		"empty":          {1, func([]byte) []byte { return nil }, "not an IGVM file"},
		"short":          {1, func(d []byte) []byte { return d[:23] }, "found 23 bytes, expected at least 24"},
		"short 2":        {2, func(d []byte) []byte { return d[:31] }, "found 31 bytes, expected 32"},
		"version 0":      {1, func(d []byte) []byte { d[fixedVersion] = 0; return d }, "found format version 0, expected 1 or 2"},
		"version 3":      {1, func(d []byte) []byte { d[fixedVersion] = 3; return d }, "found format version 3"},
		"headers at":     {1, func(d []byte) []byte { d[fixedHeadersAt] = 32; return d }, "variable headers at offset 32, expected 24"},
		"headers size":   {1, func(d []byte) []byte { d[fixedHeadersSize]++; return d }, "expected a multiple of 8"},
		"headers beyond": {1, func(d []byte) []byte { le.PutUint32(d[fixedHeadersSize:], 0xfffffff8); return d }, "expected them to end before the end of the file"},
		"no file data": {1, func(d []byte) []byte {
			d = d[:fixedSizeV1+int(le.Uint32(d[fixedHeadersSize:]))]
			le.PutUint32(d[fixedTotalSize:], uint32(len(d)))
			return d
		}, "expected them to end before the end of the file"},
		"total":        {1, func(d []byte) []byte { d[fixedTotalSize]++; return d }, "total file size"},
		"longer":       {1, func(d []byte) []byte { return append(d, 0) }, "total file size"},
		"architecture": {2, func(d []byte) []byte { d[fixedArchitecture] = 2; return d }, "found architecture 2"},
		"page size":    {2, func(d []byte) []byte { d[fixedPageSize+1] = 0x20; return d }, "found page size 8192"},
	} {
		f := small()
		f.Version = c.version
		d := c.change(encoded(f))
		if len(d) >= fixedSizeV2 && d[fixedHeadersAt] < 64 && le.Uint32(d[fixedHeadersSize:]) < uint32(len(d)) {
			seal(d)
		}
		t.Run(name, func(t *testing.T) { refused(t, d, c.words) })
	}
	d := encoded(small())
	d[fixedChecksum] ^= 1
	refused(t, d, "found checksum")
	d = encoded(small())
	d[fixedSizeV1+headerContent] ^= 2 // in the first header
	refused(t, d, "the headers were changed")
	if _, err := Parse([]byte("MZ")); !errors.Is(err, ErrNotIGVM) {
		t.Errorf("found error %v, expected ErrNotIGVM", err)
	}
}

// TestI16Truncated: a file that ends early at any 8-byte boundary is refused, also
// where its sizes and checksum have been made to fit.
func TestI16Truncated(t *testing.T) {
	whole := encoded(small())
	headers := fixedSizeV1 + int(le.Uint32(whole[fixedHeadersSize:]))
	for n := 0; n < len(whole); n += 8 {
		if _, err := Parse(whole[:n]); err == nil {
			t.Fatalf("a file of %d bytes is accepted", n)
		}
		if n < fixedSizeV1 {
			continue
		}
		d := bytes.Clone(whole[:n])
		le.PutUint32(d[fixedTotalSize:], uint32(n))
		if n > headers {
			seal(d)
		} else {
			// As many headers as are left, and a byte of file data.
			le.PutUint32(d[fixedHeadersSize:], uint32(n-fixedSizeV1))
			d = append(d, 0)
			le.PutUint32(d[fixedTotalSize:], uint32(len(d)))
			seal(d)
		}
		if f, err := Parse(d); err == nil {
			if _, err = f.Sequence(SequenceOptions{CPUSignature: 1}); err == nil && len(f.contexts(maskSNP)) == 1 {
				t.Fatalf("a file cut to %d bytes and made to fit is accepted", n)
			}
		}
	}
}

// TestI17Headers: variable headers of unknown type, wrong length, wrong order, or
// with padding and reserved bytes that hold something.
func TestI17Headers(t *testing.T) {
	first := fixedSizeV1
	for name, c := range map[string]struct {
		change func([]byte)
		words  string
	}{
		"unknown":         {func(d []byte) { le.PutUint32(d[first:], 0x77) }, "required header of a type that is not known"},
		"type 0":          {func(d []byte) { le.PutUint32(d[first:], 0) }, "required header of a type that is not known"},
		"removed type":    {func(d []byte) { le.PutUint32(d[first:], 0x306) }, "required header of a type that is not known"},
		"known optional":  {func(d []byte) { le.PutUint32(d[first:], 1|typeOptional) }, "found marked as optional"},
		"length 0":        {func(d []byte) { le.PutUint32(d[first+4:], 0) }, "found length"},
		"length 15":       {func(d []byte) { le.PutUint32(d[first+4:], 15); d[first+8+15] = 0 }, "found length 15, expected 16"},
		"length 2^32-1":   {func(d []byte) { le.PutUint32(d[first+4:], 0xffffffff) }, "found length 4294967295, expected at most"},
		"length 2^32-8":   {func(d []byte) { le.PutUint32(d[first+4:], 0xfffffff8) }, "found length 4294967288, expected at most"},
		"policy reserved": {func(d []byte) { d[first+24+8+12] = 1 }, "reserved bytes that are not zero"},
	} {
		d := encoded(small())
		c.change(d)
		seal(d)
		t.Run(name, func(t *testing.T) { refused(t, d, c.words) })
	}
	// A directive before a platform, which the section's order forbids.
	f := small()
	f.Headers[1], f.Headers[5] = f.Headers[5], f.Headers[1]
	refused(t, encoded(f), "found in the directive section, expected in the initialization section before it")
	if _, err := f.Encode(); err == nil || !strings.Contains(err.Error(), "directive section") {
		t.Errorf("a file with headers out of order is written: %v", err)
	}
	// Padding after the last header's 20 bytes.
	d := encoded(small())
	d[fixedSizeV1+int(le.Uint32(d[fixedHeadersSize:]))-1] = 1
	seal(d)
	refused(t, d, "padding that is not zero")
	// igvm-tooling pads with the digit 0; it is written back as zeros.
	whole := encoded(small())
	d = bytes.Clone(whole)
	padded := fixedSizeV1 + int(le.Uint32(d[fixedHeadersSize:]))
	copy(d[padded-4:padded], "0000")
	seal(d)
	if f, err := Parse(d); err != nil {
		t.Errorf("padded with digits: %v", err)
	} else if again, err := f.Encode(); err != nil || !bytes.Equal(again, whole) {
		t.Errorf("padded with digits: written as another file, %v", err)
	}
	// 4 bytes after the last header.
	d = encoded(small())
	end := fixedSizeV1 + int(le.Uint32(d[fixedHeadersSize:]))
	le.PutUint32(d[fixedHeadersSize:], uint32(end-fixedSizeV1+8))
	le.PutUint32(d[end:], 0x302|typeOptional)
	le.PutUint32(d[end+4:], 1)
	seal(d)
	refused(t, d, "found length 1, expected at most 0")

	// Reserved bytes of every header that has some.
	all := everything()
	reserved := map[HeaderType][]int{
		TypeGuestPolicy: {12, 15}, TypePageTableRelocation: {7}, TypeCoRIMDocument: {12}, TypeCCAPolicy: {4, 26, 31}, TypePageData: {22, 23},
		TypeVPContext: {18, 19}, TypeRequiredMemory: {20}, TypeSNPIDBlock: {5, 7, idBlockIDKey + 4, idBlockAuthorKey + 7},
	}
	at := fixedSizeV2
	for _, h := range all.Headers {
		for _, r := range reserved[h.Type()] {
			d := encodedOptional(all)
			d[at+headerContent+r] = 1
			seal(d)
			if _, err := Parse(d); err == nil || !strings.Contains(err.Error(), "reserved bytes that are not zero") {
				t.Errorf("%s: byte %d: found error %v, expected one about reserved bytes", h.Type(), r, err)
			}
		}
		delete(reserved, h.Type())
		at += headerContent + int(alignUp(uint64(sizeOf(h)), headerAlign))
	}
	if len(reserved) != 0 {
		t.Errorf("not tested: %v", reserved)
	}
}

// TestI18PageData: data outside of the file, wrong sizes, and more pages than
// there may be, in bounded time and memory.
func TestI18PageData(t *testing.T) {
	page := func(change func(*PageData)) *File {
		return small(func(b *builder) {
			p := &PageData{GPA: 0x50000, Mask: maskSNP, Data: Blob{Offset: 0, Size: pageSize}}
			change(p)
			b.f.Headers = slices.Insert(b.f.Headers, 5, Header(p))
		})
	}
	for name, c := range map[string]struct {
		change func(*PageData)
		words  string
	}{
		"beyond the file": {func(p *PageData) { p.Data.Offset = 1 << 30 }, "expected them within the file data"},
		"half outside":    {func(p *PageData) { p.Data.Offset = uint32(len(small().Data)) - pageSize + 1 }, "expected them within the file data"},
		"in the headers":  {func(p *PageData) { p.Data.Offset = 0xffffff00 }, "expected them within the file data"},
		"unaligned":       {func(p *PageData) { p.GPA = 0x50010 }, "found address 0x50010"},
		"flags":           {func(p *PageData) { p.Flags = 8 }, "found flags 0x8"},
		"type":            {func(p *PageData) { p.Kind = 4 }, "found page data type 4"},
		"no platform":     {func(p *PageData) { p.Mask = 2 }, "names no platform of the file"},
		"mask 0":          {func(p *PageData) { p.Mask = 0 }, "names no platform of the file"},
		"2 MiB unaligned": {func(p *PageData) { p.Flags, p.Data = Page2MiB, Blob{} }, "expected a multiple of 0x200000"},
		"2 MiB of less":   {func(p *PageData) { p.Flags, p.GPA = Page2MiB, 0x400000 }, "found 2097152 bytes of data"},
		"2 MiB secrets":   {func(p *PageData) { p.Flags, p.GPA, p.Kind, p.Data = Page2MiB, 0x400000, DataSecrets, Blob{} }, "SECRETS as a 2 MiB page"},
		"end of space":    {func(p *PageData) { p.GPA, p.Data = 0xfffffffffffff000, Blob{} }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := page(c.change)
			if name == "end of space" {
				if _, err := Parse(encoded(f)); err != nil {
					t.Errorf("the last page is refused: %v", err)
				}
				return
			}
			refused(t, encoded(f), c.words)
		})
	}
	// A size that Encode would have to get wrong.
	f := page(func(p *PageData) { p.Data.Size = 100 })
	if _, err := f.Encode(); err == nil || !strings.Contains(err.Error(), "found 100 bytes of data, expected 4096") {
		t.Errorf("a page of 100 bytes is written: %v", err)
	}

	start := time.Now()
	many := small(func(b *builder) {
		for i := range uint64(MaxPages) {
			b.add(&PageData{GPA: 0x100000000 + i*2*pageSize, Mask: maskSNP})
		}
	})
	refused(t, encoded(many), "pages of guest memory, expected at most")
	refused(t, encoded(small(func(b *builder) {
		for range maxHeaders {
			b.add(&Unknown{Kind: 0x3f0})
		}
	})), "found more than")
	refused(t, encoded(small(func(b *builder) {
		for i := range uint64(MaxPages/512 + 1) {
			b.add(&PageData{GPA: 0x100000000 + i*largePage, Mask: maskSNP, Flags: Page2MiB})
		}
	})), "pages of guest memory, expected at most")
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
}

// TestI19Overlap: memory that is given twice is refused, whatever gives it.
func TestI19Overlap(t *testing.T) {
	for name, h := range map[string]Header{
		"same page":      &PageData{GPA: 0x10000, Mask: maskSNP},
		"inside a run":   &PageData{GPA: 0x12000, Mask: maskSNP, Data: Blob{Size: pageSize}},
		"2 MiB":          &PageData{GPA: 0, Mask: maskSNP, Flags: Page2MiB},
		"parameter area": &PageData{GPA: 0x5000, Mask: maskSNP},
		"VMSA":           &PageData{GPA: measure.VMSAGPA, Mask: maskSNP},
		"firmware":       &PageData{GPA: 0xffffe000, Mask: maskSNP},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, encoded(small(func(b *builder) { b.add(h) })), "overlaps")
		})
	}
	refused(t, encoded(small(func(b *builder) {
		b.add(&ParameterArea{Bytes: 16 * pageSize, Index: 8})
		b.add(&ParameterInsert{GPA: 0x8000, Mask: maskSNP, Index: 8})
	})), "overlaps")
	// Other platforms have memory of their own.
	ok := small(func(b *builder) {
		b.f.Headers = slices.Insert(b.f.Headers, 1, Header(&Platform{Mask: maskNative, Platform: PlatformNative, Version: 1}))
		b.add(&PageData{GPA: 0x10000, Mask: maskNative})
	})
	if _, err := Parse(encoded(ok)); err != nil {
		t.Errorf("a page of another platform is refused: %v", err)
	}
	// Where memory ends, nothing wraps around.
	wrap := small(func(b *builder) {
		b.add(&PageData{GPA: 0xfffffffffffff000, Mask: maskSNP})
		b.add(&PageData{GPA: 0, Mask: maskSNP})
		b.add(&PageData{GPA: 0x1000, Mask: maskSNP})
		b.add(&PageData{GPA: 0xfffffffffffff000, Mask: maskSNP})
	})
	refused(t, encoded(wrap), "at 0xfffffffffffff000 overlaps")
}

// TestI20Platforms: no SEV_SNP platform, two of them, save areas with gaps or of a
// VMPL that does not exist.
func TestI20Platforms(t *testing.T) {
	native := small(func(b *builder) {
		b.f.Headers[0] = &Platform{Mask: maskSNP, Platform: PlatformNative, Version: 1}
		b.f.Headers = b.f.Headers[:len(b.f.Headers)-1]
	})
	f, err := Parse(encoded(native))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Sequence(SequenceOptions{}); err == nil || !strings.Contains(err.Error(), "not for SEV_SNP") {
		t.Errorf("found error %v, expected one about a missing platform", err)
	}
	for name, c := range map[string]struct {
		change func(*builder)
		words  string
	}{
		"two of a type": {func(b *builder) {
			b.f.Headers = slices.Insert(b.f.Headers, 1, Header(&Platform{Mask: 2, Platform: PlatformSNP, Version: 1}))
		}, "SEV_SNP a second time"},
		"two of a mask": {func(b *builder) {
			b.f.Headers = slices.Insert(b.f.Headers, 1, Header(&Platform{Mask: 1, Platform: PlatformNative, Version: 1}))
		}, "another platform has already"},
		"none":     {func(b *builder) { b.f.Headers = b.f.Headers[2:] }, "no SUPPORTED_PLATFORM"},
		"two bits": {func(b *builder) { b.f.Headers[0].(*Platform).Mask = 3 }, "expected exactly one bit"},
		"no bits":  {func(b *builder) { b.f.Headers[0].(*Platform).Mask = 0 }, "expected exactly one bit"},
		"type":     {func(b *builder) { b.f.Headers[0].(*Platform).Platform = 7 }, "platform type 7"},
		"VTL":      {func(b *builder) { b.f.Headers[0].(*Platform).HighestVTL = 1 }, "highest VTL 1"},
		"version":  {func(b *builder) { b.f.Headers[0].(*Platform).Version = 2 }, "platform version 2"},
		"Arm":      {func(b *builder) { b.f.Headers[0].(*Platform).Platform = PlatformCCA }, "another architecture"},
		"native with boundary": {func(b *builder) {
			b.f.Headers = slices.Insert(b.f.Headers, 1, Header(&Platform{Mask: 2, Platform: PlatformNative, Version: 1, SharedGPABoundary: 1}))
		}, "shared GPA boundary 0x1"},
		"vCPU gap": {func(b *builder) {
			b.add(&VPContext{GPA: measure.VMSAGPA, Mask: 1, VPIndex: 2, Data: b.blob(vmsaPage())})
		}, "for vCPU 2 but none for vCPU 1"},
		"vCPU twice": {func(b *builder) { b.add(&VPContext{GPA: measure.VMSAGPA, Mask: 1, Data: b.blob(vmsaPage())}) }, "vCPU 0 a second time"},
		"VMPL 4": {func(b *builder) {
			page := vmsaPage()
			page[vmsaVMPL] = 4
			b.add(&VPContext{GPA: measure.VMSAGPA, Mask: 1, VPIndex: 1, Data: b.blob(page)})
		}, "VMSA of VMPL 4"},
		"no save area": {func(b *builder) { b.add(&VPContext{GPA: measure.VMSAGPA, Mask: 1, VPIndex: 1}) }, "found no data"},
		"VMSA address": {func(b *builder) { b.f.Headers[len(b.f.Headers)-1].(*VPContext).GPA = 0x123 }, "found address 0x123"},
		"two policies": {func(b *builder) {
			b.f.Headers = slices.Insert(b.f.Headers, 2, Header(&GuestPolicy{Policy: 1, Mask: 1}))
		}, "found a second one for a platform"},
		"two ID blocks": {func(b *builder) { b.add(&SNPIDBlock{Mask: 1}); b.add(&SNPIDBlock{Mask: 1}) }, "Multiple ID blocks"},
		"ID block for no SNP": {func(b *builder) {
			b.f.Headers = slices.Insert(b.f.Headers, 1, Header(&Platform{Mask: 2, Platform: PlatformNative, Version: 1}))
			b.add(&SNPIDBlock{Mask: 2})
		}, "expected that of SEV_SNP alone"},
	} {
		t.Run(name, func(t *testing.T) { refused(t, encoded(small(c.change)), c.words) })
	}
	for name, n := range map[string]int{"513 vCPUs": measure.MaxVCPUs + 1, "65536 vCPUs": 1 << 16} {
		t.Run(name, func(t *testing.T) {
			refused(t, encoded(small(func(b *builder) {
				for i := 1; i < n; i++ {
					b.add(&VPContext{GPA: measure.VMSAGPA, Mask: 1, VPIndex: uint16(i), Data: b.blob(vmsaPage())})
				}
			})), "found more than 512")
		})
	}
	two := small(func(b *builder) {
		b.f.Version = 2
		b.f.Headers = slices.Insert(b.f.Headers, 1, Header(&Platform{Mask: 2, Platform: PlatformNative, Version: 1}))
		b.f.Headers[len(b.f.Headers)-1].(*VPContext).Mask = 3
	})
	refused(t, encoded(two), "whose contexts have different forms")
	tdx := small(func(b *builder) {
		b.f.Headers = slices.Insert(b.f.Headers, 1, Header(&Platform{Mask: 2, Platform: PlatformTDX, Version: 1}))
		b.add(&VPContext{Mask: 2, Data: b.blob(vmsaPage())})
	})
	refused(t, encoded(tdx), "found one for TDX")
	nativeContext := func(gpa uint64, page []byte) []byte {
		return encoded(small(func(b *builder) {
			b.f.Headers = slices.Insert(b.f.Headers, 1, Header(&Platform{Mask: 2, Platform: PlatformNative, Version: 1}))
			b.context(gpa, 2, page)
		}))
	}
	refused(t, nativeContext(0x1000, make([]byte, pageSize)), "for NATIVE, expected 0")
	full := make([]byte, pageSize)
	full[nativeContextSize] = 1
	refused(t, nativeContext(0, full), "after the registers that are not zero")
}

// TestParameters: areas, what is written into them, and their places.
func TestParameters(t *testing.T) {
	for name, c := range map[string]struct {
		h     []Header
		words string
	}{
		"no area":          {[]Header{&Parameter{Kind: TypeMADT, Index: 1}}, "no PARAMETER_AREA before it declares"},
		"insert of none":   {[]Header{&ParameterInsert{GPA: 0x6000, Mask: 1, Index: 1}}, "no PARAMETER_AREA before it declares"},
		"after insert":     {[]Header{&Parameter{Kind: TypeMADT, Index: 7}}, "inserted already"},
		"inserted twice":   {[]Header{&ParameterInsert{GPA: 0x6000, Mask: 1, Index: 7}}, "inserted already"},
		"index twice":      {[]Header{&ParameterArea{Bytes: pageSize, Index: 7}}, "index 7 a second time"},
		"not whole pages":  {[]Header{&ParameterArea{Bytes: 100, Index: 8}}, "found 100 bytes"},
		"no bytes":         {[]Header{&ParameterArea{Index: 8}}, "found 0 bytes"},
		"too many bytes":   {[]Header{&ParameterArea{Bytes: 1 << 40, Index: 8}}, "found 1099511627776 bytes"},
		"count at the end": {[]Header{&ParameterArea{Bytes: pageSize, Index: 8}, &Parameter{Kind: TypeVPCount, Index: 8, Offset: pageSize - 3}}, "found offset 0xffd in parameter area 8 of 0x1000 bytes"},
		"MMIO ranges":      {[]Header{&ParameterArea{Bytes: pageSize, Index: 8}, &Parameter{Kind: TypeMMIORanges, Index: 8, Offset: pageSize - 31}}, "found offset 0xfe1"},
		"far offset":       {[]Header{&ParameterArea{Bytes: pageSize, Index: 8}, &Parameter{Kind: TypeMADT, Index: 8, Offset: 0xffffffff}}, "found offset 0xffffffff"},
		"unaligned insert": {[]Header{&ParameterArea{Bytes: pageSize, Index: 8}, &ParameterInsert{GPA: 0x6001, Mask: 1, Index: 8}}, "found 0x1000 bytes at 0x6001"},
		"insert wraps":     {[]Header{&ParameterArea{Bytes: 2 * pageSize, Index: 8}, &ParameterInsert{GPA: 0xfffffffffffff000, Mask: 1, Index: 8}}, "run over the end"},
		"required memory":  {[]Header{&RequiredMemory{GPA: 0x1000, Mask: 1, Bytes: 5}}, "found 0x5 bytes"},
		"required flags":   {[]Header{&RequiredMemory{GPA: 0x1000, Mask: 1, Bytes: pageSize, Flags: 2}}, "found flags 0x2"},
		"error range":      {[]Header{&ErrorRange{GPA: 0x1001, Mask: 1, Bytes: pageSize}}, "found 0x1000 bytes at 0x1001"},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, encoded(small(func(b *builder) {
				for _, h := range c.h {
					b.add(h)
				}
			})), c.words)
		})
	}
	for name, c := range map[string]struct {
		h     Header
		words string
	}{
		"alignment 0":     {&RelocatableRegion{Mask: 1, Size: pageSize}, "found alignment 0x0"},
		"region size":     {&RelocatableRegion{Mask: 1, Alignment: pageSize, Size: 1}, "found 0x1 bytes"},
		"region address":  {&RelocatableRegion{Mask: 1, Alignment: 0x2000, GPA: 0x1000, Size: pageSize}, "expected multiples of the alignment"},
		"tables too many": {&PageTableRelocation{Mask: 1, Size: pageSize, UsedSize: 2 * pageSize}, "0x2000 bytes used of 0x1000"},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, encoded(small(func(b *builder) { b.f.Headers = slices.Insert(b.f.Headers, 1, c.h) })), c.words)
		})
	}
}

// TestManyErrors: all faults are reported at once, up to a bound.
func TestManyErrors(t *testing.T) {
	f := small(func(b *builder) {
		for i := range 100 {
			b.add(&PageData{GPA: uint64(i)*pageSize + 1, Mask: maskSNP})
		}
	})
	_, err := Parse(encoded(f))
	if n := strings.Count(fmt.Sprint(err), "\n") + 1; n < 2 || n > maxErrors+4 {
		t.Errorf("found %d errors, expected more than one and at most %d", n, maxErrors+4)
	}
}

const testIDKey = `-----BEGIN EC PRIVATE KEY-----
MIGkAgEBBDAumX65cBowiP+x0Met5+at1U88WtTBX1nVY8XwTXppLuzXhuwD9iau
1mqLwjHMAFugBwYFK4EEACKhZANiAASWztzHmNtP4Wbp8X54SN16+bgEbkXJhP+l
x6qMY5Mpp3MK4vgL+3HqTKgY481/2nzM0SmFZ10tudzcSO+UqQByLpGpSLDBBm7y
yhwu3IP6L0/P/4fuSaqsBU+fWu72akA=
-----END EC PRIVATE KEY-----
`
