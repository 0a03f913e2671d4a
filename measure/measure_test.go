package measure_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/evtpm/evtpm/measure"
)

// TestCPUModels compares every model with what QEMU 11.1.3 answered.
func TestCPUModels(t *testing.T) {
	var qemu map[string]struct {
		Family, Model, Stepping int
		Sig                     string
	}
	if err := json.Unmarshal(readFile(t, testdata(t), "vectors", "qemu-11.1-amd-cpu-models.json"), &qemu); err != nil {
		t.Fatal(err)
	}
	ours := measure.CPUModels()
	if len(ours) != len(qemu) {
		t.Errorf("found %d models, QEMU has %d", len(ours), len(qemu))
	}
	for _, m := range ours {
		q, ok := qemu[m.Name]
		if !ok {
			t.Errorf("%s: not one of QEMU's", m.Name)
			continue
		}
		sig, err := measure.CPUSignature(m.Name)
		if err != nil || fmt.Sprintf("%#x", sig) != q.Sig {
			t.Errorf("%s: found signature %#x and error %v, expected %s", m.Name, sig, err, q.Sig)
		}
		if f, mo, s := measure.SplitSignature(sig); f != q.Family || mo != q.Model || s != q.Stepping {
			t.Errorf("%s: found family %d, model %d, stepping %d", m.Name, f, mo, s)
		}
	}
}

func TestI23CPUSignature(t *testing.T) {
	for name, want := range map[string]string{
		"":                        "the nearest is",
		"EPYC-Milian":             `the nearest is "EPYC-Milan" (QEMU: unable to find CPU model 'EPYC-Milian')`,
		"qemu64":                  "QEMU has it, but it is not an AMD model with SEV",
		"Opteron_G5-v1":           "QEMU has it, but it is not an AMD model with SEV",
		"epyc-v4":                 `the nearest is "EPYC-v4"`,
		"EPYC-Genoa-v9":           `the nearest is "EPYC-Genoa-v`,
		"host":                    "host's own processor",
		"max":                     "host's own processor",
		"Skylake-Server":          "not an AMD model",
		strings.Repeat("x", 1e6):  "xxx...",
		strings.Repeat("é", 1000): "not an AMD model",
	} {
		if sig, err := measure.CPUSignature(name); err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 400 {
			t.Errorf("%.40q: found %#x and error %.200v, expected one with %q", name, sig, err, want)
		}
	}
	for _, c := range []struct {
		family, model, stepping int
		sig                     uint32
	}{
		{23, 1, 2, 0x800f12}, {25, 17, 0, 0xa10f10}, {26, 2, 1, 0xb00f21}, {6, 15, 11, 0x6fb}, {0, 0, 0, 0}, {15 + 255, 255, 15, 0xfff0fff},
	} {
		sig, err := measure.SignatureOf(c.family, c.model, c.stepping)
		if err != nil || sig != c.sig {
			t.Errorf("%+v: found %#x and error %v", c, sig, err)
		}
		if f, m, s := measure.SplitSignature(sig); c.family >= 15 && (f != c.family || m != c.model || s != c.stepping) {
			t.Errorf("%+v: split into %d, %d, %d", c, f, m, s)
		}
	}
	for _, c := range [][3]int{{-1, 0, 0}, {271, 0, 0}, {23, -1, 0}, {23, 256, 0}, {23, 0, -1}, {23, 0, 16}} {
		if sig, err := measure.SignatureOf(c[0], c[1], c[2]); err == nil {
			t.Errorf("%v: found %#x, expected an error", c, sig)
		}
	}
}

