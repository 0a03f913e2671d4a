package snpsim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
	"github.com/evtpm/evtpm/ovmf/ovmftest"
)

// fakeQEMU answers what ReadSequence asks, from guest memory that a test makes.
// The texts have the form of QEMU 10.0's.
type fakeQEMU struct {
	status   []string // of successive query-status; the last stays
	memory   []chunk  // later ones cover earlier ones
	regions  string
	cpus     int // in query-cpus-fast
	register string
	short    bool // pmemsave writes too little
	fail     string
	asked    []string
}

type chunk struct {
	gpa  uint64
	data []byte
}

func (q *fakeQEMU) put(gpa uint64, data ...byte) { q.memory = append(q.memory, chunk{gpa, data}) }

func (q *fakeQEMU) Execute(_ context.Context, command string, args, out any) error {
	q.asked = append(q.asked, command)
	if command == q.fail {
		return errors.New("refused")
	}
	var answer any
	switch command {
	case "query-status":
		answer = map[string]string{"status": q.status[0]}
		if len(q.status) > 1 {
			q.status = q.status[1:]
		}
	case "query-cpus-fast":
		list := make([]map[string]int, q.cpus)
		for i := range list {
			list[i] = map[string]int{"cpu-index": i}
		}
		answer = list
	case "human-monitor-command":
		switch line := reflect.ValueOf(args).MapIndex(reflect.ValueOf("command-line")).String(); line {
		case "info mtree -f":
			answer = q.regions
		case "info registers -a":
			answer = q.register
		default:
			return fmt.Errorf("unknown command %q", line)
		}
	case "pmemsave":
		a := args.(map[string]any)
		data := make([]byte, a["size"].(uint64))
		for _, m := range q.memory {
			if gpa := a["val"].(uint64); m.gpa >= gpa && m.gpa-gpa < uint64(len(data)) {
				copy(data[m.gpa-gpa:], m.data)
			}
		}
		if q.short {
			data = data[1:]
		}
		return os.WriteFile(a["filename"].(string), data, 0o600)
	default:
		return fmt.Errorf("unknown command %q", command)
	}
	b, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, out)
}

// The regions of a machine with 256 MiB whose firmware takes size bytes.
func fakeRegions(size int, name string) string {
	return fmt.Sprintf(`FlatView #0
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 AS "cpu-smm-0", root: memory
 Root memory region: system
  0000000000000000-00000000000bffff (prio 0, ram): pc.ram
  00000000000e0000-00000000000fffff (prio 0, rom): pc.bios @0000000000010000
  0000000000100000-000000000fffffff (prio 0, ram): pc.ram @0000000000100000
  00000000fee00000-00000000feefffff (prio 4096, i/o): apic-msi
  %016x-00000000ffffffff (prio 0, rom): %s

FlatView #1
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-00000000ffffffff (prio 0, i/o): io

`, 1<<32-size, name)
}

// fakeRegisters are those of n vCPUs after a reset.
func fakeRegisters(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `
CPU#%d
EAX=00000000 EBX=00000000 ECX=00000000 EDX=00800f12
ESI=00000000 EDI=00000000 EBP=00000000 ESP=00000000
EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=%d
ES =0000 00000000 0000ffff 00009300
CS =f000 ffff0000 0000ffff 00009b00
SS =0000 00000000 0000ffff 00009300
`, i, min(i, 1))
	}
	return b.String()
}

// newFakeQEMU holds an image stopped before its first instruction.
func newFakeQEMU(image []byte, vcpus int) *fakeQEMU {
	return &fakeQEMU{
		status:   []string{"prelaunch"},
		memory:   []chunk{{uint64(1<<32 - len(image)), image}},
		regions:  fakeRegions(len(image), "pc.bios"),
		cpus:     vcpus,
		register: fakeRegisters(vcpus),
	}
}

func testImage(t testing.TB) []byte {
	t.Helper()
	data := ovmftest.Build(ovmftest.AmdSev())
	if _, err := ovmf.Parse(data); err != nil {
		t.Fatal(err)
	}
	return data
}

// wantSequence compares digests of a sequence and of what the image alone should
// launch.
func wantDigest(t *testing.T, got *measure.Sequence, image []byte, o ovmf.LaunchOptions, change func(*measure.Sequence)) {
	t.Helper()
	img, err := ovmf.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	o.CPUSignature = 0x800f12
	want, err := img.Sequence(o)
	if err != nil {
		t.Fatal(err)
	}
	want.Steps = append(want.Steps, SVSMStep())
	if change != nil {
		change(want)
	}
	a, errA := got.LaunchDigest()
	b, errB := want.LaunchDigest()
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	if a != b {
		t.Errorf("launch digest %s, expected %s\nfound %+v\nexpected %+v", a, b, summary(got), summary(want))
	}
}

