package ovmf_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"crypto/sha256"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
	"github.com/evtpm/evtpm/ovmf/ovmftest"
)

// A launchCase is a random launch, and the fields in which peers read it.
type launchCase struct {
	mode, vmm, ovmf, model, kernel, initrd, cmdline string
	vcpus                                           int
	signature                                       uint32
	features                                        uint64
	svsm                                            string
	vars                                            int64
	kind                                            string // of firmware
}

func (c *launchCase) line() string {
	dash := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	fields := []string{c.mode, c.vmm, c.ovmf, strconv.Itoa(c.vcpus), dash(c.model), fmt.Sprint(c.signature), fmt.Sprint(c.features),
		dash(c.kernel), dash(c.initrd), hex.EncodeToString([]byte(c.cmdline))}
	if c.svsm != "" {
		fields = append(fields, c.svsm, fmt.Sprint(c.vars))
	}
	return strings.Join(fields, "\t")
}

// ours is our digest of the launch.
func (c *launchCase) ours() (string, error) {
	data, err := os.ReadFile(c.ovmf)
	if err != nil {
		return "", err
	}
	if c.mode == "snp:ovmf-hash" {
		d, err := ovmf.HashPages(bytes.NewReader(data), int64(len(data)))
		return d.String(), err
	}
	img, err := ovmf.Parse(data)
	if err != nil {
		return "", err
	}
	if c.svsm != "" {
		bin, err := os.ReadFile(c.svsm)
		if err != nil {
			return "", err
		}
		svsm, err := ovmf.Parse(bin)
		if err != nil {
			return "", err
		}
		s, err := img.SVSMSequence(svsm, ovmf.SVSMOptions{VarsSize: c.vars, VCPUs: c.vcpus, CPUSignature: c.signature})
		if err != nil {
			return "", err
		}
		d, err := s.LaunchDigest()
		return d.String(), err
	}
	o := ovmf.LaunchOptions{Mode: measure.Mode(c.mode), VCPUs: c.vcpus, CPUSignature: c.signature, GuestFeatures: c.features, RawFeatures: true}
	if o.VMM, err = measure.ParseVMM(c.vmm); err != nil {
		return "", err
	}
	if c.kernel != "" {
		kernel, err := os.ReadFile(c.kernel)
		if err != nil {
			return "", err
		}
		o.Hashes = &measure.KernelHashes{Kernel: sha256.Sum256(kernel), Initrd: measure.NoInitrd}
		if c.initrd != "" {
			initrd, err := os.ReadFile(c.initrd)
			if err != nil {
				return "", err
			}
			o.Hashes.Initrd = sha256.Sum256(initrd)
		}
		if o.Hashes.Cmdline, err = measure.HashCmdline(c.cmdline); err != nil {
			return "", err
		}
	}
	s, err := img.Sequence(o)
	if err != nil {
		return "", err
	}
	if o.Mode == measure.ModeSNP {
		d, err := s.LaunchDigest()
		return d.String(), err
	}
	d, err := s.SEVDigest()
	return hex.EncodeToString(d[:]), err
}

