package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/ovmf"
	"github.com/evtpm/evtpm/ovmf/ovmftest"
)

// TestPeerCommandLines gives random command lines to sev-snp-measure 0.0.13 and
// to evtpm measure: a script that calls the one must be able to call the other.
// The same standard output where both succeed; an error where it has one, but
// for what the manual says. EVTPM_PEER_PYTHON is a Python that has the program:
// see scripts/test-differential.
func TestPeerCommandLines(t *testing.T) {
	python := os.Getenv("EVTPM_PEER_PYTHON")
	if python == "" {
		t.Skip("EVTPM_PEER_PYTHON is not set: see scripts/test-differential")
	}
	n := 3000
	if s := os.Getenv("EVTPM_PEER_CASES"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	files := peerFiles(t)
	rng := rand.New(rand.NewPCG(3, 5))
	lines := make([][]string, n)
	var in bytes.Buffer
	for i := range lines {
		lines[i] = files.line(rng)
		doc, err := json.Marshal(lines[i])
		if err != nil {
			t.Fatal(err)
		}
		in.Write(append(doc, '\n'))
	}
	cmd := exec.Command(python, "../../scripts/peers/sev-snp-measure", "--command-lines")
	cmd.Stdin, cmd.Stderr = &in, os.Stderr
	answers, err := cmd.Output()
	if err != nil {
		t.Fatalf("sev-snp-measure: %v", err)
	}
	var equal, refused int
	documented := make(map[string]int)
	sc := bufio.NewScanner(bytes.NewReader(answers))
	for _, args := range lines {
		var theirs struct {
			Exit           int
			Stdout, Stderr string
		}
		if !sc.Scan() {
			t.Fatal("sev-snp-measure: found fewer answers than command lines")
		}
		if err := json.Unmarshal(sc.Bytes(), &theirs); err != nil {
			t.Fatal(err)
		}
		out, _, err := runEvtpm(t, append([]string{"measure"}, args...)...)
		switch {
		case err == nil && theirs.Exit == 0 && out == theirs.Stdout:
			equal++
		case err != nil && theirs.Exit != 0 && out == "":
			refused++
		default:
			rule := commandLineRule(args, err, theirs.Exit)
			if rule == "" {
				t.Errorf("%q: found %q and error %v, the peer: exit code %d, %q %q", args, out, err, theirs.Exit, theirs.Stdout, theirs.Stderr)
			}
			documented[rule]++
		}
	}
	t.Logf("sev-snp-measure: %d random command lines, %d equal, %d refused by both", n, equal, refused)
	for rule, count := range documented {
		t.Logf("sev-snp-measure: %d differ: %s", count, rule)
	}
	if equal < n/4 || refused < n/20 {
		t.Errorf("found %d equal and %d refused of %d: the command lines are not what they should be", equal, refused, n)
	}
}

// commandLineRule names the rule by which a command line means something else to
// the peer.
func commandLineRule(args []string, err error, exit int) string {
	has := func(flag, value string) bool {
		for i, a := range args {
			if name, v, ok := strings.Cut(a, "="); ok && name == flag && v == value {
				return true
			}
			if a == flag && i+1 < len(args) && args[i+1] == value {
				return true
			}
		}
		return false
	}
	mode := func(m string) bool { return has("--mode", m) }
	if exit == 0 && err != nil {
		for _, r := range []struct{ text, rule string }{
			{"no SEV metadata", "the peer measures firmware without SEV metadata"},
			{"found size 0", "the peer measures sections of size 0"},
			{"expected a multiple of 4096", "the peer measures what is no whole number of pages in mode sev"},
			{"overlaps", "the peer measures a page twice"},
			{"expected 1 to 512", "the peer measures any number of vCPUs"},
			{"expected one line without NUL", "the peer hashes newlines in a command line"},
			{"--append: expected --kernel", "the peer drops the command line when the kernel's name is empty"},
			{"--initrd: expected --kernel", "the peer drops the initrd when the kernel's name is empty"},
			{"mode snp:svsm measures no kernel", "the peer drops a kernel in mode snp:svsm"},
			{"--snp-ovmf-hash: expected --mode snp:", "the peer drops a firmware hash in mode snp:ovmf-hash"},
			{"of at most 32 bits", "the peer takes CPU signatures of more than 32 bits"},
		} {
			if strings.Contains(err.Error(), r.text) {
				return r.rule
			}
		}
	}
	if exit != 0 && err == nil {
		switch {
		case mode("snp:ovmf-hash"), mode("sev"):
			return "the peer looks at flags that play no part in the mode"
		case has("--vcpu-sig", "0"):
			return "the peer takes signature 0 for none"
		case has("--output-format", "json"), has("-o", "json"):
			return "the peer has no JSON"
		}
	}
	return ""
}

// peerInputs are the files that random command lines name.
type peerInputs struct{ firmware, files []string }

func peerFiles(t *testing.T) *peerInputs {
	dir := t.TempDir()
	in := &peerInputs{}
	write := func(into *[]string, name string, data []byte) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		*into = append(*into, path)
	}
	amdsev := ovmftest.AmdSev()
	write(&in.firmware, "amdsev.fd", ovmftest.Build(amdsev))
	amdsev.Fill, amdsev.Size = 0x5a, 256<<10
	write(&in.firmware, "amdsev2.fd", ovmftest.Build(amdsev))
	plain := ovmftest.AmdSev()
	plain.Entries[0].Data = ovmftest.U32(0, 0)
	plain.Metadata = ovmftest.Metadata(ovmftest.AmdSevSections()[:6]...)
	write(&in.firmware, "plain.fd", ovmftest.Build(plain))
	bare := ovmftest.AmdSev()
	bare.Entries = append(bare.Entries[:2:2], bare.Entries[3])
	write(&in.firmware, "no-metadata.fd", ovmftest.Build(bare))
	zero := ovmftest.AmdSev()
	sections := ovmftest.AmdSevSections()
	sections[5] = ovmf.Section{Type: ovmf.SectionSecMem}
	zero.Metadata = ovmftest.Metadata(sections...)
	write(&in.firmware, "zero-size.fd", ovmftest.Build(zero))
	svsm := ovmftest.Image{
		Entries: []ovmftest.Entry{
			{GUID: ovmftest.SEVMetadata, Data: ovmftest.U32(ovmftest.MetadataFromEnd)},
			{GUID: ovmftest.SVSMInfo, Data: ovmftest.U32(0x1000)},
		},
		Metadata: ovmftest.Metadata(ovmf.Section{GPA: 0, Size: 0x9e000, Type: ovmf.SectionSecMem}),
	}
	write(&in.files, "svsm.bin", ovmftest.Build(svsm))
	write(&in.files, "kernel", testKernel())
	write(&in.files, "initrd", []byte("initrd"))
	write(&in.files, "empty", nil)
	in.files = append(in.files, os.DevNull)
	return in
}

