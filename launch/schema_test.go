package launch

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/evtpm/evtpm/launch/launchtest"
)

// specSchema returns the schema as another program would read it.
func specSchema(t *testing.T) map[string]any {
	t.Helper()
	data, err := SpecSchema()
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// conforms holds a value against a schema by the rules of draft 2020-12. It knows
// the keywords that it knows, and fails at others.
func conforms(schema map[string]any, v any, at string) error {
	for keyword, rule := range schema {
		var err error
		switch keyword {
		case "$schema", "$id", "title", "description", "default":
		case "type":
			err = conformsType(rule.(string), v)
		case "enum":
			if !slices.Contains(rule.([]any), v) {
				err = fmt.Errorf("found %v, expected one of %v", v, rule)
			}
		case "pattern":
			if s, ok := v.(string); ok && !regexp.MustCompile(rule.(string)).MatchString(s) {
				err = fmt.Errorf("found %q, expected %s", s, rule)
			}
		case "minLength":
			if s, ok := v.(string); ok && float64(len(s)) < rule.(float64) {
				err = fmt.Errorf("found length %d, expected at least %v", len(s), rule)
			}
		case "maxLength":
			if s, ok := v.(string); ok && float64(len(s)) > rule.(float64) {
				err = fmt.Errorf("found length %d, expected at most %v", len(s), rule)
			}
		case "minimum":
			if n, ok := number(v); ok && n < rule.(float64) {
				err = fmt.Errorf("found %v, expected at least %v", v, rule)
			}
		case "maximum":
			if n, ok := number(v); ok && n > rule.(float64) {
				err = fmt.Errorf("found %v, expected at most %v", v, rule)
			}
		case "minItems":
			if l, ok := v.([]any); ok && float64(len(l)) < rule.(float64) {
				err = fmt.Errorf("found %d items, expected at least %v", len(l), rule)
			}
		case "uniqueItems":
			l, _ := v.([]any)
			for i := range l {
				if slices.Contains(l[:i], l[i]) {
					err = fmt.Errorf("found %v twice", l[i])
				}
			}
		case "items":
			l, _ := v.([]any)
			for i := range l {
				if err := conforms(rule.(map[string]any), l[i], fmt.Sprintf("%s[%d]", at, i)); err != nil {
					return err
				}
			}
		case "oneOf":
			var matches int
			for _, option := range rule.([]any) {
				if conforms(option.(map[string]any), v, at) == nil {
					matches++
				}
			}
			if matches != 1 {
				err = fmt.Errorf("matches %d of oneOf", matches)
			}
		case "required":
			m, _ := v.(map[string]any)
			for _, name := range rule.([]any) {
				if _, ok := m[name.(string)]; m != nil && !ok {
					err = fmt.Errorf("found no %s", name)
				}
			}
		case "additionalProperties":
			m, _ := v.(map[string]any)
			known, _ := schema["properties"].(map[string]any)
			for name := range m {
				if _, ok := known[name]; !ok {
					err = fmt.Errorf("found %q, expected known names alone", name)
				}
			}
		case "properties":
			m, _ := v.(map[string]any)
			for name, value := range m {
				if p, ok := rule.(map[string]any)[name]; ok {
					if err := conforms(p.(map[string]any), value, at+"."+name); err != nil {
						return err
					}
				}
			}
		default:
			return fmt.Errorf("schema at %q: keyword %q is not known to this test", at, keyword)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
	}
	return nil
}

func number(v any) (float64, bool) {
	switch n := v.(type) {
	case int:
		return float64(n), true
	case float64:
		return n, true
	}
	return 0, false
}

func conformsType(want string, v any) error {
	ok := false
	switch want {
	case "object":
		_, ok = v.(map[string]any)
	case "array":
		_, ok = v.([]any)
	case "string":
		_, ok = v.(string)
	case "boolean":
		_, ok = v.(bool)
	case "integer":
		var n float64
		n, ok = number(v)
		ok = ok && n == math.Trunc(n)
	}
	if !ok {
		return fmt.Errorf("found a %T, expected %s", v, want)
	}
	return nil
}

// conformsYAML holds a YAML document against the schema.
func conformsYAML(t *testing.T, schema map[string]any, text string) error {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return conforms(schema, v, "spec")
}

// TestSchemaAgrees: the schema takes what the reader takes, and refuses what a
// single field is refused for.
func TestSchemaAgrees(t *testing.T) {
	schema := specSchema(t)
	for _, text := range []string{
		launchtest.Demo,
		launchtest.With("policy: 0xB0000", "host_data: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "timeouts: {boot: 1m30s, stop: 1.5h}"),
		launchtest.With("policy: {debug: true, abi_minor: 31}", "memory: 2G", "hugepages: 1G", "attestation: {pcrs: [4, 9]}"),
		launchtest.With("disks: []", "networks: [{type: user, forwards: [{host_port: 1, guest_port: 2}]}]", "vsock: {cid: 3}"),
		snp("firmware: {}", "svsm: {image: a}", "id_block: {id_key: k, family_id: "+strings.Repeat("0a", 16)+", image_id: AAAAAAAAAAAAAAAAAAAAAA==}"),
	} {
		if _, err := load(text); err != nil {
			t.Error(err)
		}
		if err := conformsYAML(t, schema, text); err != nil {
			t.Errorf("schema refuses what the reader takes: %v\n%s", err, text)
		}
	}
	for _, line := range []string{
		"version: 2", "version: 0", "name: A", "platform: x", "platfrom: sim", "cpu: {count: 0}", "cpu: {count: 513}", "cpu: {modle: x}", "cpu: {model: 'a,b'}",
		"memory: 256", "memory: 256MB", "memory: 0x1G", "policy: 0", "policy: 0x4030000", "policy: {debgu: true}", "policy: {smt: 1}",
		"policy: {abi_major: 256}", "policy: text", "host_data: abc", "id_block: {id_key: k, family_id: AAAA}", "timeouts: {boot: 60}", "timeouts: {boot: -1s}",
		"rng: 1", "kernel: ''", "cmdline: " + strings.Repeat("x", 2048), "kernel_hashes: maybe", "attestation: {pcrs: [24]}", "attestation: {pcrs: []}",
		"attestation: {pcrs: [4, 9, 4]}", "attestation: {pcrs: 4}", "disks: [{path: a}]", "disks: [{format: raw}]", "networks: [{type: tap, device: 'a b'}]",
		"networks: [{type: user, mac: 'x'}]", "networks: [{type: user, forwards: [{host_port: 1}]}]", "vsock: {cid: 2}", "vsock: {}", "sim: {report_version: 2}", "sim: {report_version: 4}", "svsm: {}",
		"qemu: {machine: pc}", "qemu: {binary: ''}", "agent: {port: 0}", "console: [a]", "firmware: path",
	} {
		text := launchtest.With(line)
		if _, err := load(text); err == nil {
			t.Errorf("%s: the reader takes it", line)
		}
		if err := conformsYAML(t, schema, text); err == nil {
			t.Errorf("%s: the schema takes it", line)
		}
	}
}

// TestSchemaNoFieldForgotten: every field of the structs is in the schema with its
// description, and the schema has no others.
func TestSchemaNoFieldForgotten(t *testing.T) {
	var compare func(typ reflect.Type, schema map[string]any, at string)
	compare = func(typ reflect.Type, schema map[string]any, at string) {
		properties, _ := schema["properties"].(map[string]any)
		seen := 0
		for i := range typ.NumField() {
			f := typ.Field(i)
			if !f.IsExported() {
				continue
			}
			seen++
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			p, ok := properties[name].(map[string]any)
			if !ok {
				t.Errorf("%s.%s is not in the schema", at, name)
				continue
			}
			if p["description"] != f.Tag.Get("doc") || p["description"] == "" {
				t.Errorf("%s.%s: found description %v, expected %q", at, name, p["description"], f.Tag.Get("doc"))
			}
			elem := f.Type
			for elem.Kind() == reflect.Pointer || elem.Kind() == reflect.Slice {
				if elem.Kind() == reflect.Slice && p["items"] != nil {
					p = p["items"].(map[string]any)
				}
				elem = elem.Elem()
			}
			if elem.Kind() == reflect.Struct {
				compare(elem, p, at+"."+name)
			}
		}
		if seen != len(properties) {
			t.Errorf("%s: found %d fields in the schema, expected %d", at, len(properties), seen)
		}
		if schema["additionalProperties"] != false {
			t.Errorf("%s: found additionalProperties %v, expected false", at, schema["additionalProperties"])
		}
	}
	compare(reflect.TypeFor[Spec](), specSchema(t), "spec")
}

// TestSchemaDefaults: the defaults in the schema are those that are filled in.
func TestSchemaDefaults(t *testing.T) {
	s := &Spec{Version: 1, Name: "a", Platform: PlatformSim, Networks: []Network{{Type: NetworkUser, Forwards: []Forward{{HostPort: 1, GuestPort: 1}}}}}
	s.FillDefaults("/")
	var compare func(v reflect.Value, schema map[string]any, at string)
	compare = func(v reflect.Value, schema map[string]any, at string) {
		for _, f := range fieldsOf(v.Type()) {
			p := schema["properties"].(map[string]any)[f.name].(map[string]any)
			fv := v.Field(f.index)
			if fv.Kind() == reflect.Slice && fv.Len() > 0 && fv.Type().Elem().Kind() == reflect.Struct {
				fv, p = fv.Index(0), p["items"].(map[string]any)
			}
			if fv.Kind() == reflect.Pointer {
				fv = fv.Elem()
			}
			if fv.IsValid() && fv.Kind() == reflect.Struct {
				compare(fv, p, at+"."+f.name)
				continue
			}
			want, ok := p["default"]
			if !ok {
				continue
			}
			if d, isTime := fv.Interface().(Duration); isTime {
				var parsed Duration
				if err := parsed.UnmarshalText([]byte(want.(string))); err != nil || parsed != d {
					t.Errorf("%s.%s: found default %s, expected %v", at, f.name, d, want)
				}
				continue
			}
			if got := fmt.Sprint(fv.Interface()); got != fmt.Sprint(want) {
				t.Errorf("%s.%s: found default %s, expected %v", at, f.name, got, want)
			}
		}
	}
	compare(reflect.ValueOf(s).Elem(), specSchema(t), "spec")
}

// TestExamples: every spec in examples/ is right by the reader and by the schema.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../examples/*/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	schema := specSchema(t)
	specs := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "\nplatform:") {
			continue // a recipe or a policy
		}
		specs++
		if _, err := ReadSpec(file, SpecFileOptions{AnyOwner: true}); err != nil {
			t.Error(err)
		}
		if err := conformsYAML(t, schema, string(text)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	if specs == 0 {
		t.Error("found no spec in examples")
	}
}