// randomCases makes launches of random images and parameters.
func randomCases(t *testing.T, dir string, n int) []launchCase {
	rng := rand.New(rand.NewPCG(7, 11))
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	random := func(n int) []byte {
		out := make([]byte, n)
		for i := range out {
			out[i] = byte(rng.Uint32())
		}
		return out
	}
	var firmwares, kinds, kernels []string
	for i := range 60 {
		image, kind := randomImage(rng)
		data := ovmftest.Build(image)
		for range rng.IntN(8) {
			copy(data[rng.IntN(len(data)-0x2000):], random(1 + rng.IntN(5000))[:])
		}
		tail := ovmftest.Build(image)
		copy(data[len(data)-0x1000:], tail[len(tail)-0x1000:])
		firmwares, kinds = append(firmwares, write(fmt.Sprintf("fw%d.fd", i), data)), append(kinds, kind)
		kernels = append(kernels, write(fmt.Sprintf("file%d", i), random(rng.IntN(3000))))
	}
	bin := write("svsm.bin", ovmftest.Build(svsmBin()))
	models := []string{"EPYC", "EPYC-v1", "EPYC-v4", "EPYC-IBPB", "EPYC-Rome", "EPYC-Rome-v3", "EPYC-Milan", "EPYC-Milan-v2", "EPYC-Genoa", "EPYC-Genoa-v1", "EPYC-Turin"}
	words := []string{"console=ttyS0", "quiet", "ro", `a="b c"`, "root=/dev/vda1", "ünïcode", "x,y,,z", "'q'", "  ", "\t"}
	out := make([]launchCase, n)
	for i := range out {
		f := rng.IntN(len(firmwares))
		c := launchCase{mode: "snp", vmm: "QEMU", ovmf: firmwares[f], kind: kinds[f], model: models[rng.IntN(len(models))], vcpus: 1 + rng.IntN(24), features: 1}
		switch rng.IntN(20) {
		case 0:
			c.vcpus = []int{64, 128, 255, 256, 511, 512}[rng.IntN(6)]
		case 1:
			c.mode = "snp:ovmf-hash"
		case 2, 3, 4:
			c.mode = "seves"
		case 5, 6:
			c.mode = "sev"
		case 7:
			c.mode, c.svsm, c.vars = "snp:svsm", bin, int64(1+rng.IntN(64))*4096
		}
		if rng.IntN(5) == 0 && c.svsm == "" {
			c.vmm = []string{"ec2", "gce"}[rng.IntN(2)]
		}
		if rng.IntN(3) == 0 {
			c.features = rng.Uint64N(1 << 16)
		}
		sig, err := measure.CPUSignature(c.model)
		if err != nil {
			t.Fatal(err)
		}
		c.signature = sig
		if rng.IntN(6) == 0 {
			c.model, c.signature = "", rng.Uint32()
		}
		if rng.IntN(2) == 0 && c.svsm == "" {
			c.kernel = kernels[rng.IntN(len(kernels))]
			if rng.IntN(2) == 0 {
				c.initrd = kernels[rng.IntN(len(kernels))]
			}
			for range rng.IntN(6) {
				c.cmdline += words[rng.IntN(len(words))] + " "
			}
			if rng.IntN(2) == 0 {
				c.cmdline = strings.TrimSpace(c.cmdline)
			}
		}
		out[i] = c
	}
	return out
}

// randomImage is an image with sections in random places, now and then with a
// fault or without something. kind names the fault.
func randomImage(rng *rand.Rand) (image ovmftest.Image, kind string) {
	image = ovmftest.AmdSev()
	image.Size = (1 + rng.IntN(40)) * 16 << 10
	image.Fill = byte(rng.Uint32())
	at := uint32(0x800000 + rng.IntN(256)*4096)
	var sections []ovmf.Section
	add := func(t ovmf.SectionType, pages int) {
		at += uint32(rng.IntN(3)) * 4096
		sections = append(sections, ovmf.Section{GPA: at, Size: uint32(pages) * 4096, Type: t})
		at += uint32(pages) * 4096
	}
	add(ovmf.SectionSecMem, 1+rng.IntN(20))
	add(ovmf.SectionSecrets, 1)
	add(ovmf.SectionCPUID, 1)
	if rng.IntN(2) == 0 {
		add(ovmf.SectionSVSMCAA, 1)
	}
	hashes := rng.IntN(3) > 0
	if hashes {
		add(ovmf.SectionKernelHashes, 1)
		offset := uint32(rng.IntN(4096 - 176 + 1))
		image.Entries[0].Data = ovmftest.U32(sections[len(sections)-1].GPA+offset, 176)
	} else {
		image.Entries[0].Data = ovmftest.U32(0, 0)
	}
	add(ovmf.SectionSecMem, 1+rng.IntN(40))
	image.Entries[3].Data = ovmftest.U32(rng.Uint32())
	rng.Shuffle(len(sections), func(i, j int) { sections[i], sections[j] = sections[j], sections[i] })
	switch rng.IntN(20) {
	case 0:
		sections[0].Size, kind = 0, "zero-size section"
	case 1:
		sections[0].GPA, kind = sections[1].GPA, "overlapping sections"
	case 2:
		image.Entries, kind = append(image.Entries[:2:2], image.Entries[3]), "no SEV metadata"
	case 3:
		image.Entries, kind = image.Entries[:0:0], "no entries"
	}
	image.Metadata = ovmftest.Metadata(sections...)
	return image, kind
}