// line is a random command line of sev-snp-measure, mostly a good one.
func (in *peerInputs) line(rng *rand.Rand) []string {
	pick := func(values ...string) string { return values[rng.IntN(len(values))] }
	maybe := func(percent int) bool { return rng.IntN(100) < percent }
	var args []string
	flag := func(name, value string) {
		if maybe(30) && value != "" {
			args = append(args, name+"="+value)
		} else {
			args = append(args, name, value)
		}
	}
	mode := pick("snp", "snp", "snp", "snp", "snp", "sev", "seves", "snp:ovmf-hash", "snp:svsm")
	if maybe(2) {
		mode = pick("tdx", "SNP", "snp:", "es")
	}
	if !maybe(1) {
		flag("--mode", mode)
	}
	if !maybe(1) {
		firmware := pick(in.firmware[0], in.firmware[0], in.firmware[0], in.firmware[1], in.firmware[2], in.firmware[3], in.firmware[4])
		if maybe(2) {
			firmware = pick(in.files[1], in.files[3], "/nonexistent", filepath.Dir(in.files[0]))
		}
		flag("--ovmf", firmware)
	}
	if !maybe(3) {
		vcpus := pick("1", "2", "4", "8", "64", "512", "+3", "010", "08", "003")
		if maybe(4) {
			vcpus = pick("0", "513", "x", "", "0x4", "4.0", "-1", "1e1", "0b1")
		}
		flag("--vcpus", vcpus)
	}
	switch rng.IntN(10) {
	case 0:
		flag("--vcpu-sig", pick("0x800f12", "8392466", "0xb00f21", "0", "0X800F12", "0o43", "0b101", "010", "x", "0x1_0", "4294967295", "0x100000000"))
	case 1:
		flag("--vcpu-family", pick("23", "25", "26", "15", "025", "x"))
		flag("--vcpu-model", pick("1", "49", "17", "0", "008"))
		if !maybe(5) {
			flag("--vcpu-stepping", pick("0", "1", "2", "010"))
		}
		if maybe(20) {
			flag("--vcpu-type", "EPYC-v4")
		}
	case 2:
		// none
	default:
		flag("--vcpu-type", pick("EPYC", "EPYC-v1", "EPYC-v4", "EPYC-IBPB", "EPYC-Rome", "EPYC-Milan", "EPYC-Milan-v2", "EPYC-Genoa", "EPYC-Turin", "EPYC-v4"))
		if maybe(3) {
			args[len(args)-1] = pick("epyc", "Skylake-Server", "")
		}
	}
	if maybe(25) {
		flag("--vmm-type", pick("QEMU", "ec2", "gce", "gce", "ec2", "xen", ""))
	}
	if maybe(30) {
		flag("--guest-features", pick("0x1", "1", "0x21", "0x0", "33", "0xffffffffffffffff", "0o1", "0b1", "01", "x", ""))
	}
	if maybe(35) {
		flag("--kernel", pick(in.files[1], in.files[1], in.files[1], in.files[2], in.files[3], "/nonexistent", ""))
		if maybe(60) {
			flag("--append", pick("console=ttyS0", "a  b ", " a", "ünïcode", `a="b c"`, "'", "", "a,b", "x=y", "line\n", strings.Repeat("x", 2047)))
		}
		if maybe(50) {
			flag("--initrd", pick(in.files[2], in.files[3], ""))
		}
	} else if maybe(4) {
		flag(pick("--append", "--initrd"), pick(in.files[2], ""))
	}
	if maybe(10) {
		flag("--snp-ovmf-hash", pick(strings.Repeat("ab", 48), strings.Repeat("AB", 48), "", strings.Repeat("a", 95)))
	}
	if mode == "snp:svsm" || maybe(2) {
		if !maybe(5) {
			flag("--svsm", pick(in.files[0], in.files[0], in.files[0], "/nonexistent"))
		}
		switch rng.IntN(8) {
		case 0:
			flag("--vars-file", pick(in.firmware[0], "/nonexistent"))
		case 1:
			flag("--vars-size", pick("0", "x", "0x1000", "04096"))
		case 2:
		default:
			flag("--vars-size", pick("4096", "540672"))
		}
	}
	if maybe(20) {
		flag("--output-format", pick("hex", "base64", "json", "raw"))
	}
	if maybe(15) {
		args = append(args, pick("-v", "--verbose"))
	}
	if maybe(2) {
		args = append(args, pick("--bogus", "extra", "--vcpus"))
	}
	// The order of flags means nothing, but a flag's value stays beside it.
	if maybe(50) && len(args) > 4 {
		for i, a := range args {
			if i > 0 && strings.HasPrefix(a, "--") && !strings.HasPrefix(args[i-1], "--") && maybe(20) {
				args = append(append([]string{}, args[i:]...), args[:i]...)
				break
			}
		}
	}
	return args
}