// TestExtend folds one page by the words of the ABI.
func TestExtend(t *testing.T) {
	cur, contents := measure.Digest{1, 2, 3}, measure.Digest{4, 5}
	var info bytes.Buffer
	info.Write(cur[:])
	info.Write(contents[:])
	info.Write([]byte{0x70, 0, byte(measure.PageNormal), 0, 0, 0, 0, 0})
	_ = binary.Write(&info, binary.LittleEndian, uint64(0xffc00000))
	if got, want := measure.Extend(cur, measure.PageNormal, 0xffc00000, contents), measure.Digest(sha512.Sum384(info.Bytes())); got != want {
		t.Errorf("found %s, expected %s", got, want)
	}
	// Permissions of VMPL1 to VMPL3 are the bytes 0x65 to 0x67.
	data := bytes.Clone(info.Bytes())
	copy(data[0x00:], make([]byte, 48))
	sum := sha512.Sum384(make([]byte, 4096))
	copy(data[0x30:], sum[:])
	copy(data[0x65:], []byte{7, 3, 1})
	s := &measure.Sequence{Steps: []measure.Step{{Type: measure.PageNormal, GPA: 0xffc00000, Size: 4096, VMPLPerms: [3]uint8{7, 3, 1}}}}
	got, err := s.LaunchDigest()
	if want := measure.Digest(sha512.Sum384(data)); err != nil || got != want {
		t.Errorf("found %s and error %v, expected %s", got, err, want)
	}
}

func page(b byte, n int) []byte {
	out := bytes.Repeat([]byte{b}, n*measure.PageSize)
	for i := range n {
		binary.LittleEndian.PutUint32(out[i*measure.PageSize:], uint32(i))
	}
	return out
}

func exampleSequence() *measure.Sequence {
	vmsa := (&measure.VMSA{RIP: 0xfff0}).Page()
	return &measure.Sequence{
		Steps: []measure.Step{
			{Type: measure.PageNormal, GPA: 0xffc00000, Size: 100 * 4096, Data: append(page(0xff, 50), bytes.Repeat([]byte{0xff}, 50*4096)...), Source: "firmware"},
			{Type: measure.PageZero, GPA: 0x800000, Size: 3 * 4096, Source: "zeros"},
			{Type: measure.PageSecrets, GPA: 0x80d000, Size: 4096, Source: "secrets"},
			{Type: measure.PageCPUID, GPA: 0x80e000, Size: 4096, Source: "CPUID"},
			{Type: measure.PageUnmeasured, GPA: 0x80f000, Size: 4096, Source: "parameters"},
			{Type: measure.PageNormal, GPA: 0x810000, Size: 4096, Source: "empty"},
		},
		VMSAs: []measure.Step{
			{Type: measure.PageVMSA, GPA: measure.VMSAGPA, Size: 4096, Data: vmsa, Source: "vCPU 0"},
			{Type: measure.PageVMSA, GPA: measure.VMSAGPA, Size: 4096, Data: vmsa, Source: "vCPU 1"},
		},
	}
}

// TestFold compares the fold, which hashes equal pages once and several at a
// time, with the plainest one.
func TestFold(t *testing.T) {
	s := exampleSequence()
	var want measure.Digest
	var chain []measure.Digest
	var prefix measure.Digest
	for i, st := range append(append([]measure.Step{}, s.Steps...), s.VMSAs...) {
		if i == len(s.Steps) {
			prefix = want
		}
		for at := uint64(0); at < st.Size; at += 4096 {
			var contents measure.Digest
			if st.Type == measure.PageNormal || st.Type == measure.PageVMSA {
				p := make([]byte, 4096)
				if st.Data != nil {
					p = st.Data[at : at+4096]
				}
				contents = sha512.Sum384(p)
			}
			want = measure.Extend(want, st.Type, st.GPA+at, contents)
		}
		if i >= len(s.Steps) {
			chain = append(chain, want)
		}
	}
	got, err := s.LaunchDigest()
	if err != nil || got != want {
		t.Errorf("found %s and error %v, expected %s", got, err, want)
	}
	if got, err := s.PrefixDigest(); err != nil || got != prefix {
		t.Errorf("found prefix %s and error %v, expected %s", got, err, prefix)
	}
	if got, err := s.VMSAChain(); err != nil || cmp.Diff(chain, got) != "" {
		t.Errorf("found %v and error %v, expected %v", got, err, chain)
	}
	// A sequence that continues a digest gives the digest of the whole.
	rest := *s
	rest.Steps, rest.Start = s.Steps[1:], func() measure.Digest {
		d, err := (&measure.Sequence{Steps: s.Steps[:1]}).LaunchDigest()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}()
	if got, err := rest.LaunchDigest(); err != nil || got != want {
		t.Errorf("found %s and error %v, expected %s", got, err, want)
	}
	streamed, err := measure.FoldReader(bytes.NewReader(s.Steps[0].Data), int64(s.Steps[0].Size), s.Steps[0].GPA)
	if err != nil || streamed != rest.Start {
		t.Errorf("found %s and error %v, expected %s", streamed, err, rest.Start)
	}
}

