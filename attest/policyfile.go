package attest

import (
	"bytes"
	"encoding"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"

	"github.com/evtpm/evtpm/nearest"
)

// Bounds of a policy file. A table of floors takes some 100 nodes.
const (
	maxPolicySize  = 64 << 10
	maxPolicyNodes = 8192
)

// plainInt is an integer that all YAML versions read as one and the same: 017,
// 0o17 and 1_000 are others in others.
var plainInt = regexp.MustCompile(`^(0|[1-9][0-9]*|0x[0-9a-f]+)$`)

// decodeYAML reads one document strictly: known fields only, no duplicate keys,
// no anchors, aliases, merge keys or tags, no scalars that YAML versions read
// differently (yes and no as booleans, 017 as octal, floats as integers).
func decodeYAML(text []byte, name string, into any) error {
	if len(text) > maxPolicySize {
		return fmt.Errorf("%s: found %d bytes, expected at most %d", name, len(text), maxPolicySize)
	}
	if !utf8.Valid(text) || bytes.IndexByte(text, 0) >= 0 {
		return fmt.Errorf("%s: not UTF-8 text", name)
	}
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: the file is empty", name)
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: more than one document", name)
	}
	nodes := 0
	if err := plainNode(&doc, &nodes); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	var errs []error
	checkFields(&doc, reflect.TypeOf(into), &errs)
	if len(errs) > 0 {
		return inFile(name, errors.Join(errs...))
	}
	err := doc.Decode(into)
	var types *yaml.TypeError
	if errors.As(err, &types) {
		err = errors.New(strings.Join(types.Errors, "; "))
	}
	return inFile(name, err)
}

// inFile names the file of an error, of each if there are several; nil stays nil.
func inFile(name string, err error) error {
	if err == nil {
		return nil
	}
	if list, ok := err.(interface{ Unwrap() []error }); ok {
		var errs []error
		for _, e := range list.Unwrap() {
			errs = append(errs, inFile(name, e))
		}
		return errors.Join(errs...)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// checkFields says in words what the decoder would say in Go's: fields that a type
// does not have, and lists and words where fields are expected.
func checkFields(n *yaml.Node, t reflect.Type, errs *[]error) {
	if n.Kind == yaml.DocumentNode {
		n = n.Content[0]
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if p := reflect.PointerTo(t); p.Implements(reflect.TypeFor[yaml.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return // reads itself
	}
	switch t.Kind() {
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			*errs = append(*errs, fmt.Errorf("line %d: found no list, expected one", n.Line))
			return
		}
		for _, c := range n.Content {
			checkFields(c, t.Elem(), errs)
		}
	case reflect.Struct:
		fields := map[string]reflect.Type{}
		var names []string
		for i := range t.NumField() {
			if name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ","); name != "" {
				fields[name] = t.Field(i).Type
				names = append(names, name)
			}
		}
		if n.Kind != yaml.MappingNode {
			*errs = append(*errs, fmt.Errorf("line %d: found no fields, expected %s", n.Line, strings.Join(names, ", ")))
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			f, ok := fields[key.Value]
			if !ok {
				*errs = append(*errs, fmt.Errorf("line %d: unknown field %q%s", key.Line, key.Value, near(key.Value, names)))
				continue
			}
			checkFields(n.Content[i+1], f, errs)
		}
	}
}

// near ends a message about an unknown name.
func near(name string, names []string) string {
	if k := nearest.Name(name, names); k != "" {
		return fmt.Sprintf(", nearest is %q", k)
	}
	return ""
}

// plainNode refuses what makes YAML mean different things to different readers,
// and what would take long to read: the decoder compares every key with every
// other.
func plainNode(n *yaml.Node, nodes *int) error {
	fault := func(what string) error { return fmt.Errorf("line %d: %s", n.Line, what) }
	*nodes++
	switch {
	case *nodes > maxPolicyNodes:
		return fault("too many values")
	case n.Anchor != "":
		// Every alias comes after its anchor.
		return fault("anchors and aliases are not accepted")
	case n.Tag == "!!merge":
		// A field could be set where its name is not.
		return fault("merge keys are not accepted")
	case n.Style&yaml.TaggedStyle != 0:
		return fault("tags are not accepted")
	}
	if n.Style == 0 {
		v := strings.ToLower(n.Value)
		switch {
		case v == "yes" || v == "no" || v == "on" || v == "off" || v == "y" || v == "n":
			return fault(fmt.Sprintf("found %q, expected true or false (or the word in quotes)", n.Value))
		case n.Tag == "!!float":
			return fault(fmt.Sprintf("found the number %s, expected an integer (or a version in quotes)", n.Value))
		case n.Tag == "!!int" && !plainInt.MatchString(v):
			return fault(fmt.Sprintf("found %s, expected a decimal or 0x number", n.Value))
		case n.Tag == "!!null":
			return fault("a value is missing")
		}
	}
	for _, c := range n.Content {
		if err := plainNode(c, nodes); err != nil {
			return err
		}
	}
	return nil
}

// UnmarshalYAML implements [yaml.Unmarshaler].
func (l *NameList) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		if n.Value != "any" {
			return fmt.Errorf("line %d: found %q, expected any or a list", n.Line, n.Value)
		}
		return nil
	}
	var names []string
	if err := n.Decode(&names); err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("line %d: the list is empty, expected any or at least one name", n.Line)
	}
	*l = names
	return nil
}

