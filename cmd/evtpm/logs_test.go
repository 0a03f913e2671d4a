//go:build linux

package main

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/launch/machine"
)

// A log that becomes another file while it is followed is followed there.
func TestLogThatIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console.log")
	put := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("one\ntw")
	open := func() (io.ReadCloser, error) { return os.Open(path) }
	f, err := open()
	if err != nil {
		t.Fatal(err)
	}
	looks := 0
	r := &tailReader{ctx: t.Context(), r: f, open: open, ended: func() bool {
		if looks++; looks == 1 {
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
			put("o\nthree\n")
		}
		return looks > 2
	}}
	var got []string
	if err := copyLines(r, func(text []byte) error { got = append(got, string(text)); return nil }); err != nil {
		t.Fatal(err)
	}
	if want := []string{"one\n", "two\n", "three\n"}; !slices.Equal(got, want) {
		t.Errorf("found %q, expected %q", got, want)
	}
	r.r.Close()
}

// What becomes of machines that run is told to programs.
func TestEndingDocuments(t *testing.T) {
	need(t, "swtpm")
	r := mustRig(t, fakeSettings{}, "")
	for _, c := range []struct {
		args []string
		want became
	}{
		{[]string{"stop"}, became{Done: []string{didStop}, State: machine.StateStopped}},
		{[]string{"kill"}, became{Done: []string{didStop}, State: machine.StateStopped}},
		{[]string{"rm", "--force"}, became{Done: []string{didStop, didRemove}, State: machine.StateStopped}},
	} {
		if code, said := r.evtpm("launch", r.spec); code != 0 {
			t.Fatalf("launch: exit code %d:\n%s", code, said)
		}
		out, err := r.command(append(c.args, "-o", "json", "m")...).Output()
		var doc struct {
			Schema   string   `json:"schema"`
			Machines []became `json:"machines"`
		}
		if err != nil || json.Unmarshal(out, &doc) != nil || doc.Schema != "evtpm."+c.args[0]+"/v1" || len(doc.Machines) != 1 {
			t.Fatalf("%s: %v: %s", strings.Join(c.args, " "), err, out)
		}
		if got := doc.Machines[0]; got.Name != "m" || !slices.Equal(got.Done, c.want.Done) || got.State != c.want.State || got.Error != nil {
			t.Errorf("%s: found %s", strings.Join(c.args, " "), out)
		}
	}
	r.nothingLeft(t)
}
