package launch

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/nearest"
)

// A field is one field of a spec's structs: what its tags say.
type field struct {
	name  string
	index int
	typ   reflect.Type
	tag   reflect.StructTag
}

// fieldsOf lists the fields of a spec's struct in their order.
func fieldsOf(t reflect.Type) []field {
	var out []field
	for i := range t.NumField() {
		f := t.Field(i)
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
			out = append(out, field{name: name, index: i, typ: f.Type, tag: f.Tag})
		}
	}
	return out
}

// number returns a tag that holds a number.
func (f field) number(tag string) (uint64, bool) {
	text, ok := f.tag.Lookup(tag)
	if !ok {
		return 0, false
	}
	n, err := parseNumber(text)
	if err != nil {
		panic(fmt.Sprintf("field %s: tag %s: %v", f.name, tag, err))
	}
	return n, true
}

// decoder turns YAML nodes into a spec's fields and remembers their lines.
type decoder struct{ problems }

func (d *decoder) document(n *yaml.Node, s *Spec) {
	if n.Kind != yaml.MappingNode {
		d.report(&FieldError{File: d.src.name, Line: n.Line,
			Err: fmt.Errorf("found %s, expected a mapping that begins with version: %d", describe(n), SpecVersion)})
		return
	}
	// A file of a later format has fields that this program does not know: the
	// version is what is wrong with it.
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value != "version" {
			continue
		}
		if v, _ := parseNumber(n.Content[i+1].Value); v > SpecVersion {
			d.src.lines["version"] = n.Content[i].Line
			d.add("version", "found %d, expected %d: written for a newer evtpm than this one", v, SpecVersion)
			return
		}
		break
	}
	d.mapping(n, reflect.ValueOf(s).Elem(), "")
}

