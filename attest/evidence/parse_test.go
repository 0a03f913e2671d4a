package evidence_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/evtpm/evtpm/attest/evidence"
)

func example() *evidence.Evidence {
	return &evidence.Evidence{
		Schema: evidence.Schema, Nonce: bytes.Repeat([]byte{1}, 64), Binding: evidence.BindingSVSM, Report: bytes.Repeat([]byte{2}, 1184),
		Manifest: []byte{3}, ManifestVersion: 1, Certificates: []byte{4}, EKPublic: []byte{5}, AKPublic: []byte{6},
		Quote: []byte{7}, QuoteSignature: []byte{8}, PCRBank: "sha256", PCRs: []evidence.PCR{{PCR: 4, Value: []byte{9}}},
		EventLog: []byte{10}, BootID: "boot",
	}
}

func TestParseRoundTrip(t *testing.T) {
	in := example()
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	out, err := evidence.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(in, out); diff != "" {
		t.Error(diff)
	}
}

func TestParseRefusesNonCanonicalBase64(t *testing.T) {
	text, err := json.Marshal(example())
	if err != nil {
		t.Fatal(err)
	}
	for b, field := range map[byte]string{3: "manifest", 4: "certificates", 5: "ek_public", 6: "ak_public", 7: "quote", 8: "quote_signature", 9: "value", 10: "event_log"} {
		good := fmt.Sprintf("%q:%q", field, string([]byte{"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[b>>2], "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[b&3<<4], '=', '='}))
		stray := []byte(good)
		stray[len(stray)-4]++ // the bits that no byte has
		bad := bytes.Replace(text, []byte(good), stray, 1)
		if bytes.Equal(bad, text) {
			t.Fatalf("%s is not in %s", good, text)
		}
		if _, err := evidence.Parse(bad); err == nil {
			t.Errorf("%s with stray bits was accepted", field)
		}
	}
	for field, first := range map[string]string{"nonce": "AQEB", "report": "AgIC"} {
		bad := bytes.Replace(text, []byte(fmt.Sprintf("%q:\"%s", field, first)), []byte(fmt.Sprintf("%q:\"%s\\n", field, first)), 1)
		if bytes.Equal(bad, text) {
			t.Fatalf("%s is not in the text", field)
		}
		if _, err := evidence.Parse(bad); err == nil {
			t.Errorf("%s with a line break was accepted", field)
		}
	}
}

// What Parse refuses although the bytes in it may be good: two readers could take
// it for two things, or it would take long to read.
func TestParseRefuses(t *testing.T) {
	in := example()
	in.BootID = ""
	good, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	change := func(old, new string) []byte {
		out := bytes.Replace(good, []byte(old), []byte(new), 1)
		if bytes.Equal(out, good) {
			t.Fatalf("%s is not in the text", old)
		}
		return out
	}
	// values is the text with so many of , [ and { in it.
	values := func(n int) []byte {
		n -= bytes.Count(good, []byte(",")) + bytes.Count(good, []byte("[")) + bytes.Count(good, []byte("{"))
		return change(`"boot_id":""`, fmt.Sprintf(`"boot_id":%q`, strings.Repeat(",[{", n/3)+strings.Repeat(",", n%3)))
	}
	long := func(n int) []byte { return append(bytes.Clone(good), bytes.Repeat([]byte(" "), n-len(good))...) }
	for name, c := range map[string]struct {
		text []byte
		good bool
	}{
		"as it is":           {good, true},
		"1000 values":        {values(1000), true},
		"1001 values":        {values(1001), false},
		"2 MiB":              {long(evidence.MaxEvidence), true},
		"2 MiB and a byte":   {long(evidence.MaxEvidence + 1), false},
		"next version":       {change("evidence/v1", "evidence/v2"), false},
		"no schema":          {change(`"schema":"evtpm.evidence/v1",`, ""), false},
		"unknown field":      {change(`"nonce"`, `"nounce":"","nonce"`), false},
		"repeated field":     {change(`"nonce"`, `"nonce":"","nonce"`), false},
		"in another case":    {change(`"nonce"`, `"Nonce"`), false},
		"trailing data":      {append(bytes.Clone(good), '{', '}'), false},
		"cut":                {good[:len(good)-1], false},
		"list for a string":  {change(`"manifest":"Aw=="`, `"manifest":[]`), false},
		"numbers for base64": {change(`"manifest":"Aw=="`, `"manifest":[3]`), false},
		"PCR 4 as a word":    {change(`"pcr":4`, `"pcr":"4"`), false},
		"version of 2^32":    {change(`"manifest_version":1`, `"manifest_version":4294967296`), false},
		"list for a PCR":     {change(`"value":"CQ=="`, `"value":[]`), false},
	} {
		t.Run(name, func(t *testing.T) {
			if ev, err := evidence.Parse(c.text); (err == nil) != c.good || (ev != nil) != c.good {
				t.Errorf("error is %v", err)
			}
		})
	}
}

