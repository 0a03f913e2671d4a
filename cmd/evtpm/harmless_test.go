package main

import (
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