// node decodes a value. f is the field that it belongs to.
func (d *decoder) node(n *yaml.Node, v reflect.Value, f field, path string) {
	if !d.plain(n, path) {
		return
	}
	if n.ShortTag() == "!!null" {
		d.add(path, "found no value, expected %s", wanted(v.Type()))
		return
	}
	switch p := v.Addr().Interface().(type) {
	case *Policy:
		d.policy(n, p, path)
		return
	case *measure.HexBytes:
		if !d.scalar(n, v.Type(), path) {
			return
		}
		size, _ := f.number("size")
		var err error
		if *p, err = parseBytes(n.Value, int(size)); err != nil {
			d.add(path, "%v", err)
		}
		return
	case *Size:
		if d.text(n, v.Type(), path) {
			d.parsed(n, p.UnmarshalText([]byte(n.Value)), path)
		}
		return
	case *Duration:
		if d.text(n, v.Type(), path) {
			d.parsed(n, p.UnmarshalText([]byte(n.Value)), path)
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.node(n, v.Elem(), f, path)
	case reflect.Struct:
		if n.Kind != yaml.MappingNode {
			d.add(path, "found %s, expected a mapping of %s", describe(n), nameList(v.Type()))
			return
		}
		d.mapping(n, v, path)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.add(path, "found %s, expected a list", describe(n))
			return
		}
		if len(n.Content) > maxSpecList {
			d.add(path, "found %d values, expected at most %d", len(n.Content), maxSpecList)
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
		for i, e := range n.Content {
			at := fmt.Sprintf("%s[%d]", path, i)
			d.src.lines[at] = e.Line
			d.node(e, v.Index(i), f, at)
		}
	case reflect.String:
		if d.text(n, v.Type(), path) {
			v.SetString(n.Value)
		}
	case reflect.Bool:
		if n.Style != 0 || n.Value != "true" && n.Value != "false" {
			d.add(path, "found %s, expected true or false", describe(n))
			return
		}
		v.SetBool(n.Value == "true")
	case reflect.Int, reflect.Uint32, reflect.Uint64:
		d.integer(n, v, path)
	default:
		panic(fmt.Sprintf("spec field %s: no reader for %s", path, v.Type()))
	}
}

// plain refuses what makes a document mean more than it shows.
func (d *decoder) plain(n *yaml.Node, path string) bool {
	switch {
	case n.Kind == yaml.AliasNode:
		d.add(path, "found the alias *%s, expected a value: aliases are not read", clip(n.Value))
	case n.Anchor != "":
		d.add(path, "found the anchor &%s: anchors are not read", clip(n.Anchor))
	case n.Style&yaml.TaggedStyle != 0:
		d.add(path, "found the tag %s: tags are not read", clip(n.Tag))
	default:
		return true
	}
	return false
}

func (d *decoder) scalar(n *yaml.Node, t reflect.Type, path string) bool {
	if n.Kind != yaml.ScalarNode {
		d.add(path, "found %s, expected %s", describe(n), wanted(t))
		return false
	}
	return true
}

// text takes a scalar that every reader takes for text.
func (d *decoder) text(n *yaml.Node, t reflect.Type, path string) bool {
	if !d.scalar(n, t, path) {
		return false
	}
	if n.ShortTag() != "!!str" {
		hint := ""
		if t.Kind() == reflect.String {
			hint = ": put it in quotes if it is meant"
		}
		d.add(path, "found %s, expected %s%s", describe(n), wanted(t), hint)
		return false
	}
	return true
}

// parsed notes what a scalar's own reader found wrong.
func (d *decoder) parsed(n *yaml.Node, err error, path string) {
	if err != nil {
		d.add(path, "found %s: %v", describe(n), err)
	}
}

func (d *decoder) integer(n *yaml.Node, v reflect.Value, path string) {
	if !d.scalar(n, v.Type(), path) {
		return
	}
	if n.Style != 0 {
		d.add(path, "found %s, expected a number without quotes", describe(n))
		return
	}
	x, err := parseNumber(n.Value)
	if err != nil {
		d.parsed(n, err, path)
		return
	}
	switch v.Kind() {
	case reflect.Int:
		if x > math.MaxInt32 {
			d.add(path, "found %s: too large", describe(n))
			return
		}
		v.SetInt(int64(x))
	default:
		if v.OverflowUint(x) {
			d.add(path, "found %s: does not fit in %d bits", describe(n), v.Type().Bits())
			return
		}
		v.SetUint(x)
	}
}

// policy reads a guest policy: a number, or the bits that differ from the
// default, by name.
func (d *decoder) policy(n *yaml.Node, p *Policy, path string) {
	if n.Kind != yaml.MappingNode {
		d.integer(n, reflect.ValueOf(p).Elem(), path)
		return
	}
	*p = DefaultPolicy
	d.pairs(n, path, policyNames(), func(name string, value *yaml.Node, at string) {
		if !d.plain(value, at) {
			return
		}
		for i, abi := range abiNames {
			if name == abi {
				var x uint32
				d.integer(value, reflect.ValueOf(&x).Elem(), at)
				if x > 0xff {
					d.add(at, "found %d, expected 0 to 255", x)
					return
				}
				shift := i * policyABIMajor
				*p = *p&^(0xff<<shift) | Policy(x)<<shift
				return
			}
		}
		var on bool
		d.node(value, reflect.ValueOf(&on).Elem(), field{}, at)
		for _, b := range policyBits {
			if b.name == name {
				*p &^= 1 << b.bit
				if on {
					*p |= 1 << b.bit
				}
			}
		}
	})
}

// abiNames are the names of the policy's lowest bytes, lowest first.
var abiNames = []string{"abi_minor", "abi_major"}

func policyNames() []string {
	names := slices.Clone(abiNames)
	for _, b := range policyBits {
		names = append(names, b.name)
	}
	return names
}

// mapping decodes the fields of a struct.
func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) {
	if !d.plain(n, path) {
		return
	}
	fields := fieldsOf(v.Type())
	var names []string
	for _, f := range fields {
		names = append(names, f.name)
	}
	d.pairs(n, path, names, func(name string, value *yaml.Node, at string) {
		f := fields[slices.Index(names, name)]
		d.node(value, v.Field(f.index), f, at)
	})
}

