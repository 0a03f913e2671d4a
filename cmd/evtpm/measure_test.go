package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/ovmf/ovmftest"
)

// runEvtpm runs the command in this process and returns what it printed.
func runEvtpm(t testing.TB, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	u := &ui{in: strings.NewReader(""), out: &out, err: &errOut, getenv: func(string) string { return "" }}
	args = append([]string{"evtpm"}, args...)
	app := newApp(u, args)
	err = app.RunContext(context.Background(), flagsFirst(app, args))
	return out.String(), errOut.String(), err
}

func testdata(t testing.TB) string {
	dir := os.Getenv("EVTPM_TESTDATA")
	if dir == "" {
		t.Skip("EVTPM_TESTDATA is not set: vectors and firmware are not at hand")
	}
	return dir
}

type vectorFile struct {
	Inputs map[string]struct {
		SHA256 string
		File   *string
	}
	Vectors []struct {
		Name, Tool, Expected, Must, Note string
		PeerValue                        string `json:"peer_value"`
		PeerError                        string `json:"peer_error"`
		Args                             []string
	}
	VMSA []struct {
		VMM, CPU, Features, Which, OVMF, SHA256 string
	}
	IDBlock []struct {
		Name, Tool, Measurement, Policy string
		FamilyID                        string  `json:"family_id"`
		ImageID                         string  `json:"image_id"`
		GuestSVN                        uint32  `json:"guest_svn"`
		IDKey                           string  `json:"id_key"`
		AuthorKey                       *string `json:"author_key"`
		SampleIDAuth                    []byte  `json:"sample_id_auth_base64"`
		Expected                        struct {
			IDBlock         []byte `json:"id_block_base64"`
			IDAuth          []byte `json:"id_auth_base64"` // of deterministic signatures alone
			IDKeyDigest     string `json:"id_key_digest"`
			AuthorKeyDigest string `json:"author_key_digest"`
		}
	}
}

// path is an input's file.
func (v *vectorFile) path(t testing.TB, dir, id string) string {
	if v.Inputs[id].File == nil {
		t.Fatalf("input %s is not at hand", id)
	}
	return filepath.Join(dir, *v.Inputs[id].File)
}

// vectorArgs replaces "{input}" by the input's file. A kernel or initrd that is
// not at hand is given by its hash. missing names an input that cannot be given.
func (v *vectorFile) vectorArgs(dir string, args []string) (out []string, missing string) {
	for i := 0; i < len(args); i++ {
		id, ok := strings.CutPrefix(args[i], "{")
		if !ok {
			out = append(out, args[i])
			continue
		}
		id = strings.TrimSuffix(id, "}")
		in := v.Inputs[id]
		if in.File != nil {
			path := filepath.Join(dir, *in.File)
			if _, err := os.Stat(path); err == nil {
				out = append(out, path)
				continue
			}
		}
		flag := out[len(out)-1]
		if flag != "--kernel" && flag != "--initrd" || in.SHA256 == "" {
			return nil, id
		}
		out[len(out)-1] = flag + "-hash"
		out = append(out, in.SHA256)
	}
	return out, ""
}

func readVectors(t testing.TB) (*vectorFile, string) {
	dir := testdata(t)
	data, err := os.ReadFile(filepath.Join(dir, "vectors", "launch-digests.json"))
	if err != nil {
		t.Fatal(err)
	}
	v := new(vectorFile)
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
	return v, dir
}

// TestVectors runs every launch digest among the vectors through the command
// line. scripts/test-vectors prints the lines that it and the next two log.
func TestVectors(t *testing.T) {
	v, dir := readVectors(t)
	var equal, documented, missing, wrong int
	for _, vec := range v.Vectors {
		args, absent := v.vectorArgs(dir, vec.Args)
		if absent != "" {
			missing++
			t.Errorf("%s: input %s is not at hand", vec.Name, absent)
			continue
		}
		out, _, err := runEvtpm(t, append([]string{"measure"}, args...)...)
		switch {
		case vec.Must == "refuse" && err != nil && out == "":
			if vec.PeerValue != "" {
				documented++ // the peer gives a digest to what QEMU would not start
			} else {
				equal++
			}
		case vec.Must == "" && err == nil && out == vec.Expected+"\n":
			equal++
		default:
			wrong++
			t.Errorf("%s: found %q and error %v, expected %q%s (%s)", vec.Name, out, err, vec.Expected, vec.Must, vec.Tool)
		}
	}
	t.Logf("vectors: %d run, %d equal, %d differing by a documented rule, %d missing, %d wrong",
		len(v.Vectors)-missing, equal, documented, missing, wrong)
}

// TestVectorsVMSA compares the save areas that --dump-vmsa writes.
func TestVectorsVMSA(t *testing.T) {
	v, dir := readVectors(t)
	t.Chdir(t.TempDir())
	equal := 0
	for _, d := range v.VMSA {
		args := []string{"measure", "--mode", "snp", "--vcpus", "2", "--vmm-type", d.VMM, "--vcpu-type", d.CPU, "--guest-features", d.Features, "--ovmf", v.path(t, dir, d.OVMF), "--dump-vmsa"}
		if _, _, err := runEvtpm(t, args...); err != nil {
			t.Fatal(err)
		}
		page, err := os.ReadFile(map[string]string{"bsp": "vmsa0.bin", "ap": "vmsa1.bin"}[d.Which])
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(page)); got != d.SHA256 {
			t.Errorf("%s %s %s: found SHA-256 %s, expected %s", d.VMM, d.CPU, d.Which, got, d.SHA256)
			continue
		}
		equal++
	}
	t.Logf("save areas: %d run, %d equal", len(v.VMSA), equal)
}