func TestValidate(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*measure.Sequence)
		want   string
	}{
		"mode":                   {func(s *measure.Sequence) { s.Mode = "tdx" }, `found mode "tdx"`},
		"page type 0":            {func(s *measure.Sequence) { s.Steps[1].Type = 0 }, "found page type 0"},
		"page type 7":            {func(s *measure.Sequence) { s.Steps[1].Type = 7 }, "found page type 7"},
		"unaligned address":      {func(s *measure.Sequence) { s.Steps[1].GPA++ }, "not a multiple"},
		"size 0":                 {func(s *measure.Sequence) { s.Steps[1].Size = 0 }, "found size 0"},
		"unaligned size":         {func(s *measure.Sequence) { s.Steps[1].Size++ }, "not a multiple"},
		"over the end":           {func(s *measure.Sequence) { s.Steps[1].GPA = ^uint64(0) &^ 0xfff }, "over the end"},
		"contents of zeros":      {func(s *measure.Sequence) { s.Steps[2].Data = make([]byte, 4096) }, "not measured"},
		"too few contents":       {func(s *measure.Sequence) { s.Steps[0].Data = make([]byte, 4096) }, "found 4096 bytes of contents"},
		"empty contents":         {func(s *measure.Sequence) { s.Steps[0].Data = []byte{} }, "found 0 bytes of contents"},
		"overlap":                {func(s *measure.Sequence) { s.Steps[2].GPA = 0x802000 }, "secrets at 0x802000+0x1000"},
		"overlap of all":         {func(s *measure.Sequence) { s.Steps[5].GPA = 0xffc05000 }, "overlaps"},
		"VMSA over a page":       {func(s *measure.Sequence) { s.VMSAs[0].GPA = 0x80d000; s.VMSAs[1].GPA = 0x80d000 }, "overlaps"},
		"VMSA of two pages":      {func(s *measure.Sequence) { s.VMSAs[0].Size = 8192; s.VMSAs[0].Data = make([]byte, 8192) }, "expected one vmsa page"},
		"VMSA of another type":   {func(s *measure.Sequence) { s.VMSAs[1].Type = measure.PageNormal }, "expected one vmsa page"},
		"VMSA step of two pages": {func(s *measure.Sequence) { s.Steps[5].Type = measure.PageVMSA; s.Steps[5].Size = 8192 }, "expected one page"},
		"too many VMSAs": {func(s *measure.Sequence) {
			for len(s.VMSAs) <= measure.MaxVCPUs {
				s.VMSAs = append(s.VMSAs, s.VMSAs[0])
			}
		}, "found 513 VMSAs"},
		"too many pages": {func(s *measure.Sequence) { s.Steps[1].Size = (measure.MaxPages + 1) * 4096 }, "more than 1048576 pages"},
	} {
		s := exampleSequence()
		c.change(s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: found error %v, expected one with %q", name, err, c.want)
		}
		if d, err := s.LaunchDigest(); err == nil {
			t.Errorf("%s: found digest %s, expected an error", name, d)
		}
	}
	s := exampleSequence()
	s.Steps[0].GPA++
	s.Steps[1].Size = 0
	var joined interface{ Unwrap() []error }
	if err := s.Validate(); !errors.As(err, &joined) || len(joined.Unwrap()) != 2 {
		t.Errorf("found error %v, expected two at once", err)
	}
	var overlap *measure.OverlapError
	s = exampleSequence()
	s.Steps[2].GPA = 0x800000
	if err := s.Validate(); !errors.As(err, &overlap) {
		t.Errorf("found error %v, expected an OverlapError", err)
	}
}

