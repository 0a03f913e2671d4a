package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// runEvtpm runs the command in this process and returns what it printed.
func runEvtpm(t testing.TB, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	u := &ui{in: strings.NewReader(""), out: &out, err: &errOut, getenv: func(string) string { return "" }}
	app := newApp(u)
	err = app.RunContext(context.Background(), flagsFirst(app, append([]string{"evtpm"}, args...)))
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

// TestVectors runs every vector through the command line. The last line that it
// logs is what scripts/test-vectors prints.
func TestVectors(t *testing.T) {
	dir := testdata(t)
	data, err := os.ReadFile(filepath.Join(dir, "vectors", "launch-digests.json"))
	if err != nil {
		t.Fatal(err)
	}
	var v vectorFile
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
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