// peer runs another implementation over all cases in one process.
func peer(t *testing.T, cases []launchCase, name string, args ...string) []string {
	var in bytes.Buffer
	for i := range cases {
		fmt.Fprintln(&in, cases[i].line())
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin, cmd.Stderr = &in, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	var lines []string
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
		lines = append(lines, sc.Text())
	}
	if len(lines) != len(cases) {
		t.Fatalf("%s: found %d answers, expected %d", name, len(lines), len(cases))
	}
	return lines
}

// TestI22Differential compares our digests of random launches with those of
// other implementations: sev-snp-measure 0.0.13 (EVTPM_PEER_PYTHON is a Python
// that has it) and virtee's sev crate 8.0.0 (EVTPM_PEER_RUST is the program of
// scripts/peers/sev-crate). scripts/test-differential sets both up.
func TestI22Differential(t *testing.T) {
	python, rust := os.Getenv("EVTPM_PEER_PYTHON"), os.Getenv("EVTPM_PEER_RUST")
	if python == "" && rust == "" {
		t.Skip("neither EVTPM_PEER_PYTHON nor EVTPM_PEER_RUST is set: see scripts/test-differential")
	}
	n := 3000
	if s := os.Getenv("EVTPM_PEER_CASES"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	cases := randomCases(t, t.TempDir(), n)
	if python != "" {
		compare(t, "sev-snp-measure", cases, peer(t, cases, python, "../scripts/peers/sev-snp-measure"), pythonRule)
	}
	if rust != "" {
		compare(t, "sev crate", cases, peer(t, cases, rust), rustRule)
	}
}

// compare counts equal digests, and those that differ by a rule that the manual
// has.
func compare(t *testing.T, name string, cases []launchCase, theirs []string, rule func(c *launchCase, ours, theirs string) string) {
	var equal, refused int
	documented := make(map[string]int)
	for i := range cases {
		c := &cases[i]
		ours, err := c.ours()
		if err != nil {
			ours = ""
		}
		failed := strings.HasPrefix(theirs[i], "error:")
		switch {
		case ours != "" && ours == theirs[i]:
			equal++
		case ours == "" && failed:
			refused++
		default:
			r := rule(c, ours, theirs[i])
			if r == "" {
				t.Errorf("%s: %s\nfound %q and error %v, the peer says %q", name, c.line(), ours, err, theirs[i])
			}
			documented[r]++
		}
	}
	t.Logf("%s: %d random launches, %d equal, %d refused by both", name, len(cases), equal, refused)
	for r, n := range documented {
		t.Logf("%s: %d differ: %s", name, n, r)
	}
	if equal < len(cases)/4 {
		t.Errorf("%s: %d of %d equal, expected more than a quarter: the cases are not what they should be", name, equal, len(cases))
	}
}

// pythonRule names the rule by which sev-snp-measure 0.0.13 differs.
func pythonRule(c *launchCase, ours, theirs string) string {
	if c.mode == "snp" && ours == "" && !strings.HasPrefix(theirs, "error:") {
		switch c.kind {
		case "zero-size section", "overlapping sections", "no SEV metadata":
			return c.kind + ": the peer gives a digest to what QEMU would not start"
		}
	}
	return ""
}

// rustRule names the rule by which the sev crate 8.0.0 differs.
func rustRule(c *launchCase, ours, theirs string) string {
	failed := strings.HasPrefix(theirs, "error:")
	switch {
	case c.mode == "snp" && ours == "" && !failed && (c.kind == "zero-size section" || c.kind == "overlapping sections"):
		return c.kind + ": the peer gives a digest to what QEMU would not start"
	case failed && (c.vmm == "gce" || c.mode == "snp:svsm" || c.mode == "sev" || c.mode == "seves"):
		return "the peer has no GCE and no svsm.bin, and SEV and SEV-ES only with OpenSSL"
	case failed && c.model == "":
		return "the peer knows no CPU signatures but those of its models"
	case c.vmm == "ec2" && c.mode != "sev":
		return "EC2's RDX is 0x600, the peer has 0"
	case c.kernel != "" && strings.TrimSpace(c.cmdline) != c.cmdline:
		return "the peer trims command lines"
	case failed && c.mode == "snp:ovmf-hash":
		return "the peer wants a table and SEV metadata for the hash of the pages"
	}
	return ""
}