func sevSequence(mode measure.Mode) *measure.Sequence {
	s := &measure.Sequence{Mode: mode, Steps: []measure.Step{
		{Type: measure.PageNormal, GPA: 0xfffff000, Size: 4096, Data: page(1, 1), Source: "firmware"},
		{Type: measure.PageNormal, GPA: 0x810c00, Size: 176, Data: (&measure.KernelHashes{}).Table(), Source: "kernel hashes"},
	}}
	if mode == measure.ModeSEVES {
		s.VMSAs = []measure.Step{{Type: measure.PageVMSA, Size: 4096, Data: page(2, 1), Source: "vCPU 0"}}
	}
	return s
}

func TestSEVDigest(t *testing.T) {
	for _, mode := range []measure.Mode{measure.ModeSEV, measure.ModeSEVES} {
		s := sevSequence(mode)
		h := sha256.New()
		for _, st := range append(s.Steps, s.VMSAs...) {
			h.Write(st.Data)
		}
		if got, err := s.SEVDigest(); err != nil || !bytes.Equal(got[:], h.Sum(nil)) {
			t.Errorf("%s: found %x and error %v, expected %x", mode, got, err, h.Sum(nil))
		}
		if err := s.Validate(); err != nil {
			t.Error(err)
		}
		if _, err := s.LaunchDigest(); err == nil {
			t.Errorf("%s: found a launch digest of SNP", mode)
		}
	}
	if _, err := exampleSequence().SEVDigest(); err == nil {
		t.Error("SNP: found a digest of SEV")
	}
	for name, c := range map[string]struct {
		change func(*measure.Sequence)
		want   string
	}{
		"start":       {func(s *measure.Sequence) { s.Start = measure.Digest{1} }, "precomputed"},
		"page type":   {func(s *measure.Sequence) { s.Steps[0].Type = measure.PageZero }, "expected normal"},
		"odd size":    {func(s *measure.Sequence) { s.Steps[1].Size = 175 }, "multiple of 16"},
		"size 0":      {func(s *measure.Sequence) { s.Steps[1].Size = 0 }, "multiple of 16"},
		"no contents": {func(s *measure.Sequence) { s.Steps[1].Data = nil }, "found 0 bytes"},
		"VMSA":        {func(s *measure.Sequence) { s.VMSAs[0].Data = nil }, "one vmsa page"},
		"SEV's VMSA":  {func(s *measure.Sequence) { s.Mode = measure.ModeSEV }, "does not measure"},
		"513 VMSAs": {func(s *measure.Sequence) {
			for len(s.VMSAs) <= measure.MaxVCPUs {
				s.VMSAs = append(s.VMSAs, s.VMSAs[0])
			}
		}, "513 VMSAs"},
	} {
		s := sevSequence(measure.ModeSEVES)
		c.change(s)
		if _, err := s.SEVDigest(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: found error %v, expected one with %q", name, err, c.want)
		}
	}
}

func TestKernelHashes(t *testing.T) {
	k := &measure.KernelHashes{Kernel: [32]byte{1}, Initrd: measure.NoInitrd, Cmdline: [32]byte{3}}
	table := k.Table()
	if len(table) != 176 {
		t.Fatalf("found %d bytes, expected 176", len(table))
	}
	// cmdline, initrd, kernel: QEMU's order.
	if table[18+18] != 3 || !bytes.Equal(table[68+18:68+50], measure.NoInitrd[:]) || table[118+18] != 1 {
		t.Errorf("found %x", table)
	}
	got, err := measure.ParseKernelHashes(table)
	if err != nil || *got != *k {
		t.Errorf("found %+v and error %v, expected %+v", got, err, k)
	}
	for at, want := range map[int]string{
		0: "header GUID", 16: "found length", 18: "entry 0", 34: "cmdline: found length", 68: "entry 1", 84: "initrd: found length",
		118: "entry 2", 134: "kernel: found length", 168: "padding", 175: "padding",
	} {
		bad := bytes.Clone(table)
		bad[at] ^= 1
		if _, err := measure.ParseKernelHashes(bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("byte %d: found error %v, expected one with %q", at, err, want)
		}
	}
	for _, n := range []int{0, 168, 175, 177} {
		if _, err := measure.ParseKernelHashes(make([]byte, n)); err == nil {
			t.Errorf("%d bytes: found no error", n)
		}
	}
}

