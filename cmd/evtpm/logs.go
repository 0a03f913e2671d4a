//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/launch/machine"
)

func logsCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "logs",
		Usage:     "print what a machine's console said",
		ArgsUsage: "NAME",
		Description: "Every line bears the machine's name, so that nothing a guest prints looks like ours, and\n" +
			"control characters are shown, not sent. With -o json every line is an object: machine, source\n" +
			"(guest or qemu), at (how many bytes of what is kept come before it), and line.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on while the machine runs"},
			&cli.BoolFlag{Name: "qemu", Usage: "what QEMU said instead"},
			outputFlag(),
		},
		Action: func(c *cli.Context) error {
			name, err := oneArg(c, "the name of a machine")
			if err != nil {
				return err
			}
			asJSON, err := wantsJSON(c)
			if err != nil {
				return err
			}
			h, err := u.home()
			if err != nil {
				return err
			}
			source, file := "guest", "console.log"
			if c.Bool("qemu") {
				source, file = "qemu", "qemu.log"
			}
			var at int64
			return u.followLog(c.Context, h, name, file, c.Bool("follow"), func(text []byte) error {
				line := logLine{Machine: name, Source: source, At: at}
				at += int64(len(text))
				if asJSON {
					line.set(text)
					return u.jsonLine(line)
				}
				_, err := fmt.Fprintf(u.out, "%s| %s\n", name, harmless(bytes.TrimSuffix(text, []byte("\n"))))
				return err
			})
		},
	}
}

// logLine is what -o json prints of a line.
type logLine struct {
	Machine string `json:"machine"`
	Source  string `json:"source"` // guest or qemu
	// At is how many bytes of what is kept of the log come before the line.
	At   int64  `json:"at"`
	Line string `json:"line"` // without its end
	// Bytes is the line where it is no UTF-8, which Line cannot say.
	Bytes []byte `json:"bytes,omitempty"`
	// Open says that the line has no end yet, or is too long for one object: what
	// follows belongs to it.
	Open bool `json:"open,omitempty"`
}

// set fills in a line that was read, with its end.
func (l *logLine) set(text []byte) {
	text, ended := bytes.CutSuffix(text, []byte("\n"))
	l.Open = !ended
	if ended {
		text = bytes.TrimRight(text, "\r")
	}
	l.Line = string(text)
	if !utf8.Valid(text) {
		l.Bytes = text
	}
}

// maxLine bounds a line of a log: a longer one is cut into several.
const maxLine = 64 << 10

// followLog gives every line of a log file with its end, the rotated one first.
// With follow it waits for more while the machine runs.
func (u *ui) followLog(ctx context.Context, h *machine.Home, name, file string, follow bool, line func([]byte) error) error {
	old, err := h.OpenFile(name, file+".1")
	if err == nil {
		err = copyLines(old, line)
		old.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := h.OpenFile(name, file)
	if err != nil {
		return err
	}
	if !follow {
		defer f.Close()
		return copyLines(f, line)
	}
	t := &tailReader{ctx: ctx, r: f, ended: func() bool {
		m, err := h.Status(ctx, name)
		return err != nil || !m.Running && m.State != machine.StateStarting
	}}
	t.open = func() (io.ReadCloser, error) { return h.OpenFile(name, file) }
	defer func() { t.r.Close() }()
	return copyLines(t, line)
}

// copyLines gives every line with its end, which the last one may lack.
func copyLines(r io.Reader, line func([]byte) error) error {
	b := bufio.NewReaderSize(r, maxLine)
	for {
		text, err := b.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) && !errors.Is(err, io.EOF) {
			return err
		}
		if len(text) > 0 {
			if err := line(text); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
	}
}

// tailReader reads a file that grows, until what makes it grow has ended. When
// another file takes its name it goes on with that.
type tailReader struct {
	ctx   context.Context
	r     io.ReadCloser
	ended func() bool
	open  func() (io.ReadCloser, error)
}

func (t *tailReader) Read(p []byte) (int, error) {
	last := false
	var next io.ReadCloser
	for {
		n, err := t.r.Read(p)
		if n > 0 || err != nil && !errors.Is(err, io.EOF) {
			if next != nil {
				next.Close() // it will be found again
			}
			return n, err
		}
		// What came between the last read and the end, or the new file, was read.
		if next != nil {
			t.r.Close()
			t.r, next = next, nil
			continue
		}
		if next = t.replaced(); next != nil {
			continue
		}
		if last {
			return 0, io.EOF
		}
		if last = t.ended(); last {
			continue
		}
		select {
		case <-t.ctx.Done():
			return 0, io.EOF
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// replaced opens the file that has taken the name; nil if none has.
func (t *tailReader) replaced() io.ReadCloser {
	f, err := t.open()
	if err != nil {
		return nil
	}
	was, ok1 := t.r.(*os.File)
	is, ok2 := f.(*os.File)
	if ok1 && ok2 {
		a, err1 := was.Stat()
		b, err2 := is.Stat()
		if err1 == nil && err2 == nil && !os.SameFile(a, b) {
			return f
		}
	}
	f.Close()
	return nil
}
