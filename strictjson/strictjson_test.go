package strictjson

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

type inner struct {
	A int `json:"a"`
}

type document struct {
	Schema string           `json:"schema"`
	List   []inner          `json:"list,omitempty"`
	Map    map[string]inner `json:"map,omitempty"`
	When   time.Time        `json:"when"`
	Any    any              `json:"any"`
	Ptr    *inner           `json:"ptr"`
	inner
	Hidden string `json:"-"`
}

func TestUnmarshal(t *testing.T) {
	var d document
	in := `{"schema":"x","list":[{"a":1}],"map":{"k":{"a":2}},"when":"2026-01-02T03:04:05Z","any":{"p":[1,{"q":null}]},"ptr":{"a":3}}`
	if err := Unmarshal([]byte(in), &d, 1000, "document"); err != nil {
		t.Fatal(err)
	}
	if d.List[0].A != 1 || d.Map["k"].A != 2 || d.Ptr.A != 3 || d.When.Year() != 2026 {
		t.Errorf("found %+v", d)
	}
}

func TestUnmarshalRefuses(t *testing.T) {
	for in, want := range map[string]string{
		`{"schema":"x","schema":"y"}`:                    `field "schema": found twice`,
		`{"schema":"x","Schema":"y"}`:                    `field "Schema": not known; did you mean "schema"`,
		`{"SCHEMA":"x"}`:                                 `not known`,
		`{"list":[{"a":1},{"b":1}]}`:                     `field "list[1].b": not known`,
		`{"map":{"k":{"b":1}}}`:                          `field "map.k.b": not known`,
		`{"map":{"k":{"a":1},"k":{"a":1}}}`:              `field "map.k": found twice`,
		`{"ptr":{"a":1,"a":2}}`:                          `field "ptr.a": found twice`,
		`{"any":{"p":1,"p":2}}`:                          `field "any.p": found twice`,
		`{"Hidden":"x"}`:                                 `not known`,
		`{"schema":"x"} {}`:                              `more after the end`,
		`{"schema":"x"`:                                  `unexpected EOF`,
		``:                                               `unexpected EOF`,
		"{\"schema\":\"\xff\"}":                          `UTF-8`,
		`{"schema":1}`:                                   `cannot unmarshal`,
		`{"any":` + strings.Repeat("[", 40) + `}`:        `nesting`,
		`{"schema":"` + strings.Repeat("x", 1000) + `"}`: `at most 1000`,
	} {
		if err := Unmarshal([]byte(in), new(document), 1000, "document"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: found error %v, expected one with %q", in, err, want)
		}
	}
}

// FuzzUnmarshal: what is accepted means the same to encoding/json, however
// strict that is asked to be.
func FuzzUnmarshal(f *testing.F) {
	f.Add([]byte(`{"schema":"x","list":[{"a":1}],"map":{"k":{"a":2}},"when":"2026-01-02T03:04:05Z","any":{"p":[1,{"q":null}]},"ptr":{"a":3}}`))
	f.Add([]byte(`{"schema":"x","schema":"y"}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		var ours, theirs document
		if err := Unmarshal(in, &ours, 1<<16, "document"); err != nil {
			return
		}
		dec := json.NewDecoder(bytes.NewReader(in))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&theirs); err != nil {
			t.Fatalf("accepted what encoding/json refuses: %v", err)
		}
		if !reflect.DeepEqual(ours, theirs) {
			t.Fatalf("found %+v, expected %+v", ours, theirs)
		}
	})
}