// MarshalYAML implements [yaml.Marshaler].
func (l NameList) MarshalYAML() (any, error) {
	if len(l) == 0 {
		return "any", nil
	}
	return []string(l), nil
}

// UnmarshalYAML implements [yaml.Unmarshaler].
func (s *FloorSource) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		if n.Value != "default" && n.Value != "none" {
			return fmt.Errorf("line %d: found %q, expected default, none or a table", n.Line, n.Value)
		}
		s.Name = n.Value
		return nil
	}
	// A node's Decode does not carry KnownFields along, so the table is read
	// from its own text.
	text, err := yaml.Marshal(n)
	if err != nil {
		return err
	}
	t := new(FloorTable)
	if err := decodeYAML(text, fmt.Sprintf("line %d: floors", n.Line), t); err != nil {
		return err
	}
	if t.Version != PolicyVersion {
		return fmt.Errorf("line %d: floors: version is %d, expected %d", n.Line, t.Version, PolicyVersion)
	}
	s.Name, s.Table = "table", t
	return nil
}

// MarshalYAML implements [yaml.Marshaler].
func (s FloorSource) MarshalYAML() (any, error) {
	if s.Name == "table" {
		return s.Table, nil
	}
	return s.Name, nil
}

// Encode writes a policy as YAML. [ParsePolicy] reads it back.
func (p *Policy) Encode() ([]byte, error) { return yaml.Marshal(p) }

// dottedBytes reads n numbers of one byte each, separated by dots.
func dottedBytes(s string, n int) ([]uint8, error) {
	parts := strings.Split(s, ".")
	if len(parts) != n {
		return nil, fmt.Errorf("found %q, expected %d numbers separated by dots", s, n)
	}
	out := make([]uint8, n)
	for i, p := range parts {
		v, err := strconv.ParseUint(p, 10, 8)
		if err != nil {
			return nil, fmt.Errorf("found %q, expected %d numbers of 0 to 255 separated by dots", s, n)
		}
		out[i] = uint8(v)
	}
	return out, nil
}

// parseCPUID reads family/model/stepping in hexadecimal.
func parseCPUID(s string) (CPUID, error) {
	parts := strings.Split(s, "/")
	var b [3]uint8
	if len(parts) != len(b) {
		return CPUID{}, fmt.Errorf("cpuid is %q, expected family/model/stepping in hexadecimal", s)
	}
	for i, p := range parts {
		v, err := strconv.ParseUint(p, 16, 8)
		if err != nil {
			return CPUID{}, fmt.Errorf("cpuid is %q, expected family/model/stepping in hexadecimal", s)
		}
		b[i] = uint8(v)
	}
	return CPUID{Family: b[0], Model: b[1], Stepping: b[2]}, nil
}

// fixedHex reads n bytes in hexadecimal.
func fixedHex(s string, n int) ([]byte, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != n {
		return nil, fmt.Errorf("found %q, expected %d bytes in hexadecimal", s, n)
	}
	return b, nil
}
