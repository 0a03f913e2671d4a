package ovmf_test

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

// testdata returns the folder of inputs that are not part of the repository.
func testdata(t testing.TB) string {
	dir := os.Getenv("EVTPM_TESTDATA")
	if dir == "" {
		t.Skip("EVTPM_TESTDATA is not set: firmware images and vectors are not at hand")
	}
	return dir
}

func readFile(t testing.TB, elem ...string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

type vectorFile struct {
	Inputs map[string]struct {
		File   string
		SHA256 measure.HexBytes
	}
	Vectors []struct {
		Name, Tool, Expected, Must string
		Args                       []string
	}
	VMSA []struct {
		VMM, CPU, Features, Which, OVMF string
		Nonzero                         map[string]string
		SHA384                          measure.Digest
	}
}

func readVectors(t testing.TB) (*vectorFile, string) {
	dir := testdata(t)
	v := new(vectorFile)
	if err := json.Unmarshal(readFile(t, dir, "vectors", "launch-digests.json"), v); err != nil {
		t.Fatal(err)
	}
	return v, dir
}

// TestVectors holds the library's sequences against digests that virtee's
// sev-snp-measure 0.0.13 computed, most of them confirmed by other programs. The
// kernels are taken by their hashes. What only the command line has (svsm.bin,
// precomputed hashes, base64) is tested there.
func TestVectors(t *testing.T) {
	v, dir := readVectors(t)
	var run int
	for _, vec := range v.Vectors {
		opt := map[string]string{}
		for i := 0; i+1 < len(vec.Args); i += 2 {
			opt[vec.Args[i]] = vec.Args[i+1]
		}
		if m := opt["--mode"]; strings.Contains(m, ":") || opt["--output-format"] == "base64" || opt["--snp-ovmf-hash"] != "" {
			continue
		}
		run++
		t.Run(vec.Name, func(t *testing.T) {
			input := func(flag string) string { return strings.Trim(opt[flag], "{}") }
			data := readFile(t, dir, v.Inputs[input("--ovmf")].File)
			got, err := vectorDigest(v, data, opt)
			if vec.Must == "refuse" {
				if err == nil {
					t.Errorf("found digest %s, expected a refusal", got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got != vec.Expected {
				t.Errorf("found %s, expected %s (%s)", got, vec.Expected, vec.Tool)
			}
		})
	}
	if run < 100 {
		t.Errorf("ran %d vectors, expected at least 100", run)
	}
}

func vectorDigest(v *vectorFile, data []byte, opt map[string]string) (string, error) {
	o := ovmf.LaunchOptions{Mode: measure.Mode(opt["--mode"]), NoFPU: opt["--legacy-vm-type"] == "on", RawFeatures: true}
	vmm := opt["--vmm-type"]
	if vmm == "" {
		vmm = "QEMU"
	}
	var err error
	if o.VMM, err = measure.ParseVMM(vmm); err != nil {
		return "", err
	}
	o.VCPUs, _ = strconv.Atoi(opt["--vcpus"])
	if f, ok := opt["--guest-features"]; ok {
		if o.GuestFeatures, err = strconv.ParseUint(f, 0, 64); err != nil {
			return "", err
		}
	}
	if name, ok := opt["--vcpu-type"]; ok {
		if o.CPUSignature, err = measure.CPUSignature(name); err != nil {
			return "", err
		}
	}
	if s, ok := opt["--vcpu-sig"]; ok {
		n, err := strconv.ParseUint(s, 0, 32)
		if err != nil {
			return "", err
		}
		o.CPUSignature = uint32(n)
	}
	if k, ok := opt["--kernel"]; ok {
		o.Hashes = &measure.KernelHashes{Initrd: measure.NoInitrd}
		copy(o.Hashes.Kernel[:], v.Inputs[strings.Trim(k, "{}")].SHA256)
		if i, ok := opt["--initrd"]; ok {
			copy(o.Hashes.Initrd[:], v.Inputs[strings.Trim(i, "{}")].SHA256)
		}
		if o.Hashes.Cmdline, err = measure.HashCmdline(opt["--append"]); err != nil {
			return "", err
		}
	}
	img, err := ovmf.Parse(data)
	if err != nil {
		return "", err
	}
	seq, err := img.Sequence(o)
	if err != nil {
		return "", err
	}
	if o.Mode == measure.ModeSNP {
		d, err := seq.LaunchDigest()
		return d.String(), err
	}
	d, err := seq.SEVDigest()
	return hex.EncodeToString(d[:]), err
}

// TestVMSADumps compares whole save areas with those that sev-snp-measure
// dumped.
func TestVMSADumps(t *testing.T) {
	v, dir := readVectors(t)
	for _, dump := range v.VMSA {
		t.Run(dump.VMM+"/"+dump.CPU+"/"+dump.Which, func(t *testing.T) {
			img, err := ovmf.Parse(readFile(t, dir, v.Inputs[dump.OVMF].File))
			if err != nil {
				t.Fatal(err)
			}
			sig, err := measure.CPUSignature(dump.CPU)
			if err != nil {
				t.Fatal(err)
			}
			features, err := strconv.ParseUint(dump.Features, 0, 64)
			if err != nil {
				t.Fatal(err)
			}
			c := measure.VCPU{VMM: measure.VMM(dump.VMM), Signature: sig, Features: features, EIP: measure.ResetEIP}
			if dump.Which == "ap" {
				c.EIP = *img.ResetEIP
			}
			vmsa, err := c.VMSA()
			if err != nil {
				t.Fatal(err)
			}
			page := vmsa.Page()
			want := make([]byte, measure.PageSize)
			for at, word := range dump.Nonzero {
				offset, err := strconv.ParseUint(at, 0, 16)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := hex.Decode(want[offset:], []byte(word)); err != nil {
					t.Fatal(err)
				}
			}
			for i := range page {
				if page[i] != want[i] {
					t.Errorf("offset 0x%03x: found 0x%02x, expected 0x%02x", i, page[i], want[i])
				}
			}
			if got := measure.PageDigest(page); got != dump.SHA384 {
				t.Errorf("found SHA-384 %s, expected %s", got, dump.SHA384)
			}
		})
	}
}
