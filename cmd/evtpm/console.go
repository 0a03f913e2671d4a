//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"unicode/utf8"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

// leaveKey ends a console session: Ctrl-].
const leaveKey = 0x1d

func consoleCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "console",
		Usage:     "use a machine's serial console; Ctrl-] leaves",
		ArgsUsage: "NAME",
		Description: "What the guest sends is made harmless: text, line ends, backspaces and colours pass, other\n" +
			"control sequences do not. --raw passes everything: a hostile guest can then type into your\n" +
			"terminal, retitle it, and rewrite what stands on it.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "raw", Usage: "pass everything that the guest sends to the terminal"},
		},
		Action: func(c *cli.Context) error {
			name, err := oneArg(c, "the name of a machine")
			if err != nil {
				return err
			}
			h, err := u.home()
			if err != nil {
				return err
			}
			conn, err := h.Console(c.Context, name)
			if err != nil {
				return err
			}
			defer conn.Close()
			return u.console(c.Context, conn, c.Bool("raw"))
		},
	}
}

// console joins the terminal and a machine's console.
func (u *ui) console(ctx context.Context, conn net.Conn, raw bool) error {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if in, ok := u.in.(*os.File); ok && term.IsTerminal(int(in.Fd())) {
		old, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return err
		}
		defer func() {
			_ = term.Restore(int(in.Fd()), old)
			u.say("")
		}()
	}
	left := make(chan struct{})
	go func() {
		defer conn.Close()
		if typeInto(conn, u.in) {
			close(left)
		}
	}()
	out := u.out
	if !raw {
		out = &consoleFilter{w: u.out}
	}
	_, err := io.Copy(out, conn)
	select {
	case <-left:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	default:
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("console: %w", err)
	}
	return nil
}

// typeInto passes what is typed, until Ctrl-] or the end. It reports whether the
// user wants to leave.
func typeInto(w io.Writer, r io.Reader) bool {
	buf := make([]byte, 1024)
	for {
		n, err := r.Read(buf)
		if i := bytes.IndexByte(buf[:n], leaveKey); i >= 0 {
			_, _ = w.Write(buf[:i])
			return true
		}
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return false
			}
		}
		if err != nil {
			return true
		}
	}
}

// A consoleFilter passes text, and of control characters and sequences those
// alone that an interactive shell needs and that cannot do harm: line ends, tab,
// backspace, bell, and colours (ESC [ digits and semicolons m). Other escape
// sequences are dropped whole.
type consoleFilter struct {
	w     io.Writer
	state filterState
	seq   []byte // of the sequence that is being read
	utf8  []byte // of the character that is being read
}

type filterState int

const (
	filterText filterState = iota
	filterEscape
	filterCSI    // ESC [ parameters, then a final byte
	filterString // ESC ] and its kin: up to BEL or ESC \
	filterStringEnd
)

// maxSequence bounds an escape sequence: a longer one is dropped, and what
// follows is text again.
const maxSequence = 256

func (f *consoleFilter) Write(p []byte) (int, error) {
	out := make([]byte, 0, len(p))
	for _, c := range p {
		out = f.next(out, c)
	}
	if _, err := f.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *consoleFilter) next(out []byte, c byte) []byte {
	if f.state != filterText {
		f.seq = append(f.seq, c)
		if len(f.seq) > maxSequence {
			f.state, f.seq = filterText, nil
			return out
		}
	}
	switch f.state {
	case filterEscape:
		switch c {
		case '[':
			f.state = filterCSI
		case ']', 'P', 'X', '^', '_':
			f.state = filterString
		default:
			if c < 0x20 || c > 0x2f { // not an intermediate byte: the sequence ends
				f.state = filterText
			}
		}
	case filterCSI:
		if c >= 0x40 && c <= 0x7e {
			f.state = filterText
			if c == 'm' && onlyDigits(f.seq[1:len(f.seq)-1]) {
				out = append(append(out, 0x1b), f.seq...)
			}
		}
	case filterString:
		switch c {
		case 0x07:
			f.state = filterText
		case 0x1b:
			f.state = filterStringEnd
		}
	case filterStringEnd:
		f.state = filterString
		if c == '\\' {
			f.state = filterText
		}
	default:
		out = f.text(out, c)
	}
	return out
}

func onlyDigits(b []byte) bool {
	for _, c := range b {
		if (c < '0' || c > '9') && c != ';' {
			return false
		}
	}
	return true
}

func (f *consoleFilter) text(out []byte, c byte) []byte {
	if c < utf8.RuneSelf {
		f.utf8 = f.utf8[:0]
		switch {
		case c == 0x1b:
			f.state, f.seq = filterEscape, nil
		case c >= 0x20 && c != 0x7f, c == '\n', c == '\r', c == '\t', c == '\b', c == 0x07:
			return append(out, c)
		}
		return out
	}
	// A character of several bytes passes when it is whole and printable: the
	// C1 controls are two bytes in UTF-8.
	f.utf8 = append(f.utf8, c)
	if !utf8.FullRune(f.utf8) {
		return out
	}
	out = append(out, harmless(f.utf8)...)
	f.utf8 = f.utf8[:0]
	return out
}
