package launch

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"github.com/evtpm/evtpm/measure"
)

// SchemaID names the JSON Schema of specs.
const SchemaID = "urn:evtpm:schema:spec:v1"

// A schema is a JSON Schema, draft 2020-12: the keywords that specs need.
type schema struct {
	Schema               string     `json:"$schema,omitempty"`
	ID                   string     `json:"$id,omitempty"`
	Title                string     `json:"title,omitempty"`
	Description          string     `json:"description,omitempty"`
	Type                 string     `json:"type,omitempty"`
	OneOf                []*schema  `json:"oneOf,omitempty"`
	Enum                 []any      `json:"enum,omitempty"`
	Pattern              string     `json:"pattern,omitempty"`
	MinLength            int        `json:"minLength,omitempty"`
	MaxLength            int        `json:"maxLength,omitempty"`
	Minimum              *uint64    `json:"minimum,omitempty"`
	Maximum              *uint64    `json:"maximum,omitempty"`
	Default              any        `json:"default,omitempty"`
	Items                *schema    `json:"items,omitempty"`
	MinItems             int        `json:"minItems,omitempty"`
	UniqueItems          bool       `json:"uniqueItems,omitempty"`
	Properties           properties `json:"properties,omitempty"`
	Required             []string   `json:"required,omitempty"`
	AdditionalProperties *bool      `json:"additionalProperties,omitempty"`
}

// properties keep the order of the structs, which is the order of the manual.
type properties []property

type property struct {
	name   string
	schema *schema
}

// MarshalJSON implements [json.Marshaler].
func (p properties) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range p {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(f.name)
		if err != nil {
			return nil, err
		}
		value, err := marshalPlain(f.schema)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// marshalPlain leaves <, > and & as they are.
func marshalPlain(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}

// SpecSchema returns the JSON Schema of specs, made from the tags that the reader
// and [Spec.Validate] work by. What depends on more than one field is Validate's
// alone.
func SpecSchema() ([]byte, error) {
	root := structSchema(reflect.TypeFor[Spec]())
	root.Schema = "https://json-schema.org/draft/2020-12/schema"
	root.ID = SchemaID
	root.Title = "evtpm spec"
	root.Description = "A confidential VM with an ephemeral vTPM, as evtpm launches and measures it."
	plain, err := marshalPlain(root)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, plain, "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

func structSchema(t reflect.Type) *schema {
	s := &schema{Type: "object", AdditionalProperties: new(bool)}
	for _, f := range fieldsOf(t) {
		p := f.schema(f.typ)
		p.Description = f.tag.Get("doc")
		s.Properties = append(s.Properties, property{f.name, p})
		if f.tag.Get("required") == "true" {
			s.Required = append(s.Required, f.name)
		}
	}
	return s
}

// schema is the schema of a value of type t in the field.
func (f field) schema(t reflect.Type) *schema {
	s := new(schema)
	if text, ok := f.tag.Lookup("default"); ok {
		s.Default = text
	}
	switch t {
	case reflect.TypeFor[Size]():
		s.Type, s.Pattern = "string", "^[1-9][0-9]*[KMGT]$"
		return s
	case reflect.TypeFor[Duration]():
		s.Type, s.Pattern = "string", `^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$`
		return s
	case reflect.TypeFor[measure.HexBytes]():
		size, _ := f.number("size")
		padded := base64.StdEncoding.EncodeToString(make([]byte, size))
		digits := strings.TrimRight(padded, "=")
		s.Type = "string"
		s.Pattern = fmt.Sprintf("^([0-9a-fA-F]{%d}|[A-Za-z0-9+/]{%d}%s)$", hex.EncodedLen(int(size)), len(digits), padded[len(digits):])
		return s
	case reflect.TypeFor[Policy]():
		return policySchema()
	}
	switch t.Kind() {
	case reflect.Pointer:
		return f.schema(t.Elem())
	case reflect.Struct:
		return structSchema(t)
	case reflect.Slice:
		s.Type = "array"
		if t.Elem().Kind() != reflect.Struct {
			s.MinItems, s.UniqueItems = 1, true
		}
		s.Items = f.schema(t.Elem())
	case reflect.Bool:
		s.Type = "boolean"
	case reflect.String:
		s.Type = "string"
		for _, name := range f.list("enum") {
			s.Enum = append(s.Enum, name)
		}
		s.Pattern = f.tag.Get("pattern")
		switch f.tag.Get("kind") {
		case "path":
			s.MinLength, s.MaxLength = 1, maxPath
		case "interface":
			s.Pattern = interfacePattern
		case "program":
			s.MinLength = 1
		}
		if n, ok := f.number("max"); ok {
			s.MaxLength = int(n)
		}
	default:
		s.Type = "integer"
		number := func(text string) uint64 {
			n, err := parseNumber(text)
			if err != nil {
				panic(fmt.Sprintf("spec field %s: %v", f.name, err))
			}
			return n
		}
		for _, text := range f.list("enum") {
			s.Enum = append(s.Enum, number(text))
		}
		lo, _ := f.number("min")
		s.Minimum = &lo
		if hi, ok := f.number("max"); ok {
			s.Maximum = &hi
		}
		if text, ok := s.Default.(string); ok {
			s.Default = number(text)
		}
	}
	return s
}

// policySchema is that of a guest policy: a number, or named bits.
func policySchema() *schema {
	lo, hi, abi := uint64(1)<<policyReservedOne, uint64(1)<<policyKnownBits-1, uint64(0xff)
	bits := &schema{Type: "object", AdditionalProperties: new(bool)}
	for _, name := range abiNames {
		bits.Properties = append(bits.Properties, property{name, &schema{Type: "integer", Minimum: new(uint64), Maximum: &abi,
			Description: "Lowest firmware ABI that the guest accepts."}})
	}
	for _, b := range policyBits {
		bits.Properties = append(bits.Properties, property{b.name, &schema{Type: "boolean", Description: b.doc, Default: DefaultPolicy>>b.bit&1 == 1}})
	}
	return &schema{OneOf: []*schema{{Type: "integer", Minimum: &lo, Maximum: &hi}, bits}}
}