func TestI12HashCmdline(t *testing.T) {
	for _, s := range []string{"", "quiet", " two  spaces ", "ünïcode", "\xff\xfe", "tab\t", "\r", strings.Repeat("x", 1<<20)} {
		got, err := measure.HashCmdline(s)
		if want := sha256.Sum256(append([]byte(s), 0)); err != nil || got != want {
			t.Errorf("%.20q: found %x and error %v, expected %x", s, got, err, want)
		}
	}
	for _, s := range []string{"\x00", "a\x00b", "quiet\n", "\n"} {
		if got, err := measure.HashCmdline(s); err == nil {
			t.Errorf("%q: found %x, expected an error", s, got)
		}
	}
}

func TestVMSA(t *testing.T) {
	v, err := measure.VCPU{Signature: 0xa00f11, Features: 0x21, EIP: 0x80b004}.VMSA()
	if err != nil {
		t.Fatal(err)
	}
	got, err := measure.ParseVMSA(v.Page())
	if err != nil || cmp.Diff(v, got) != "" {
		t.Errorf("found %+v and error %v, expected %+v", got, err, v)
	}
	w := *v
	w.CS.Base, w.RDX, w.MXCSR, w.X87FCW, w.VMPL = 0, 0, 0, 0, 1
	var names []string
	for _, d := range v.Diff(&w) {
		names = append(names, fmt.Sprintf("%s %#x %#x", d.Name, d.A, d.B))
	}
	if d := cmp.Diff([]string{"cs.base 0x800000 0x0", "vmpl 0x0 0x1", "rdx 0xa00f11 0x0", "mxcsr 0x1f80 0x0", "x87_fcw 0x37f 0x0"}, names); d != "" {
		t.Error(d)
	}
	bad := v.Page()
	bad[0xff0] = 1
	if _, err := measure.ParseVMSA(bad); err == nil || !strings.Contains(err.Error(), "offset 0xff0") {
		t.Errorf("found error %v, expected one about offset 0xff0", err)
	}
	if _, err := measure.ParseVMSA(bad[:4095]); err == nil {
		t.Error("4095 bytes: found no error")
	}
	// Every byte of a page that Page can set is read back.
	full := make([]byte, measure.PageSize)
	for i := range full {
		full[i] = 0xa5
	}
	if _, err := measure.ParseVMSA(full); err == nil {
		t.Error("a page of 0xa5: found no error")
	}
	for name, want := range map[string]string{"krun": "not verified", "KRUN": "not verified", "hyperv": "expected QEMU, ec2 or gce"} {
		if _, err := (measure.VCPU{VMM: measure.VMM(name)}).VMSA(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: found error %v, expected one with %q", name, err, want)
		}
	}
	for name, want := range map[string]measure.VMM{"qemu": measure.VMMQEMU, "QEMU": measure.VMMQEMU, "EC2": measure.VMMEC2, "gce": measure.VMMGCE} {
		if got, err := measure.ParseVMM(name); err != nil || got != want {
			t.Errorf("%s: found %q and error %v", name, got, err)
		}
	}
}

func TestGUID(t *testing.T) {
	const text = "96b582de-1fb2-45f7-baea-a366c55a082d"
	g, err := measure.ParseGUID(text)
	if err != nil || g.String() != text {
		t.Errorf("found %s and error %v, expected %s", g, err, text)
	}
	if want := []byte{0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea}; !bytes.Equal(g[:10], want) {
		t.Errorf("found %x, expected %x first", g, want)
	}
	for _, bad := range []string{"", text[1:], text + "0", strings.Replace(text, "-", "_", 1), strings.Replace(text, "9", "g", 1), strings.Repeat("-", 36)} {
		if _, err := measure.ParseGUID(bad); err == nil {
			t.Errorf("%q: found no error", bad)
		}
	}
}