// TestVectorsIDBlock makes every ID block among the vectors, and verifies the
// other program's.
func TestVectorsIDBlock(t *testing.T) {
	v, dir := readVectors(t)
	t.Chdir(t.TempDir())
	equal := 0
	for _, b := range v.IDBlock {
		args := []string{"idblock", "create", "-o", "json", "--measurement", b.Measurement, "--svn", fmt.Sprint(b.GuestSVN), "--id-key", v.path(t, dir, b.IDKey)}
		verify := []string{"idblock", "verify", "block", "auth", "--digest", b.Measurement, "--svn", fmt.Sprint(b.GuestSVN), "--id-pub", v.path(t, dir, b.IDKey)}
		for flag, value := range map[string]string{"--policy": b.Policy, "--family-id": b.FamilyID, "--image-id": b.ImageID} {
			if value != "" {
				args, verify = append(args, flag, value), append(verify, flag, value)
			}
		}
		if b.AuthorKey != nil {
			args, verify = append(args, "--author-key", v.path(t, dir, *b.AuthorKey)), append(verify, "--author-pub", v.path(t, dir, *b.AuthorKey))
		}
		out, _, err := runEvtpm(t, args...)
		if err != nil {
			t.Errorf("%s: %v", b.Name, err)
			continue
		}
		var doc idblockDocument
		if err := json.Unmarshal([]byte(out), &doc); err != nil {
			t.Fatal(err)
		}
		author := strings.Repeat("0", 96) // what the vectors have for none
		if doc.AuthorKeyDigest != nil {
			author = doc.AuthorKeyDigest.String()
		}
		good := bytes.Equal(doc.IDBlock, b.Expected.IDBlock) && doc.IDKeyDigest.String() == b.Expected.IDKeyDigest && author == b.Expected.AuthorKeyDigest
		auth := b.SampleIDAuth
		if b.Expected.IDAuth != nil {
			auth = b.Expected.IDAuth
			good = good && bytes.Equal(doc.IDAuth, auth)
		}
		if !good {
			t.Errorf("%s: found %s, expected %+v (%s)", b.Name, out, b.Expected, b.Tool)
			continue
		}
		for name, data := range map[string][]byte{"block": doc.IDBlock, "auth": auth} {
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := runEvtpm(t, verify...); err != nil {
			t.Errorf("%s: the other program's signatures: %v", b.Name, err)
			continue
		}
		equal++
	}
	t.Logf("ID blocks: %d run, %d equal", len(v.IDBlock), equal)
}

// TestNullDevice: the null device is an empty kernel or initrd, as it is to
// sev-snp-measure.
func TestNullDevice(t *testing.T) {
	dir := t.TempDir()
	firmware, empty := filepath.Join(dir, "firmware"), filepath.Join(dir, "empty")
	for path, data := range map[string][]byte{firmware: ovmftest.Build(ovmftest.AmdSev()), empty: nil} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(kernel, initrd string) string {
		out, _, err := runEvtpm(t, "measure", "--mode", "snp", "--vcpus", "2", "--vcpu-type", "EPYC-v4", "--ovmf", firmware, "--kernel", kernel, "--initrd", initrd)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if got, want := run(os.DevNull, os.DevNull), run(empty, empty); got != want {
		t.Errorf("found %s, with empty files %s", got, want)
	}
}

// TestFromProcess: the relative paths of a running process are relative to its own
// directory.
func TestFromProcess(t *testing.T) {
	if _, err := os.Stat("/proc/self/cmdline"); err != nil {
		t.Skip("needs /proc/self/cmdline")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "fw.fd"), ovmftest.Build(ovmftest.AmdSev()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "read line", "-machine", "confidential-guest-support=s", "-object", "sev-snp-guest,id=s", "-bios", "fw.fd", "-cpu", "EPYC-v4", "-smp", "2")
	cmd.Dir = dir
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stdin.Close(); cmd.Wait() }()
	out, _, err := runEvtpm(t, "measure", "--from-qemu", fmt.Sprintf("@/proc/%d/cmdline", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	want, _, err := runEvtpm(t, "measure", "--mode", "snp", "--ovmf", filepath.Join(dir, "fw.fd"), "--vcpu-type", "EPYC-v4", "--vcpus", "2")
	if err != nil || out != want {
		t.Errorf("found %q, expected %q and no error: %v", out, want, err)
	}
}

// TestExplainSVSM: the digest that hardware gave for this launch has zero pages
// of the AMD-SP's own type, which the image's default does not.
func TestExplainSVSM(t *testing.T) {
	image := filepath.Join(testdata(t), "fixtures", "svsm", "svsm-epyc-v4-4vcpu.igvm")
	spec := filepath.Join(t.TempDir(), "svsm.yaml")
	doc := "version: 1\nname: svsm\nplatform: snp\nsvsm: {image: " + image + "}\ncpu: {model: EPYC-v4, count: 4}\n"
	if err := os.WriteFile(spec, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	for digest, want := range map[string]string{
		"27d154c27b7b359c935e250ec6fee72aa0ae8c1225e3b0e1cf46a9567e938066d7d6f94bbdc4a857818bdb79277a44b2": "matches with pages without data measured as the AMD-SP's zero pages\n",
		"6609cb03a5c2920b40c0b30841a1e54f70ce9f6cc9c638473e20c1ff7af21a827befe369ceac05e5366a876995ccd5a2": "matches\n",
		strings.Repeat("11", 48): "no variant matches; the first region that cannot be explained: SVSM image at 0xffc84000",
	} {
		out, _, err := runEvtpm(t, "-q", "explain", spec, "--digest", digest)
		if !strings.HasPrefix(out, want) {
			t.Errorf("%s: found %q and error %v, expected %q", digest, out, err, want)
		}
	}
}
