//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Progress is shown on a terminal, a line that goes, and nowhere else.
func TestProgress(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs pseudo-terminals: %v", err)
	}
	defer terminal.Close()
	n, err1 := unix.IoctlGetInt(int(terminal.Fd()), unix.TIOCGPTN)
	err2 := unix.IoctlSetPointerInt(int(terminal.Fd()), unix.TIOCSPTLCK, 0)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	side, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer side.Close()
	u := &ui{err: side}
	show, end := u.progress()
	show("half")
	show("too soon")
	end()
	got := make([]byte, 100)
	k, err := terminal.Read(got)
	if want := "\r\x1b[Khalf\r\x1b[K"; err != nil || string(got[:k]) != want {
		t.Errorf("found %q, %v, expected %q", got[:k], err, want)
	}
	var out bytes.Buffer
	for _, u := range []*ui{{err: side, quiet: true}, {err: &out}} {
		show, end := u.progress()
		show("half")
		end()
	}
	u.say("next")
	if k, err = terminal.Read(got); err != nil || string(got[:k]) != "next\r\n" || out.Len() > 0 {
		t.Errorf("found %q and %q, %v, expected nothing more", got[:k], out.String(), err)
	}
}