func TestTrace(t *testing.T) {
	s := exampleSequence()
	var out bytes.Buffer
	if err := s.WriteTrace(&out); err != nil {
		t.Fatal(err)
	}
	doc := out.String()
	if n := strings.Count(doc, "\n"); n != 109 {
		t.Errorf("found %d lines, expected 109", n)
	}
	digest, err := s.LaunchDigest()
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(strings.TrimSpace(doc), "\n"); !strings.Contains(lines[108], digest.String()) || !strings.Contains(lines[108], `"source":"vCPU 1"`) {
		t.Errorf("found last line %s, expected digest %s", lines[108], digest)
	}
	got, err := measure.ParseTrace(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	want, err := s.Pages()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for name, c := range map[string]struct{ old, new, want string }{
		"empty":            {doc, "", "no line"},
		"page type":        {`"type":"normal"`, `"type":"norm"`, "expected a page type"},
		"address":          {`"gpa":"0xffc00000"`, `"gpa":"0xffc01000"`, "line 1: digest"},
		"no address":       {`"gpa":"0xffc00000"`, `"gpa":""`, "line 1: gpa"},
		"number":           {`"n":1,`, `"n":2,`, "line 2: found n 2"},
		"size":             {`"size":4096`, `"size":8192`, "size 8192"},
		"unknown field":    {`"n":1,`, `"n":1,"m":1,`, `"m": not known`},
		"contents of zero": {`"source":"zeros"`, `"source":"zeros","contents":"00"`, "contents: found some"},
		"short contents":   {`"contents":"`, `"contents":"x`, "contents"},
		"short digest":     {`"digest":"`, `"digest":"x`, "digest"},
		"too large":        {doc, strings.Repeat(" ", measure.MaxTraceSize+1), "at most"},
	} {
		bad := strings.Replace(doc, c.old, c.new, 1)
		if _, err := measure.ParseTrace([]byte(bad)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: found error %v, expected one with %q", name, err, c.want)
		}
	}

	out.Reset()
	es := sevSequence(measure.ModeSEVES)
	if err := es.WriteTrace(&out); err != nil {
		t.Fatal(err)
	}
	d, err := es.SEVDigest()
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(strings.TrimSpace(out.String()), "\n"); len(lines) != 3 || !strings.Contains(lines[2], fmt.Sprintf("%x", d)) || strings.Contains(lines[1], "digest") {
		t.Errorf("found %s", out.String())
	}
	s.Steps[0].GPA++
	if err := s.WriteTrace(io.Discard); err == nil {
		t.Error("impossible launch: found no error")
	}
	if err := exampleSequence().WriteTrace(failingWriter{}); err == nil {
		t.Error("full disk: found no error")
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func TestMap(t *testing.T) {
	for _, s := range []*measure.Sequence{exampleSequence(), sevSequence(measure.ModeSEVES)} {
		s.Steps[0].Source = `<firmware> & "more"`
		var out bytes.Buffer
		if err := s.WriteMap(&out); err != nil {
			t.Fatal(err)
		}
		dec := xml.NewDecoder(bytes.NewReader(out.Bytes()))
		rects := 0
		for {
			tok, err := dec.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("not well-formed: %v\n%s", err, out.String())
			}
			if e, ok := tok.(xml.StartElement); ok && e.Name.Local == "rect" {
				rects++
			}
		}
		for i := range len(s.Steps) + 1 {
			if n := strings.Count(out.String(), fmt.Sprintf(` order">%d</text>`, i+1)); n != 1 {
				t.Errorf("found %d boxes with the number %d, expected one\n%s", n, i+1, out.String())
			}
		}
		want := 1 + len(s.Steps) + 1 // the background, the steps, the VMSAs' page
		if rects != want {
			t.Errorf("found %d rectangles, expected %d", rects, want)
		}
		var again bytes.Buffer
		if err := s.WriteMap(&again); err != nil || !bytes.Equal(out.Bytes(), again.Bytes()) {
			t.Errorf("the second drawing differs, error %v", err)
		}
	}
	s := exampleSequence()
	s.Steps[0].Size = 0
	if err := s.WriteMap(io.Discard); err == nil {
		t.Error("impossible launch: found no error")
	}
}

func TestDiff(t *testing.T) {
	pages := func(change func(*measure.Sequence)) []measure.Page {
		s := exampleSequence()
		change(s)
		p, err := s.Pages()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	same := pages(func(*measure.Sequence) {})
	type region struct {
		GPA, Size uint64
		What      string
	}
	for name, c := range map[string]struct {
		change    func(*measure.Sequence)
		first     int
		regions   []region
		reordered bool
		vmsas     [2]int
	}{
		"same":     {func(*measure.Sequence) {}, -1, nil, false, [2]int{}},
		"source":   {func(s *measure.Sequence) { s.Steps[0].Source = "other" }, -1, nil, false, [2]int{}},
		"contents": {func(s *measure.Sequence) { s.Steps[0].Data[3*4096+9]++; s.Steps[0].Data[4*4096]++ }, 3, []region{{0xffc03000, 0x2000, measure.Contents}}, false, [2]int{2, 2}},
		"type":     {func(s *measure.Sequence) { s.Steps[1].Type = measure.PageUnmeasured }, 100, []region{{0x800000, 0x3000, measure.Type}}, false, [2]int{2, 2}},
		"moved":    {func(s *measure.Sequence) { s.Steps[2].GPA = 0x900000 }, 103, []region{{0x80d000, 0x1000, measure.OnlyA}, {0x900000, 0x1000, measure.OnlyB}}, false, [2]int{2, 2}},
		"order":    {func(s *measure.Sequence) { s.Steps[1], s.Steps[2] = s.Steps[2], s.Steps[1] }, 100, nil, true, [2]int{2, 2}},
		"vCPUs":    {func(s *measure.Sequence) { s.VMSAs = s.VMSAs[:1] }, 108, nil, false, [2]int{2, 1}},
		"VMSA":     {func(s *measure.Sequence) { s.VMSAs[1].Data = page(9, 1) }, 108, nil, false, [2]int{2, 2}},
	} {
		for _, swap := range []bool{false, true} {
			a, b := same, pages(c.change)
			if swap {
				a, b = b, a
			}
			d := measure.Diff(a, b)
			if first := d.First; (first == nil) != (c.first < 0) || first != nil && first.N != c.first {
				t.Errorf("%s: found first difference %+v, expected %d", name, d.First, c.first)
			}
			var got []region
			for _, r := range d.Regions {
				what := r.What
				if swap {
					what = map[string]string{measure.OnlyA: measure.OnlyB, measure.OnlyB: measure.OnlyA}[what]
					if what == "" {
						what = r.What
					}
				}
				got = append(got, region{r.GPA, r.Size, what})
			}
			if diff := cmp.Diff(c.regions, got); diff != "" {
				t.Errorf("%s:\n%s", name, diff)
			}
			vmsas := [2]int{d.VMSAsA, d.VMSAsB}
			if swap {
				vmsas[0], vmsas[1] = vmsas[1], vmsas[0]
			}
			if d.Reordered != c.reordered || vmsas != c.vmsas {
				t.Errorf("%s: found %+v", name, d)
			}
		}
	}
}

func FuzzParseKernelHashes(f *testing.F) {
	f.Add((&measure.KernelHashes{Kernel: [32]byte{1}, Initrd: measure.NoInitrd}).Table())
	f.Fuzz(func(t *testing.T, table []byte) {
		k, err := measure.ParseKernelHashes(table)
		if err == nil && !bytes.Equal(k.Table(), table) {
			t.Fatalf("found %x, expected %x", k.Table(), table)
		}
	})
}

func FuzzParseTrace(f *testing.F) {
	s := exampleSequence()
	s.Steps = s.Steps[1:]
	var out bytes.Buffer
	if err := s.WriteTrace(&out); err != nil {
		f.Fatal(err)
	}
	f.Add(out.Bytes())
	f.Fuzz(func(t *testing.T, doc []byte) {
		pages, err := measure.ParseTrace(doc)
		if err == nil && len(pages) == 0 {
			t.Fatal("accepted a trace without pages")
		}
		measure.Diff(pages, pages[:len(pages)/2])
	})
}

func FuzzParseVMSA(f *testing.F) {
	v, err := measure.VCPU{Signature: 0x800f12, Features: 1, EIP: measure.ResetEIP}.VMSA()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(v.Page())
	f.Fuzz(func(t *testing.T, page []byte) {
		v, err := measure.ParseVMSA(page)
		if err != nil {
			return
		}
		if !bytes.Equal(v.Page(), page) {
			t.Fatal("the encoding differs from what was read")
		}
		if d := v.Diff(v); len(d) != 0 {
			t.Fatalf("found %v", d)
		}
	})
}
