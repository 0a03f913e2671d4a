package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/evtpm/evtpm/attest"
)

// UI rules.
//
// Standard output carries data only: what a program would read. Everything for
// people goes to standard error, in lower case, without a full stop, with an
// "evtpm:" prefix. With -q only the exit code speaks. Text that came from a
// guest, a file or a network is quoted, so that it can neither move the cursor
// nor look like ours.

// ui is where a command's output goes. Commands print through it alone.
type ui struct {
	in       io.Reader
	out, err io.Writer
	quiet    bool
	getenv   func(string) string

	stdinRead atomic.Bool // by readStdin
}

func newUI(out *dataWriter) *ui {
	return &ui{in: os.Stdin, out: out, err: os.Stderr, getenv: os.Getenv}
}

// dataWriter is standard output. It remembers that something could not be written:
// a file that is cut off, on a full disk, must not pass for data.
type dataWriter struct {
	w   io.Writer
	err error
}

func (d *dataWriter) Write(p []byte) (int, error) {
	n, err := d.w.Write(p)
	if err != nil && d.err == nil {
		d.err = err
	}
	return n, err
}

// data prints a line for programs.
func (u *ui) data(format string, args ...any) { fmt.Fprintf(u.out, format+"\n", args...) }

// json prints v as an indented JSON document for programs.
func (u *ui) json(v any) error { return u.encode(v, "  ") }

// jsonLine prints v as a line of JSON for programs.
func (u *ui) jsonLine(v any) error { return u.encode(v, "") }

// encode prints JSON. Text in it came from a guest, a file or a network, and people
// look at it on terminals: what does not print stands there as an escape.
func (u *ui) encode(v any, indent string) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", indent)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	out := make([]byte, 0, b.Len())
	for _, r := range b.String() {
		switch {
		case strconv.IsPrint(r) || r == '\n':
			out = utf8.AppendRune(out, r)
		case r < 0x10000:
			out = fmt.Appendf(out, `\u%04x`, r)
		default:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		}
	}
	_, err := u.out.Write(out)
	return err
}

// say prints a line for people.
func (u *ui) say(format string, args ...any) {
	if !u.quiet {
		fmt.Fprintf(u.err, format+"\n", args...)
	}
}

// warn prints a warning for people.
func (u *ui) warn(format string, args ...any) {
	if !u.quiet {
		fmt.Fprintf(u.err, "evtpm: warning: "+format+"\n", args...)
	}
}

// progress returns what shows how far something has come, a line that is written
// anew, and what takes the line away. Where no terminal is, and with -q, both do
// nothing.
func (u *ui) progress() (show func(text string), end func()) {
	f, ok := u.err.(*os.File)
	if !ok || u.quiet || !term.IsTerminal(int(f.Fd())) {
		return func(string) {}, func() {}
	}
	const anew = "\r\x1b[K" // to the line's beginning, and nothing behind it
	var shown time.Time
	show = func(text string) {
		if now := time.Now(); now.Sub(shown) >= progressEvery {
			shown = now
			fmt.Fprint(u.err, anew+text)
		}
	}
	return show, func() {
		if !shown.IsZero() {
			fmt.Fprint(u.err, anew)
		}
	}
}

// progressEvery is how often a line that shows progress is written.
const progressEvery = 200 * time.Millisecond

// fail prints an error, one line an error of a joined one. Some have in them what
// a file, a guest or a network said.
func (u *ui) fail(err error) {
	if u.quiet {
		return
	}
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) && err.Error() == errors.Join(joined.Unwrap()...).Error() {
		for _, e := range joined.Unwrap() {
			u.fail(e)
		}
		return
	}
	var lines []string
	for _, line := range strings.Split(err.Error(), "\n") {
		lines = append(lines, harmless([]byte(line)))
	}
	fmt.Fprintf(u.err, "evtpm: error: %s\n", strings.Join(lines, "\n  "))
}

// classError gives an error the exit code of its class.
type classError struct {
	class attest.Class
	err   error
}

func (e *classError) Error() string { return e.err.Error() }
func (e *classError) Unwrap() error { return e.err }

// ExitCode is the process's exit code.
func (e *classError) ExitCode() int { return int(e.class) }

// withClass wraps err so that the process ends with the class's number.
func withClass(class attest.Class, err error) error {
	if err == nil {
		return nil
	}
	return &classError{class: class, err: err}
}

// errSilent ends the process with a code, everything having been said.
type errSilent int

func (e errSilent) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// ExitCode is the process's exit code.
func (e errSilent) ExitCode() int { return int(e) }

// exitCode finds the exit code of an error: the one that it carries, or 1.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	return int(attest.ClassMisuse)
}