// pairs calls use for every field of a mapping that is known and not repeated.
func (d *decoder) pairs(n *yaml.Node, path string, names []string, use func(name string, value *yaml.Node, at string)) {
	first := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		if d.full() {
			d.more++
			continue
		}
		key, value := n.Content[i], n.Content[i+1]
		shown := path
		if key.Kind == yaml.ScalarNode {
			shown = joinPath(path, clip(key.Value))
		}
		if key.Kind != yaml.ScalarNode || key.Anchor != "" || key.Style&yaml.TaggedStyle != 0 {
			d.report(&FieldError{File: d.src.name, Line: key.Line, Path: path,
				Err: fmt.Errorf("found %s as a field's name, expected a plain one", describe(key))})
			continue
		}
		if line, ok := first[key.Value]; ok {
			d.report(&FieldError{File: d.src.name, Line: key.Line, Path: shown,
				Err: fmt.Errorf("found twice, first on line %d", line)})
			continue
		}
		first[key.Value] = key.Line
		if !slices.Contains(names, key.Value) {
			d.report(&FieldError{File: d.src.name, Line: key.Line, Path: path,
				Err: fmt.Errorf("unknown field %q%s", clip(key.Value), suggestion(key.Value, names))})
			continue
		}
		at := joinPath(path, key.Value)
		d.src.lines[at] = key.Line
		use(key.Value, value, at)
	}
}

func joinPath(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// describe says what a node is, in words, for errors.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		return "the text " + strconv.Quote(clip(n.Value))
	}
	kind := map[string]string{"!!int": "the number ", "!!float": "the number ", "!!bool": "the truth value ", "!!timestamp": "the date ", "!!null": "no value ", "!!merge": "the merge key "}[n.ShortTag()]
	return kind + strconv.Quote(clip(n.Value))
}

// wanted says what a type takes, in words.
func wanted(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[Size]():
		return "a size with a unit, such as 512M or 2G"
	case reflect.TypeFor[Duration]():
		return "a time span with a unit, such as 90s or 2m"
	case reflect.TypeFor[measure.HexBytes]():
		return "bytes in hex or base64"
	case reflect.TypeFor[Policy]():
		return "a number or a mapping of bits"
	}
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list"
	case reflect.Struct, reflect.Pointer:
		return "a mapping"
	}
	return "a number"
}

// nameList lists the fields of a struct.
func nameList(t reflect.Type) string {
	var names []string
	for _, f := range fieldsOf(t) {
		names = append(names, f.name)
	}
	return strings.Join(names, ", ")
}

// suggestion names the known name nearest to one that is not, or all of a few.
func suggestion(name string, names []string) string {
	best := nearest.Name(name, names)
	switch {
	case best != "":
		return fmt.Sprintf(", nearest is %q", best)
	case len(names) <= 12:
		return ", expected one of " + strings.Join(names, ", ")
	}
	return ""
}

// parseBytes reads exactly size bytes in hex or base64. The lengths of the two
// forms differ, so that no text is both.
func parseBytes(text string, size int) ([]byte, error) {
	var out []byte
	err := errors.New("neither")
	switch len(text) {
	case hex.EncodedLen(size):
		out, err = hex.DecodeString(text)
	case base64.StdEncoding.EncodedLen(size):
		out, err = base64.StdEncoding.Strict().DecodeString(text)
	}
	if err != nil || len(out) != size {
		return nil, fmt.Errorf("found %q, expected %d bytes: %d hexadecimal digits, or %d characters of base64",
			clip(text), size, hex.EncodedLen(size), base64.StdEncoding.EncodedLen(size))
	}
	return out, nil
}

// clip shortens text from outside before it is shown.
func clip(s string) string {
	const enough = 64
	if len(s) > enough {
		return s[:enough] + "..."
	}
	return s
}
