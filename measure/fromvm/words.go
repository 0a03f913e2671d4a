package fromvm

import (
	"errors"
	"fmt"
	"strings"
)

// words splits a command line as a POSIX shell does: quotation marks,
// apostrophes, backslashes, lines continued with a backslash. It expands
// nothing: a variable or a command substitution is an error, since its value is
// not known here.
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
	end := func() {
		if inWord {
			out = append(out, word.String())
			word.Reset()
			inWord = false
		}
	}
	for i := 0; i < len(line); i++ {
		if len(out) > maxWords {
			return nil, fmt.Errorf("command line: found more than %d words", maxWords)
		}
		switch c := line[i]; c {
		case ' ', '\t', '\n', '\r':
			end()
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
				} else if line[i] == '$' || line[i] == '`' {
					return nil, errExpansion(line, i)
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
			return nil, errExpansion(line, i)
		default:
			inWord = true
			word.WriteByte(c)
		}
	}
	end()
	return out, nil
}

func errExpansion(line string, at int) error {
	return fmt.Errorf("command line: found %q, whose value only a shell knows; give the command line as it is run (ps, /proc/PID/cmdline)", clip(line[at:]))
}
