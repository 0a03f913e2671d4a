package explain_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/evtpm/evtpm/explain"
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
	"github.com/evtpm/evtpm/ovmf/ovmftest"
)

// scripts/explain-cases computes the digests of measure/testdata/explain from these
// files, with sev-snp-measure.
var writeInputs = flag.String("write-inputs", "", "write the inputs of the explain cases to this folder")

// inputs are the files of the cases.
func inputs() map[string][]byte {
	a, b := ovmftest.AmdSev(), ovmftest.AmdSev()
	b.Fill = 0xfe
	old := ovmftest.AmdSev() // measures no kernel
	old.Entries = old.Entries[1:]
	old.Metadata = ovmftest.Metadata(ovmftest.AmdSevSections()[:6]...)
	return map[string][]byte{
		"build-a.fd": ovmftest.Build(a),
		"build-b.fd": ovmftest.Build(b),
		"old.fd":     ovmftest.Build(old),
		"vmlinuz-1":  []byte("kernel 1"),
		"vmlinuz-2":  []byte("kernel 2"),
		"initrd-1":   []byte("initrd 1"),
		"initrd-2":   []byte("initrd 2"),
	}
}

func TestWriteInputs(t *testing.T) {
	if *writeInputs == "" {
		return // asked for by scripts/explain-cases alone
	}
	for name, data := range inputs() {
		if err := os.WriteFile(filepath.Join(*writeInputs, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A testCase is a file of measure/testdata/explain.
type testCase struct {
	MadeBy string   `json:"made_by"`
	Base   testBase `json:"base"`
	Try    struct {
		Firmware  []string
		Kernel    []string
		Initrd    []string
		Cmdline   []string
		Signature uint32
	}
	Digest measure.HexBytes

	// Golden and Fields are what a report is expected to say and says besides.
	Golden *measure.Golden
	Fields *struct {
		Policy   uint64
		SVN      uint32           `json:"guest_svn"`
		HostData measure.HexBytes `json:"host_data"`
		FamilyID measure.HexBytes `json:"family_id"`
		IDKey    measure.Digest   `json:"id_key_digest"`
	}

	Expect []string
}

type testBase struct {
	Mode         measure.Mode
	VMM          measure.VMM
	Firmware     string
	VCPUs        int
	CPU          string
	Features     uint64
	NoFPU        bool `json:"no_fpu"`
	Kernel       string
	Initrd       string
	Cmdline      string
	KernelHashes *bool `json:"kernel_hashes"`
}

func image(t testing.TB, name string) *ovmf.Image {
	t.Helper()
	img, err := ovmf.Parse(inputs()[name])
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// launch is the expected launch of a case.
func (b *testBase) launch(t testing.TB) (explain.Launch, explain.Boot) {
	l := explain.Launch{Firmware: image(t, b.Firmware), FirmwareName: b.Firmware, CPUModel: b.CPU}
	l.Options = ovmf.LaunchOptions{Mode: b.Mode, VMM: b.VMM, VCPUs: b.VCPUs, GuestFeatures: b.Features, NoFPU: b.NoFPU}
	if b.CPU != "" {
		var err error
		if l.Options.CPUSignature, err = measure.CPUSignature(b.CPU); err != nil {
			t.Fatal(err)
		}
	}
	boot := explain.Boot{KernelName: b.Kernel, InitrdName: b.Initrd, Initrd: measure.NoInitrd, Cmdline: b.Cmdline}
	boot.Kernel = sha256.Sum256(inputs()[b.Kernel])
	if b.Initrd != "" {
		boot.Initrd = sha256.Sum256(inputs()[b.Initrd])
	}
	if b.Kernel != "" && (b.KernelHashes == nil || *b.KernelHashes) {
		l.Boot = &boot
	}
	return l, boot
}

// TestPlantedDifferences reads measure/testdata/explain: one launch a file that differs
// from the expected one in what the file says, found out from its digest.
func TestPlantedDifferences(t *testing.T) {
	files, err := filepath.Glob("../measure/testdata/explain/*.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 40 {
		t.Errorf("found %d cases, expected at least 40", len(files))
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var c testCase
			dec := json.NewDecoder(bytes.NewReader(data))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&c); err != nil {
				t.Fatal(err)
			}
			l, boot := c.Base.launch(t)
			try := explain.Candidates{Cmdlines: c.Try.Cmdline}
			for _, name := range c.Try.Firmware {
				try.Firmwares = append(try.Firmwares, explain.Firmware{Name: name, Image: image(t, name)})
			}
			for _, name := range c.Try.Kernel {
				try.Kernels = append(try.Kernels, explain.File{Name: name, SHA256: sha256.Sum256(inputs()[name])})
			}
			for _, name := range c.Try.Initrd {
				try.Initrds = append(try.Initrds, explain.File{Name: name, SHA256: sha256.Sum256(inputs()[name])})
			}
			if c.Try.Signature != 0 {
				try.Signatures = []explain.Signature{{Name: "host", Value: c.Try.Signature}}
			}
			if l.Boot == nil && c.Base.Kernel != "" {
				try.Boots = []explain.Boot{boot}
			}
			r, err := explain.Digest(context.Background(), l, c.Digest, try)
			if err != nil {
				t.Fatal(err)
			}
			if !r.Matched {
				t.Fatalf("found no match among %d variants", r.Tried)
			}
			var got []string
			for _, d := range r.Differences {
				got = append(got, d.Text)
			}
			if c.Fields != nil {
				f := &explain.Fields{Policy: c.Fields.Policy, GuestSVN: c.Fields.SVN, IDKeyDigest: c.Fields.IDKey}
				copy(f.HostData[:], c.Fields.HostData)
				copy(f.FamilyID[:], c.Fields.FamilyID)
				for _, d := range explain.Compare(c.Golden, f) {
					got = append(got, d.Text)
				}
			}
			if d := cmp.Diff(strings.Join(c.Expect, "\n"), strings.Join(got, "\n")); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestUnexplained(t *testing.T) {
	l, _ := (&testBase{Firmware: "build-a.fd", VCPUs: 4, CPU: "EPYC-v4", Kernel: "vmlinuz-1"}).launch(t)
	told, total := 0, 0
	r, err := explain.Digest(context.Background(), l, bytes.Repeat([]byte{1}, 48), explain.Candidates{
		Firmwares: []explain.Firmware{{Name: "old.fd", Image: image(t, "old.fd")}},
		Progress: func(tried, all int) {
			if told++; tried != told {
				t.Errorf("told of %d combinations after %d", tried, told)
			}
			total = all
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if told != total || told == 0 {
		t.Errorf("told %d times of %d combinations", told, total)
	}
	var names []string
	for _, region := range r.Unexplained {
		names = append(names, region.Name)
	}
	if d := cmp.Diff([]string{"firmware", "kernel hashes", "vCPUs"}, names); r.Matched || d != "" {
		t.Errorf("found %+v\n%s", r, d)
	}
	if r.Unexplained[0].Tried != "2 builds" || r.Unexplained[0].GPA != 0xffff0000 {
		t.Errorf("found %+v", r.Unexplained[0])
	}
}

func TestSequences(t *testing.T) {
	variant := func(gpa uint64, vcpus, expected int, diffs ...explain.Difference) explain.Variant {
		s := &measure.Sequence{Steps: []measure.Step{{Type: measure.PageZero, GPA: gpa, Size: 4096}}}
		for range vcpus {
			s.VMSAs = append(s.VMSAs, measure.Step{Type: measure.PageVMSA, GPA: measure.VMSAGPA, Size: 4096})
		}
		return explain.Variant{Sequence: s, VCPUs: expected > 0, Expected: expected, Differences: diffs}
	}
	digest := func(v explain.Variant, vcpus int) measure.Digest {
		v.Sequence.VMSAs = v.Sequence.VMSAs[:vcpus]
		d, err := v.Sequence.LaunchDigest()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	bsp := explain.Difference{Field: "host_profile", Text: "host profile kvm-bsp instead of kvm"}
	variants := []explain.Variant{
		variant(0, 1, 0, bsp),
		variant(0x1000, 8, 4),
		variant(0x2000, 1, 0),
		variant(1, 8, 4), // could not be launched
	}
	for _, c := range []struct {
		digest measure.Digest
		want   string
	}{
		{digest(variant(0, 1, 0), 1), "true host profile kvm-bsp instead of kvm"},
		{digest(variant(0x1000, 8, 4), 4), "true"},
		{digest(variant(0x1000, 8, 4), 7), "true 7 vCPUs instead of 4"},
		{digest(variant(0x2000, 1, 0), 1), "true"},
		{digest(variant(0x3000, 1, 0), 1), "false"},
	} {
		r, err := explain.Sequences(context.Background(), c.digest, variants)
		if err != nil {
			t.Fatal(err)
		}
		got := []string{fmt.Sprint(r.Matched)}
		for _, d := range r.Differences {
			got = append(got, d.Text)
		}
		if s := strings.Join(got, " "); s != c.want || r.Tried != 10 {
			t.Errorf("found %q after %d, expected %q after 10", s, r.Tried, c.want)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := explain.Sequences(ctx, measure.Digest{}, variants); !errors.Is(err, context.Canceled) {
		t.Errorf("found error %v, expected that the context was canceled", err)
	}
}

func TestDigestRefuses(t *testing.T) {
	l, _ := (&testBase{Firmware: "build-a.fd", VCPUs: 4, CPU: "EPYC-v4"}).launch(t)
	for _, n := range []int{0, 31, 33, 47, 49, 64} {
		if _, err := explain.Digest(context.Background(), l, make([]byte, n), explain.Candidates{}); err == nil {
			t.Errorf("digest of %d bytes: found no error", n)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := explain.Digest(ctx, l, make([]byte, 48), explain.Candidates{}); !errors.Is(err, context.Canceled) {
		t.Errorf("found error %v, expected that the context was canceled", err)
	}
	l.Options.VCPUs = 0
	if _, err := explain.Digest(context.Background(), l, make([]byte, 48), explain.Candidates{}); err == nil || !strings.Contains(err.Error(), "expected launch: vCPUs") {
		t.Errorf("found error %v, expected one about the expected launch", err)
	}
	l.Options.VCPUs = 1
	l.Boot = &explain.Boot{Cmdline: "a\nb"}
	if _, err := explain.Digest(context.Background(), l, make([]byte, 48), explain.Candidates{}); err == nil || !strings.Contains(err.Error(), "command line") {
		t.Errorf("found error %v, expected one about the command line", err)
	}
}

func TestCompare(t *testing.T) {
	author := measure.Digest{5}
	g := &measure.Golden{
		Policy: 0x30000, HostData: bytes.Repeat([]byte{1}, 32),
		IDBlock: &measure.GoldenIDBlock{FamilyID: make([]byte, 16), ImageID: make([]byte, 16), GuestSVN: 3, IDKeyDigest: measure.Digest{4}, AuthorKeyDigest: &author},
	}
	same := explain.Fields{Policy: 0x30000, HostData: [32]byte(g.HostData), GuestSVN: 3, IDKeyDigest: measure.Digest{4}, AuthorKeyDigest: author}
	if d := explain.Compare(g, &same); len(d) != 0 {
		t.Errorf("found %+v", d)
	}
	other := explain.Fields{Policy: 0x1b0105 | 1<<40, FamilyID: [16]byte{1}, ImageID: [16]byte{2}, IDKeyDigest: measure.Digest{6}}
	var got []string
	for _, d := range explain.Compare(g, &other) {
		got = append(got, d.Field)
	}
	if d := cmp.Diff([]string{"policy", "host_data", "family_id", "image_id", "svn", "id_key", "author_key"}, got); d != "" {
		t.Error(d)
	}
	text := explain.Compare(g, &other)[0].Text
	want := "policy 0x100001b0105 instead of 0x30000 (ABI version at least 1.5 instead of 0.0, with debugging, with single socket, unknown bits 0x10000000000)"
	if text != want {
		t.Errorf("found %q, expected %q", text, want)
	}
}

// BenchmarkDigest fails to find a digest, so that every variant is compared.
func BenchmarkDigest(b *testing.B) {
	l, _ := (&testBase{Firmware: "build-a.fd", VCPUs: 4, CPU: "EPYC-v4", Kernel: "vmlinuz-1", Cmdline: "console=ttyS0  quiet"}).launch(b)
	var tried int64
	start := time.Now()
	for b.Loop() {
		r, err := explain.Digest(context.Background(), l, make([]byte, 48), explain.Candidates{})
		if err != nil {
			b.Fatal(err)
		}
		tried += r.Tried
	}
	b.ReportMetric(float64(tried)/time.Since(start).Seconds(), "candidates/s")
}