func summary(s *measure.Sequence) string {
	var b strings.Builder
	for _, steps := range [][]measure.Step{s.Steps, s.VMSAs} {
		for _, st := range steps {
			fmt.Fprintf(&b, "%s %#x+%#x %s\n", st.Type, st.GPA, st.Size, st.Source)
		}
	}
	return b.String()
}

func TestReadSequence(t *testing.T) {
	image := testImage(t)
	img, err := ovmf.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	hashes := &measure.KernelHashes{Kernel: [32]byte{1}, Initrd: [32]byte{2}, Cmdline: [32]byte{3}}
	gpa, page, err := img.HashesPage(hashes)
	if err != nil {
		t.Fatal(err)
	}
	read := func(t *testing.T, q *fakeQEMU, o ReadOptions) *measure.Sequence {
		t.Helper()
		o.Dir = t.TempDir()
		seq, err := ReadSequence(context.Background(), q, o)
		if err != nil {
			t.Fatal(err)
		}
		if left, _ := os.ReadDir(o.Dir); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
		return seq
	}
	t.Run("no kernel hashes", func(t *testing.T) {
		wantDigest(t, read(t, newFakeQEMU(image, 1), ReadOptions{}), image, ovmf.LaunchOptions{VCPUs: 1}, nil)
	})
	t.Run("kernel hashes and four vCPUs", func(t *testing.T) {
		q := newFakeQEMU(image, 4)
		q.put(gpa, page...)
		wantDigest(t, read(t, q, ReadOptions{GuestFeatures: 0x21}), image, ovmf.LaunchOptions{VCPUs: 4, GuestFeatures: 0x21, Hashes: hashes}, nil)
	})
	t.Run("boot vCPU alone", func(t *testing.T) {
		wantDigest(t, read(t, newFakeQEMU(image, 4), ReadOptions{BSPOnly: true}), image, ovmf.LaunchOptions{VCPUs: 4}, func(s *measure.Sequence) { s.VMSAs = s.VMSAs[:1] })
	})
	t.Run("attack: no SVSM", func(t *testing.T) {
		wantDigest(t, read(t, newFakeQEMU(image, 1), ReadOptions{NoSVSM: true}), image, ovmf.LaunchOptions{VCPUs: 1}, func(s *measure.Sequence) { s.Steps = s.Steps[:len(s.Steps)-1] })
	})

	// What a host changes in guest memory or in the vCPU is what is measured.
	good, err := read(t, newFakeQEMU(image, 2), ReadOptions{}).LaunchDigest()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*fakeQEMU){
		"one bit of the firmware": func(q *fakeQEMU) { q.put(0xffff0010, 0xfe) },
		"kernel hashes":           func(q *fakeQEMU) { q.put(gpa, page...) },
		"junk in the hashes page": func(q *fakeQEMU) { q.put(gpa+4095, 1) },
		"one vCPU less":           func(q *fakeQEMU) { q.cpus, q.register = 1, fakeRegisters(1) },
		"another CPU model":       func(q *fakeQEMU) { q.register = strings.ReplaceAll(q.register, "00800f12", "00a00f11") },
		"start elsewhere":         func(q *fakeQEMU) { q.register = strings.Replace(q.register, "0000fff0", "00001000", 1) },
		"start in another segment": func(q *fakeQEMU) {
			q.register = strings.Replace(q.register, "f000 ffff0000", "0000 00000000", 1)
		},
		"another code selector": func(q *fakeQEMU) { q.register = strings.Replace(q.register, "f000 ffff", "e000 ffff", 1) },
		"a value in RAX":        func(q *fakeQEMU) { q.register = strings.Replace(q.register, "EAX=00000000", "EAX=00000001", 1) },
		"a value in RSP, of a vCPU in 64-bit mode": func(q *fakeQEMU) {
			q.register = strings.Replace(q.register, "ESP=00000000", "RSP=0000000100000000", 1)
		},
	} {
		q := newFakeQEMU(image, 2)
		change(q)
		seq, err := ReadSequence(context.Background(), q, ReadOptions{Dir: t.TempDir()})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d, err := seq.LaunchDigest(); err != nil || d == good {
			t.Errorf("%s: the launch digest is the same (%v)", name, err)
		}
	}
}

