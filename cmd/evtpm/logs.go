//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/launch/machine"
)

func logsCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "logs",
		Usage:     "print what a machine's console said",
		ArgsUsage: "NAME",
		Description: "Every line bears the machine's name, so that nothing a guest prints looks like ours, and\n" +
			"control characters are shown, not sent.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on while the machine runs"},
			&cli.BoolFlag{Name: "qemu", Usage: "what QEMU said instead"},
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
			file := "console.log"
			if c.Bool("qemu") {
				file = "qemu.log"
			}
			return u.followLog(c.Context, h, name, file, c.Bool("follow"), func(line []byte) error {
				_, err := fmt.Fprintf(u.out, "%s| %s\n", name, harmless(line))
				return err
			})
		},
	}
}

// maxLine bounds a line of a log: a longer one is cut into several.
const maxLine = 64 << 10

// followLog gives every line of a log file, the rotated one first. With follow it
// waits for more while the machine runs.
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
	defer f.Close()
	var r io.Reader = f
	if follow {
		r = &tailReader{ctx: ctx, r: f, ended: func() bool {
			m, err := h.Status(ctx, name)
			return err != nil || !m.Running && m.State != machine.StateStarting
		}}
	}
	return copyLines(r, line)
}

func copyLines(r io.Reader, line func([]byte) error) error {
	b := bufio.NewReaderSize(r, maxLine)
	for {
		text, err := b.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) && !errors.Is(err, io.EOF) {
			return err
		}
		if len(text) > 0 {
			if text[len(text)-1] == '\n' {
				text = text[:len(text)-1]
			}
			if err := line(text); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
	}
}

// tailReader reads a file that grows, until what makes it grow has ended.
type tailReader struct {
	ctx   context.Context
	r     io.Reader
	ended func() bool
}

func (t *tailReader) Read(p []byte) (int, error) {
	last := false
	for {
		n, err := t.r.Read(p)
		if n > 0 || err != nil && !errors.Is(err, io.EOF) {
			return n, err
		}
		if last {
			return 0, io.EOF
		}
		// What came between the last read and the end is read once more.
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
