// Package strictjson decodes JSON documents that came from elsewhere. Where
// encoding/json is lenient, two programs can read one document in two ways; here
// a field that is unknown, repeated or spelt in another case, a list that does not
// fill its array, or more than fills it, a second document after the first, or
// invalid UTF-8 is an error.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds nesting; no document of ours goes a quarter as deep.
const maxDepth = 32

// Unmarshal decodes data, at most limit bytes, into v, a pointer. what names the
// document in errors. The fields of embedded structs are not known: which of them
// encoding/json takes depends on all the others.
func Unmarshal(data []byte, v any, limit int, what string) error {
	if len(data) > limit {
		return fmt.Errorf("%s: found %d bytes, expected at most %d", what, len(data), limit)
	}
	if !utf8.Valid(data) {
		return fmt.Errorf("%s: found invalid UTF-8", what)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	w := walker{dec: dec}
	if err := w.value(reflect.TypeOf(v), "", 0); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("%s: %w", what, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: found more after the end of the document", what)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// walker reads the document's tokens beside the type that it will be decoded
// into.
type walker struct{ dec *json.Decoder }

var jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()

// value reads one value. t is nil where the type is not known. path is clipped at
// every step: with a key of half the document's size, one for each element of a
// long list would take the square of that.
func (w walker) value(t reflect.Type, path string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("field %q: found nesting deeper than %d", path, maxDepth)
	}
	tok, err := w.dec.Token()
	if err != nil {
		return err
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return nil
	}
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t != nil && reflect.PointerTo(t).Implements(jsonUnmarshaler) {
		t = nil // what it makes of its value is its own affair
	}
	if delim == '{' {
		return w.object(t, path, depth)
	}
	return w.list(t, path, depth)
}

func (w walker) list(t reflect.Type, path string, depth int) error {
	var elem reflect.Type
	if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
		elem = t.Elem()
	}
	n := 0
	for ; w.dec.More(); n++ {
		if err := w.value(elem, clip(fmt.Sprintf("%s[%d]", path, n)), depth+1); err != nil {
			return err
		}
	}
	if _, err := w.dec.Token(); err != nil {
		return err
	}
	// encoding/json drops what is too much, and puts zeros for what is missing.
	if t != nil && t.Kind() == reflect.Array && n != t.Len() {
		return fmt.Errorf("field %q: found %d elements, expected %d", path, n, t.Len())
	}
	return nil
}

func (w walker) object(t reflect.Type, path string, depth int) error {
	var fields map[string]reflect.Type
	var elem reflect.Type
	if t != nil {
		switch t.Kind() {
		case reflect.Struct:
			fields = fieldsOf(t)
		case reflect.Map:
			elem = t.Elem()
		}
	}
	seen := make(map[string]bool)
	for w.dec.More() {
		tok, err := w.dec.Token()
		if err != nil {
			return err
		}
		key, _ := tok.(string)
		field := clip(strings.TrimPrefix(path+"."+key, "."))
		if seen[key] {
			return fmt.Errorf("field %q: found twice", field)
		}
		seen[key] = true
		inner := elem
		if fields != nil {
			if inner, ok := fields[key]; ok {
				if err := w.value(inner, field, depth+1); err != nil {
					return err
				}
				continue
			}
			return fmt.Errorf("field %q: not known%s", field, nearest(key, fields))
		}
		if err := w.value(inner, field, depth+1); err != nil {
			return err
		}
	}
	_, err := w.dec.Token()
	return err
}

// fieldsOf maps the JSON names of a struct's fields to their types.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	out := make(map[string]reflect.Type)
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-", !f.IsExported():
		case name != "":
			out[name] = f.Type
		case !f.Anonymous:
			out[f.Name] = f.Type
		}
	}
	return out
}

// nearest names a field that differs in case alone, the commonest slip.
func nearest(key string, fields map[string]reflect.Type) string {
	for name := range fields {
		if strings.EqualFold(name, key) {
			return fmt.Sprintf("; did you mean %q", name)
		}
	}
	return ""
}

func clip(s string) string {
	const enough = 100
	if len(s) > enough {
		return s[:enough] + "..."
	}
	return s
}
