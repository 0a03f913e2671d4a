package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/evtpm/evtpm/attest"
)

// marks are the signs before each check.
type marks struct{ passed, failed, skipped string }

var (
	plainMarks    = marks{"ok  ", "FAIL", "-   "}
	terminalMarks = marks{"✓", "✗", "–"}
)

// marks chooses the signs: plain words where a terminal's signs would be in the
// way of programs and people who grep.
func (u *ui) marks() marks {
	f, ok := u.err.(*os.File)
	if !ok || u.getenv("NO_COLOR") != "" || !term.IsTerminal(int(f.Fd())) {
		return plainMarks
	}
	return terminalMarks
}

// verdict prints a verdict for people: a line a check, what was expected and
// found where one failed, and the outcome last.
func (u *ui) verdict(v *attest.Verdict) {
	m := u.marks()
	var notMade []string
	for _, c := range v.Checks {
		switch {
		case c.Status == attest.Passed:
			u.say("%s %s%s", m.passed, c.Name, brief(c.Found))
		case c.Status == attest.NotApplicable:
			u.say("%s %s: %s", m.skipped, c.Name, printable(c.Note))
			u.values("     ", "", telling(c.Found))
		case c.Reason == string(attest.ReasonNotMade):
			notMade = append(notMade, c.Name)
		default:
			u.say("%s %s: %s", m.failed, c.Name, c.Reason)
			u.values("     ", "expected ", c.Expected)
			u.values("     ", "found    ", c.Found)
			u.values("     ", "", c.Note)
		}
	}
	if len(notMade) > 0 {
		u.say("%s not made, since an earlier check failed: %s", m.failed, strings.Join(notMade, ", "))
	}
	for _, w := range v.Warnings {
		u.warn("%s", printable(w))
	}
	u.say("%s", verdictSummary(v))
	u.say("verdict: %s", verdictLine(v))
}

// values prints what a check saw, a line each.
func (u *ui) values(indent, label, text string) {
	if text == "" {
		return
	}
	for _, line := range strings.Split(text, "\n") {
		u.say("%s%s%s", indent, label, printable(line))
	}
}

// telling is what a check saw, if that is more than zeros.
func telling(s string) string {
	if strings.Trim(s, "0") == "" {
		return ""
	}
	return s
}

// brief is what a passed check saw, if it is short.
func brief(s string) string {
	const room = 64
	if s == "" || len(s) > room || strings.Contains(s, "\n") {
		return ""
	}
	return ": " + printable(s)
}

// printable quotes text that could move a terminal's cursor: it may come from a
// guest, a file or a network.
func printable(s string) string {
	for _, r := range s {
		// A byte that is no UTF-8 is U+FFFD here, but not on the terminal.
		if !strconv.IsPrint(r) || r == utf8.RuneError {
			return strconv.Quote(s)
		}
	}
	return s
}

// verdictLine is a verdict in a line: "trusted (SIMULATED)", or why it was
// refused.
func verdictLine(v *attest.Verdict) string {
	s := v.Result
	if v.Platform == attest.PlatformSim {
		s += " (SIMULATED)"
	}
	var reasons []string
	for _, c := range v.Failures() {
		if c.Reason != string(attest.ReasonNotMade) && !slices.Contains(reasons, c.Reason) {
			reasons = append(reasons, c.Reason)
		}
	}
	if len(reasons) > 0 {
		s += ": " + strings.Join(reasons, ", ")
	}
	return s
}

// verdictExit is the process's end after a verdict: nil when it is trusted, else
// the class of its most fundamental failure, everything having been said.
func verdictExit(v *attest.Verdict) error {
	if v.Trusted() {
		return nil
	}
	return errSilent(v.Class())
}

// verdictSummary counts a verdict's checks.
func verdictSummary(v *attest.Verdict) string {
	count := map[attest.Status]int{}
	for _, c := range v.Checks {
		count[c.Status]++
	}
	s := fmt.Sprintf("%d checks passed, %d failed, %d not applicable", count[attest.Passed], count[attest.Failed], count[attest.NotApplicable])
	if v.FloorsDate != "" {
		s += "; TCB floors of " + v.FloorsDate
	}
	return s
}
