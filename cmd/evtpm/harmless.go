package main

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// harmless shows a line of text that came from elsewhere: whatever could move
// the cursor, change colours or hide text stands there as an escape. Tabs and the
// carriage returns at the end of a line are what serial consoles are made of.
func harmless(line []byte) string {
	for len(line) > 0 && line[len(line)-1] == '\r' {
		line = line[:len(line)-1]
	}
	var b strings.Builder
	for len(line) > 0 {
		r, n := utf8.DecodeRune(line)
		switch {
		case r == '\t':
			b.WriteString("    ")
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, line[0])
		case strconv.IsPrint(r):
			b.WriteRune(r)
		case r < utf8.RuneSelf:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		line = line[n:]
	}
	return b.String()
}
