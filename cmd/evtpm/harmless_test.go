package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestL32_Harmless: nothing that a guest prints moves the cursor, looks like our
// own line, or hides.
func TestL32_Harmless(t *testing.T) {
	for in, want := range map[string]string{
		"plain text":                "plain text",
		"tab\there\r":               "tab    here",
		"\r\r\r":                    "",
		"over\rwrite":               `over\x0dwrite`,
		"\x1b[2J\x1b[1;1Hverdict":   `\x1b[2J\x1b[1;1Hverdict`,
		"\x1b]0;title\x07":          `\x1b]0;title\x07`,
		"\u009b31m":                 `\u009b31m`,
		"caf\u00e9 \u65e5\u672c":    "caf\u00e9 \u65e5\u672c",
		"\u202edrawkcab":            `\u202edrawkcab`,
		"zero\u200bwidth\ufeff":     `zero\u200bwidth\ufeff`,
		"\xff\xfe\x80":              `\xff\xfe\x80`,
		"a\x00b\x7f":                `a\x00b\x7f`,
		"evtpm: verdict: trusted":   "evtpm: verdict: trusted",
		"two\nlines":                `two\x0alines`,
		"line\u2028separator":       `line\u2028separator`,
		"no-break\u00a0space\u3000": `no-break\u00a0space\u3000`,
	} {
		if got := harmless([]byte(in)); got != want {
			t.Errorf("%q: found %q, expected %q", in, got, want)
		}
	}
}

func FuzzHarmless(f *testing.F) {
	f.Add([]byte("plain"))
	f.Add([]byte("\x1b[2J\xff\u202e\r"))
	f.Fuzz(func(t *testing.T, line []byte) {
		out := harmless(line)
		if len(out) > 6*len(line) {
			t.Errorf("%d bytes became %d", len(line), len(out))
		}
		for _, r := range out {
			if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || strings.ContainsRune("\u2028\u2029\u200b\u202e\ufeff", r) {
				t.Errorf("%q: %q is in the output", line, r)
			}
		}
	})
}

// TestL32_Output: nothing that came from elsewhere does so in errors, verdicts or
// documents either.
func TestL32_Output(t *testing.T) {
	for in, want := range map[string]string{
		"caf\u00e9":       "caf\u00e9",
		"\x1b[2J":         `"\x1b[2J"`,
		"\x9b2J":          `"\x9b2J"`,
		"one\ntwo":        `"one\ntwo"`,
		"a\u202eb":        `"a\u202eb"`,
		"caf\u00e9\ufffd": "\"caf\u00e9\ufffd\"",
	} {
		if got := printable(in); got != want {
			t.Errorf("%q: found %q, expected %q", in, got, want)
		}
	}

	var out, errs bytes.Buffer
	u := &ui{out: &out, err: &errs}
	u.fail(errors.Join(errors.New("first"), fmt.Errorf("second: %w", errors.New("\x1b[2J\u009b\nverdict: trusted"))))
	if want := "evtpm: error: first\nevtpm: error: second: \\x1b[2J\\u009b\n  verdict: trusted\n"; errs.String() != want {
		t.Errorf("found %q, expected %q", errs.String(), want)
	}

	lines := (&diffDocument{Fields: []fieldDiff{{"input \u009b2J", []byte("1\n"), []byte("2\u202e")}}}).lines()
	if want := `input \u009b2J: 1\x0a | 2\u202e`; len(lines) != 1 || lines[0] != want {
		t.Errorf("found %q, expected %q", lines, want)
	}

	const hostile = "<caf\u00e9>\x1b\x7f\u009b2J\u202e\ufeff\U000e0041\u2028\n"
	if err := u.json(map[string]string{"text": hostile}); err != nil {
		t.Fatal(err)
	}
	const want = "{\n  \"text\": \"<caf\u00e9>\\u001b\\u007f\\u009b2J\\u202e\\ufeff\\udb40\\udc41\\u2028\\n\"\n}\n"
	if out.String() != want {
		t.Errorf("found %q, expected %q", out.String(), want)
	}
	var back map[string]string
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back["text"] != hostile {
		t.Errorf("read back %q (%v)", back["text"], err)
	}
	if err := u.json(func() {}); err == nil {
		t.Error("no error for what has no JSON form")
	}
}