func TestFrameRoundTrip(t *testing.T) {
	var b bytes.Buffer
	for _, payload := range [][]byte{nil, []byte("{}"), bytes.Repeat([]byte("x"), evidence.MaxPayload)} {
		b.Reset()
		if err := evidence.WriteFrame(&b, evidence.FrameEvidence, payload); err != nil {
			t.Fatal(err)
		}
		b.WriteString("next")
		kind, got, err := evidence.ReadFrame(&b, 0)
		if err != nil || kind != evidence.FrameEvidence || !bytes.Equal(got, payload) || b.String() != "next" {
			t.Errorf("%d bytes: %v", len(payload), err)
		}
	}
	if err := evidence.WriteFrame(io.Discard, 1, make([]byte, evidence.MaxPayload+1)); !errors.Is(err, evidence.ErrFrame) {
		t.Errorf("a payload that is too large: %v", err)
	}
}

func TestFrameRefuses(t *testing.T) {
	var b bytes.Buffer
	if err := evidence.WriteFrame(&b, evidence.FrameHello, []byte("payload")); err != nil {
		t.Fatal(err)
	}
	good := b.Bytes()
	change := func(i int, v byte) []byte {
		c := bytes.Clone(good)
		c[i] = v
		return c
	}
	for name, c := range map[string]struct {
		data      []byte
		malformed bool
	}{
		"magic":          {change(3, 'q'), true},
		"version":        {change(4, 2), true},
		"reserved":       {change(6, 1), true},
		"reserved too":   {change(7, 1), true},
		"four gigabytes": {change(8, 0xFF), true},
		"just too long":  {append(bytes.Clone(good[:8]), 0, 0x20, 0, 1), true},
		"header cut":     {good[:11], false},
		"payload cut":    {good[:len(good)-1], false},
		"empty":          {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := evidence.ReadFrame(bytes.NewReader(c.data), 0)
			if err == nil || errors.Is(err, evidence.ErrFrame) != c.malformed {
				t.Errorf("error is %v", err)
			}
		})
	}
	if _, _, err := evidence.ReadFrame(bytes.NewReader(good), 6); !errors.Is(err, evidence.ErrFrame) {
		t.Errorf("a payload above the reader's limit: %v", err)
	}
	// A connection that fails says so: a deadline that passed is no short frame.
	broken := io.MultiReader(bytes.NewReader(good[:14]), iotest.ErrReader(os.ErrDeadlineExceeded))
	if _, _, err := evidence.ReadFrame(broken, 0); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection that fails: %v", err)
	}
	if _, _, err := evidence.ReadFrame(iotest.OneByteReader(bytes.NewReader(good)), 7); err != nil {
		t.Errorf("one byte a time: %v", err)
	}
}

func seed(f *testing.F, inputs ...[]byte) {
	f.Helper()
	for i, b := range inputs {
		f.Add(b)
		if os.Getenv("EVTPM_WRITE_CORPUS") == "" {
			continue
		}
		dir := filepath.Join("testdata", "fuzz", f.Name())
		if err := os.MkdirAll(dir, 0o755); err != nil {
			f.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("seed-%02d", i)), fmt.Appendf(nil, "go test fuzz v1\n[]byte(%q)\n", b), 0o644); err != nil {
			f.Fatal(err)
		}
	}
}

func FuzzParse(f *testing.F) {
	ev := example()
	ev.Report = ev.Report[:8]
	text, err := json.Marshal(ev)
	if err != nil {
		f.Fatal(err)
	}
	seed(f, text, []byte(`{"schema":"evtpm.evidence/v1"}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		ev, err := evidence.Parse(b)
		if err != nil {
			return
		}
		text, err := json.Marshal(ev)
		if err != nil {
			t.Fatal(err)
		}
		again, err := evidence.Parse(text)
		if err != nil || !cmp.Equal(ev, again, cmp.Comparer(func(a, b []byte) bool { return bytes.Equal(a, b) })) {
			t.Errorf("written and read again: %v", err)
		}
	})
}

func FuzzReadFrame(f *testing.F) {
	var b bytes.Buffer
	if err := evidence.WriteFrame(&b, evidence.FrameHello, []byte("{}")); err != nil {
		f.Fatal(err)
	}
	seed(f, b.Bytes(), []byte("evtp\x01\x01\x00\x00\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		kind, payload, err := evidence.ReadFrame(r, 0)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := evidence.WriteFrame(&out, kind, payload); err != nil || !bytes.Equal(out.Bytes(), data[:len(data)-r.Len()]) {
			t.Errorf("written again: %v", err)
		}
	})
}
