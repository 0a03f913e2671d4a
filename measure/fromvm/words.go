package fromvm

import (
	"errors"
	"fmt"
	"strings"
)

// unknown marks, in a word, the place where a variable or a command substitution
// stands: what it stands for is known to a shell alone. Words have no NUL
// otherwise.
const unknown = "\x00"

// words splits a command line as a POSIX shell does: quotation marks,
// apostrophes, backslashes, lines continued with a backslash, comments. It
// expands nothing. A variable or a command substitution stays as it is written,
// behind [unknown]: many are in options that are not measured. One that could
// stand for several words is an error, but for the program's name.
func words(line string) ([]string, error) {
	if len(line) > maxInput {
		return nil, fmt.Errorf("command line: found %d bytes, expected at most %d", len(line), maxInput)
	}
	if strings.ContainsRune(line, 0) {
		// As in /proc/PID/cmdline: each argument ends with a NUL.
		out := strings.Split(strings.TrimSuffix(line, "\x00"), "\x00")
		if len(out) > maxWords {
			return nil, fmt.Errorf("command line: found more than %d words", maxWords)
		}
		return out, nil
	}
	var out []string
	var word strings.Builder
	inWord := false
	splits := "" // an expansion that is the whole word so far, not quoted
	var err error
	end := func() {
		if inWord {
			if splits != "" && len(out) > 0 && word.Len() == len(splits) && err == nil {
				err = errExpansion(splits[len(unknown):])
			}
			out = append(out, word.String())
			word.Reset()
			inWord, splits = false, ""
		}
	}
	for i := 0; i < len(line); i++ {
		if len(out) > maxWords {
			return nil, fmt.Errorf("command line: found more than %d words", maxWords)
		}
		switch c := line[i]; c {
		case ' ', '\t', '\n', '\r':
			end()
		case '#':
			if !inWord {
				n := strings.IndexByte(line[i:], '\n')
				if n < 0 {
					n = len(line) - i
				}
				i += n - 1
				continue
			}
			word.WriteByte(c)
		case '\'':
			inWord = true
			n := strings.IndexByte(line[i+1:], '\'')
			if n < 0 {
				return nil, errors.New("command line: found an apostrophe without its other half")
			}
			word.WriteString(line[i+1 : i+1+n])
			i += n + 1
		case '"':
			inWord = true
			for i++; ; i++ {
				if i >= len(line) {
					return nil, errors.New("command line: found a quotation mark without its other half")
				}
				if line[i] == '"' {
					break
				}
				if line[i] == '\\' && i+1 < len(line) && strings.IndexByte("\"\\$`\n", line[i+1]) >= 0 {
					i++
					if line[i] == '\n' {
						continue
					}
				} else if e := expansion(line[i:]); e != "" {
					if e == "$@" || e == "${@}" {
						return nil, errExpansion(e) // several words even so
					}
					word.WriteString(unknown + e)
					i += len(e) - 1
					continue
				}
				word.WriteByte(line[i])
			}
		case '\\':
			i++
			if i >= len(line) {
				return nil, errors.New("command line: found a backslash at the end")
			}
			if line[i] == '\n' {
				continue
			}
			inWord = true
			word.WriteByte(line[i])
		case '$', '`':
			if e := expansion(line[i:]); e != "" {
				if !inWord {
					splits = unknown + e
				}
				word.WriteString(unknown)
				word.WriteString(e)
				i += len(e) - 1
			} else {
				word.WriteByte(c)
			}
			inWord = true
		default:
			inWord = true
			word.WriteByte(c)
		}
	}
	end()
	return out, err
}

// expansion is the variable or command substitution at the start of s, or nothing
// when a shell would take the sign as it is.
func expansion(s string) string {
	until := func(from int, end byte) string {
		if n := strings.IndexByte(s[from:], end); n >= 0 {
			return s[:from+n+1]
		}
		return s
	}
	switch {
	case s[0] == '`':
		return until(1, '`')
	case s[0] != '$' || len(s) == 1:
		return ""
	case s[1] == '{':
		return until(2, '}')
	case s[1] == '(':
		depth := 0
		for i := 1; i < len(s); i++ {
			switch s[i] {
			case '(':
				depth++
			case ')':
				if depth--; depth == 0 {
					return s[:i+1]
				}
			}
		}
		return s
	case strings.IndexByte("@*#?-$!0123456789", s[1]) >= 0:
		return s[:2]
	}
	n := 1
	for n < len(s) && (s[n] == '_' || s[n] >= '0' && s[n] <= '9' || s[n]|0x20 >= 'a' && s[n]|0x20 <= 'z') {
		n++
	}
	if n == 1 {
		return ""
	}
	return s[:n]
}

// known refuses a value that a shell alone knows.
func known(value string) error {
	if i := strings.Index(value, unknown); i >= 0 {
		return errExpansion(value[i+len(unknown):])
	}
	return nil
}

func errExpansion(text string) error {
	return fmt.Errorf("command line: found %q, whose value only a shell knows; give the command line as it is run (ps, /proc/PID/cmdline)", clip(text))
}
