package launch

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/evtpm/evtpm/launch/launchtest"
	"github.com/evtpm/evtpm/strictjson"
)

// FuzzLoadSpec: no document makes the reader panic, and one that is taken means
// the same after it went to another process.
func FuzzLoadSpec(f *testing.F) {
	f.Add(launchtest.Demo)
	f.Add(snp("policy: {debug: false, abi_major: 1}", "id_block: {block: b, auth: a}", "disks: [{path: a, format: raw}]"))
	f.Add(launchtest.With("networks: [{type: user, forwards: [{host_port: 1, guest_port: 2}]}]", "agent: {transport: tcp, address: 'h:1'}"))
	examples, err := filepath.Glob("../examples/*/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range examples {
		text, err := os.ReadFile(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := LoadSpec(strings.NewReader(text), "a.yaml")
		if err != nil {
			if s != nil {
				t.Error("found a spec beside an error")
			}
			return
		}
		s.FillDefaults("/dir")
		if s.Validate() != nil {
			return
		}
		data, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		got := new(Spec)
		if err := strictjson.Unmarshal(data, got, 1<<20, "spec"); err != nil {
			t.Fatalf("%v\n%s", err, data)
		}
		if d := cmp.Diff(s, got, ignoreSource); d != "" {
			t.Errorf("spec differs (-before +after):\n%s", d)
		}
		if err := got.Validate(); err != nil {
			t.Error(err)
		}
	})
}

// FuzzParseLock: no document makes the reader panic, and one that is taken is
// written as it was read.
func FuzzParseLock(f *testing.F) {
	_, s := planDir(f)
	good, err := resolve(f, s).Lock().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := ParseLock(data)
		if err != nil {
			return
		}
		once, err := l.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseLock(once)
		if err != nil {
			t.Fatal(err)
		}
		twice, err := again.Encode()
		if err != nil || !bytes.Equal(once, twice) {
			t.Errorf("found %s and %v, expected %s", twice, err, once)
		}
	})
}
