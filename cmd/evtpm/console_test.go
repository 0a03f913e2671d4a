//go:build linux

package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/launch/machine"
)

func filtered(t testing.TB, parts ...string) string {
	t.Helper()
	var out bytes.Buffer
	f := &consoleFilter{w: &out}
	for _, p := range parts {
		if n, err := f.Write([]byte(p)); n != len(p) || err != nil {
			t.Fatalf("wrote %d of %d bytes, %v", n, len(p), err)
		}
	}
	return out.String()
}

// TestL32_ConsoleFilter: text and colours pass; what moves the cursor, answers
// the terminal's questions or names its window does not.
func TestL32_ConsoleFilter(t *testing.T) {
	for in, want := range map[string]string{
		"login: \r\n":                       "login: \r\n",
		"ab\b \b\tc\a":                      "ab\b \b\tc\a",
		"\x1b[1;31mred\x1b[0m":              "\x1b[1;31mred\x1b[0m",
		"\x1b[mplain":                       "\x1b[mplain",
		"\x1b[2J\x1b[01;01H\x1b[=3hOVMF":    "OVMF",
		"\x1b[>4;1mx":                       "x", // xterm's modifyOtherKeys, which also ends with m
		"\x1b[6n\x1b[cask":                  "ask",
		"\x1b]0;title\x07after":             "after",
		"\x1b]52;c;ZXZpbA==\x1b\\after":     "after",
		"\x1bP1$r\x1b\\x\x1b_apc\x1b\\y":    "xy",
		"\x1bcreset\x1b7\x1b(0save":         "resetsave",
		"\u009b31mC1":                       `\u009b31mC1`,
		"\x00\x05\x0e\x0f\x7f\x1ax":         "x",
		"caf\u00e9 \u65e5\u672c":            "caf\u00e9 \u65e5\u672c",
		"\xff\xfe!":                         `\xff\xfe!`,
		"\xc3!":                             "!", // a character that was cut short
		"\x1b]" + strings.Repeat("x", 1000): strings.Repeat("x", 1000-maxSequence),
	} {
		if got := filtered(t, in); got != want {
			t.Errorf("%q: found %q, expected %q", in, got, want)
		}
		// However it is cut into pieces.
		if got := filtered(t, strings.Split(in, "")...); got != want && !strings.Contains(in, "\xff") {
			t.Errorf("%q in pieces: found %q, expected %q", in, got, want)
		}
	}
	// A character whose bytes come apart.
	if got := filtered(t, "\xc3", "\xa9"); got != "\u00e9" {
		t.Errorf("found %q", got)
	}
}

// harmlessOutput is what may reach a terminal.
var harmlessOutput = regexp.MustCompile(`^(?:[\n\r\t\x08\x07]|\x1b\[[0-9;]*m|[^\x00-\x1f\x7f-\x{9f}])*$`)

func FuzzConsoleFilter(f *testing.F) {
	f.Add([]byte("\x1b[1;31mred\x1b[0m \x1b]0;title\x07"))
	f.Add([]byte("\x1b[\x1b[31m\xc2\x9b\x1bP\x1b\x1b\\"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if out := filtered(t, string(data)); !harmlessOutput.MatchString(out) {
			t.Errorf("%q became %q", data, out)
		}
	})
}

// TestConsole: what is typed goes to the guest until Ctrl-], what the guest says
// comes back harmless.
func TestConsole(t *testing.T) {
	ours, guest := net.Pipe()
	var out bytes.Buffer
	typed, in := io.Pipe()
	u := &ui{in: typed, out: &out, err: io.Discard}
	done := make(chan error, 1)
	go func() { done <- u.console(context.Background(), ours, false) }()
	if _, err := io.WriteString(guest, "\x1b[2Jlogin: "); err != nil {
		t.Fatal(err)
	}
	go io.WriteString(in, "root\n\x1dnot this")
	got, err := io.ReadAll(guest)
	if err != nil || string(got) != "root\n" {
		t.Errorf("the guest read %q, %v", got, err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the console goes on after Ctrl-]")
	}
	if out.String() != "login: " {
		t.Errorf("the terminal got %q", out.String())
	}
}

func TestPsTable(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	var out bytes.Buffer
	psTable(&out, []machine.Record{
		{Name: "a", Platform: "sim", State: machine.StateTrusted, Running: true, Created: now.Add(-90 * time.Second), Verdict: &machine.VerdictSummary{Result: attest.ResultTrusted}},
		{Name: "b", Platform: "snp", State: machine.StateRefused, Running: true, Created: now, Verdict: &machine.VerdictSummary{Result: attest.ResultRefused, Reasons: []string{"vmpl-not-zero", "x"}}},
		{Name: "c", State: machine.StateDead, Reason: "gone\x1b[2J\nmore"},
	}, now)
	want := `NAME  STATE             PLATFORM  VERDICT                 AGE    NOTE
a     trusted           sim       trusted (SIMULATED)     1m30s  
b     refused, running  snp       refused: vmpl-not-zero  0s     
c     dead              -         -                       -      "gone\x1b[2J"
`
	if out.String() != want {
		t.Errorf("found\n%s\nexpected\n%s", out.String(), want)
	}
}
