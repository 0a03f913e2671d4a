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
