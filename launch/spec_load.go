package launch

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// Bounds of a spec file. The largest honest spec is a tenth of the first; with
// it, and without aliases, no document can make the reader work.
const (
	maxSpecBytes = 64 << 10
	maxSpecList  = 64
	maxProblems  = 50 // listed at most
)

// A FieldError is something wrong with one field of a spec or a lock file.
type FieldError struct {
	File string // as it was named; empty for a spec made in code
	Line int    // 1-based; 0 when the field is not in the file
	Path string // such as cpu.count or disks[0].path; empty for the whole file
	Err  error  // what was found, and what was expected
}

func (e *FieldError) Error() string {
	var b strings.Builder
	if e.File == "" {
		b.WriteString("spec: ")
	} else {
		b.WriteString(e.File)
		if e.Line > 0 {
			fmt.Fprintf(&b, ":%d", e.Line)
		}
		b.WriteString(": ")
	}
	if e.Path != "" {
		b.WriteString(e.Path + ": ")
	}
	b.WriteString(e.Err.Error())
	return b.String()
}

// Unwrap returns what is wrong, without where.
func (e *FieldError) Unwrap() error { return e.Err }

// source remembers where the fields of a spec stand in its file.
type source struct {
	name  string
	lines map[string]int
}

// has reports whether the file has the field, whatever its value.
func (s *source) has(path string) bool { return s != nil && s.lines[path] != 0 }

// problems collects everything that is wrong, in the order it is found.
type problems struct {
	src  *source
	list []error
	more int  // not listed
	once bool // at most one problem a field
}

// report notes a problem. Beyond a number that a person reads, problems are only
// counted, so that a hostile file costs little.
func (p *problems) report(e *FieldError) {
	if p.full() {
		p.more++
		return
	}
	p.list = append(p.list, e)
}

func (p *problems) full() bool { return len(p.list) >= maxProblems }

// add notes a problem. A field that is missing is reported at the line of what it
// is missing from.
func (p *problems) add(path, format string, args ...any) {
	if p.once && slices.ContainsFunc(p.list, func(err error) bool {
		var earlier *FieldError
		return errors.As(err, &earlier) && earlier.Path == path
	}) {
		return
	}
	e := &FieldError{Path: path, Err: fmt.Errorf(format, args...)}
	if p.src != nil {
		e.File = p.src.name
		for at := path; e.Line == 0 && at != ""; at = parentPath(at) {
			e.Line = p.src.lines[at]
		}
	}
	p.report(e)
}

// err returns everything found as one error, or nil.
func (p *problems) err() error {
	if p.more > 0 {
		return errors.Join(append(p.list, fmt.Errorf("and %d more", p.more))...)
	}
	return errors.Join(p.list...)
}

func parentPath(path string) string {
	return path[:max(strings.LastIndexAny(path, ".["), 0)]
}

// LoadSpec reads a spec; name is what errors call it. It refuses whatever two
// readers of YAML could understand in two ways: fields that are unknown or
// repeated, values of another type, anchors and aliases, tags, a second document.
// All problems are reported at once, each a [*FieldError].
//
// LoadSpec does not fill in defaults and does not judge values: see
// [Spec.FillDefaults] and [Spec.Validate].
func LoadSpec(r io.Reader, name string) (*Spec, error) {
	s := &Spec{src: &source{name: name, lines: make(map[string]int)}}
	root, err := readYAML(r, name)
	if err != nil {
		return nil, err
	}
	d := decoder{problems: problems{src: s.src}}
	d.document(root, s)
	if err := d.err(); err != nil {
		return nil, err
	}
	return s, nil
}

// readYAML parses one YAML document and returns its content.
func readYAML(r io.Reader, name string) (*yaml.Node, error) {
	fail := func(line int, format string, args ...any) (*yaml.Node, error) {
		return nil, &FieldError{File: name, Line: line, Err: fmt.Errorf(format, args...)}
	}
	data, err := io.ReadAll(io.LimitReader(r, maxSpecBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(data) > maxSpecBytes {
		return fail(0, "found more than %d bytes", maxSpecBytes)
	}
	if line, what := badText(data); what != "" {
		return fail(line, "found %s", what)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return fail(0, "found an empty document, expected a mapping that begins with version: %d", SpecVersion)
	case err != nil:
		return nil, yamlError(name, err)
	}
	switch err := dec.Decode(new(yaml.Node)); {
	case err == nil:
		return fail(0, "found a second document, expected one")
	case !errors.Is(err, io.EOF):
		return nil, yamlError(name, err)
	}
	return doc.Content[0], nil
}

// badText names the first thing that has no place in a text file: readers differ
// in what they make of it, or it shows a reader something else than it says.
func badText(data []byte) (line int, what string) {
	if bytes.HasPrefix(data, []byte("\xef\xbb\xbf")) || bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
		return 1, "a byte order mark, expected plain UTF-8"
	}
	line = 1
	for len(data) > 0 {
		r, n := utf8.DecodeRune(data)
		switch {
		case r == utf8.RuneError && n == 1:
			return line, "invalid UTF-8"
		case r == '\n':
			line++
		case r < ' ' && r != '\t' && r != '\r', r >= 0x7f && r < 0xa0:
			return line, fmt.Sprintf("the control character %U", r)
		case r == 0x2028 || r == 0x2029:
			return line, fmt.Sprintf("the line separator %U", r)
		case r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069:
			return line, fmt.Sprintf("%U, which shows text in another order than it has", r)
		case r == 0xfeff:
			return line, "a byte order mark"
		}
		data = data[n:]
	}
	return 0, ""
}

// yamlError puts the line of a syntax error where an editor finds it.
func yamlError(name string, err error) error {
	e := &FieldError{File: name}
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if digits, after, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(digits); err == nil {
				e.Line, text = n, after
			}
		}
	}
	e.Err = fmt.Errorf("not YAML: %s", text)
	return e
}