func TestReadSequenceRefused(t *testing.T) {
	image := testImage(t)
	for name, c := range map[string]struct {
		change func(*fakeQEMU)
		want   string
	}{
		"running":           {func(q *fakeQEMU) { q.status = []string{"running"} }, `the VM is "running", expected "prelaunch"`},
		"has run":           {func(q *fakeQEMU) { q.status = []string{"paused"} }, `the VM is "paused"`},
		"let run meanwhile": {func(q *fakeQEMU) { q.status = []string{"prelaunch", "paused"} }, `the VM is "paused"`},
		"flash":             {func(q *fakeQEMU) { q.regions = fakeRegions(len(image), "system.flash0") }, `found "system.flash0" below 4 GiB`},
		"no firmware":       {func(q *fakeQEMU) { q.regions = "FlatView #0\n" }, "no region that ends at 4 GiB"},
		"firmware in another address space": {func(q *fakeQEMU) {
			q.regions = strings.Replace(q.regions, `AS "memory"`, `AS "other"`, 1)
		}, "no region that ends at 4 GiB"},
		"firmware too large":   {func(q *fakeQEMU) { q.regions = fakeRegions(ovmf.MaxSize+4096, "pc.bios") }, "expected at most"},
		"no OVMF":              {func(q *fakeQEMU) { q.memory = nil }, "firmware"},
		"short memory":         {func(q *fakeQEMU) { q.short = true }, "QEMU wrote"},
		"vCPUs disagree":       {func(q *fakeQEMU) { q.cpus = 3 }, "found 2 vCPUs, query-cpus-fast found 3"},
		"no vCPU":              {func(q *fakeQEMU) { q.cpus, q.register = 0, "" }, "found 0 vCPUs"},
		"two models":           {func(q *fakeQEMU) { q.register = strings.Replace(q.register, "00800f12", "00800f11", 1) }, "expected one model"},
		"signature of 64 bits": {func(q *fakeQEMU) { q.register = strings.ReplaceAll(q.register, "EDX=00800f12", "RDX=0000000100800f12") }, "expected a CPU signature"},
		"register missing":     {func(q *fakeQEMU) { q.register = strings.Replace(q.register, "EBP=", "XBP=", 1) }, "not all registers"},
		"register twice":       {func(q *fakeQEMU) { q.register = strings.Replace(q.register, "EBP=", "EAX=", 1) }, "AX is there twice"},
		"no CS":                {func(q *fakeQEMU) { q.register = strings.Replace(q.register, "CS =", "XX =", 1) }, "not all registers"},
		"too many vCPUs":       {func(q *fakeQEMU) { q.cpus, q.register = 513, fakeRegisters(513) }, "more than 512 vCPUs"},
		"too much text":        {func(q *fakeQEMU) { q.regions = strings.Repeat("x", maxMonitorText+1) }, "bytes of text"},
		"query-status fails":   {func(q *fakeQEMU) { q.fail = "query-status" }, "refused"},
		"monitor fails":        {func(q *fakeQEMU) { q.fail = "human-monitor-command" }, "refused"},
		"pmemsave fails":       {func(q *fakeQEMU) { q.fail = "pmemsave" }, "guest memory"},
		"query-cpus fails":     {func(q *fakeQEMU) { q.fail = "query-cpus-fast" }, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			q := newFakeQEMU(image, 2)
			c.change(q)
			dir := t.TempDir()
			_, err := ReadSequence(context.Background(), q, ReadOptions{Dir: dir})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("found %v, expected %q", err, c.want)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	if _, err := ReadSequence(context.Background(), newFakeQEMU(image, 1), ReadOptions{Dir: "/nowhere"}); err == nil {
		t.Error("no directory: no error")
	}
}

func TestSVSMStep(t *testing.T) {
	s := SVSMStep()
	if s.GPA != 0x8000000000 || s.Size != 4096 || s.Type != measure.PageNormal || len(s.Data) != 4096 ||
		!strings.HasPrefix(string(s.Data), "evtpm simulated SVSM, version 1") || s.Data[4095] != 0 {
		t.Errorf("found %+v", s)
	}
	SVSMStep().Data[0]++
	if SVSMStep().Data[0] != s.Data[0] {
		t.Error("steps share their page")
	}
}

// FuzzMonitorText looks for text of QEMU's monitor that breaks the readers.
func FuzzMonitorText(f *testing.F) {
	f.Add(fakeRegions(1<<20, "pc.bios"), fakeRegisters(2))
	f.Add("FlatView #0\n AS \"memory\", root: system\n", "CPU#0\nEAX=0\n")
	f.Fuzz(func(t *testing.T, regions, text string) {
		name, from, err := regionBelow4G(regions)
		if err == nil && (name == "" || !strings.Contains(regions, fmt.Sprintf("%016x-00000000ffffffff", from))) {
			t.Errorf("region %q from %#x is not in the text", name, from)
		}
		cpus, err := parseRegisters(text)
		if err == nil && len(cpus) != strings.Count(text, "CPU#") {
			t.Errorf("found %d vCPUs", len(cpus))
		}
	})
}
