package strictjson

import (
	"bytes"
	"encoding/json"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

type inner struct {
	A int `json:"a"`
}

// Names of its own: what encoding/json makes of an embedded struct's fields is not
// what is tested with it.
type Outer struct {
	B int `json:"b"`
}

// counted reads any object, whatever its keys are.
type counted struct{ keys int }

func (c *counted) UnmarshalJSON(data []byte) error {
	var m map[string]any
	err := json.Unmarshal(data, &m)
	c.keys = len(m)
	return err
}

// word is a struct that is text in a document.
type word struct {
	Text string
}

func (w *word) UnmarshalText(text []byte) error {
	w.Text = string(text)
	return nil
}

type document struct {
	Schema string           `json:"schema"`
	List   []inner          `json:"list,omitempty"`
	Map    map[string]inner `json:"map,omitempty"`
	When   time.Time        `json:"when"`
	Any    any              `json:"any"`
	Ptr    *inner           `json:"ptr"`
	Pair   [2]inner         `json:"pair"`
	Raw    json.RawMessage  `json:"raw"`
	Own    counted          `json:"own"`
	Word   word             `json:"word"`
	Plain  int
	inner
	Outer
	Hidden string `json:"-"`
	secret int
}

func TestUnmarshal(t *testing.T) {
	var d document
	in := `{"schema":"x","list":[{"a":1}],"map":{"k":{"a":2}},"when":"2026-01-02T03:04:05Z","any":{"p":[1,{"q":null}]},"ptr":{"a":3},` +
		`"pair":[{"a":4},{"a":5}],"raw":{"p":1},"own":{"p":1,"q":{}},"word":"w","Plain":6}`
	if err := Unmarshal([]byte(in), &d, len(in), "document"); err != nil {
		t.Fatal(err)
	}
	if d.List[0].A != 1 || d.Map["k"].A != 2 || d.Ptr.A != 3 || d.When.Year() != 2026 ||
		d.Pair[1].A != 5 || string(d.Raw) != `{"p":1}` || d.Own.keys != 2 || d.Word.Text != "w" || d.Plain != 6 || d.secret != 0 {
		t.Errorf("found %+v", d)
	}
}

// nested is lists in lists.
func nested(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

// What is unusual and still means one thing alone is taken.
func TestUnmarshalTakes(t *testing.T) {
	for name, in := range map[string]string{
		"as deep as allowed": `{"any":` + nested(maxDepth) + `}`,
		// Whoever reads it later may have numbers that hold it.
		"a number that no float64 holds": `{"raw":1e999}`,
		"a pair that is left out":        `{}`,
		"a pair that is null":            `{"pair":null}`,
		"names that differ in nesting":   `{"any":{"p":{"p":[{"p":1},{"p":2}]}}}`,
	} {
		if err := Unmarshal([]byte(in), new(document), 1000, "document"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUnmarshalRefuses(t *testing.T) {
	longest, longer := strings.Repeat("k", 100), strings.Repeat("k", 101)
	for in, want := range map[string]string{
		`{"schema":"x","schema":"y"}`:        `field "schema": found twice`,
		`{"schema":"x","Schema":"y"}`:        `field "Schema": not known; did you mean "schema"`,
		`{"SCHEMA":"x"}`:                     `not known`,
		`{"plain":1}`:                        `field "plain": not known; did you mean "Plain"`,
		`{"list":[{"a":1},{"b":1}]}`:         `field "list[1].b": not known`,
		`{"map":{"k":{"b":1}}}`:              `field "map.k.b": not known`,
		`{"map":{"k":{"a":1},"k":{"a":1}}}`:  `field "map.k": found twice`,
		`{"ptr":{"a":1,"a":2}}`:              `field "ptr.a": found twice`,
		`{"pair":[{"a":1},{"b":1}]}`:         `field "pair[1].b": not known`,
		`{"pair":[{"a":1}]}`:                 `field "pair": found 1 elements, expected 2`,
		`{"pair":[{"a":1},{"a":2},{"a":3}]}`: `field "pair": found 3 elements, expected 2`,
		`{"any":{"p":1,"p":2}}`:              `field "any.p": found twice`,
		`{"raw":{"p":1,"p":2}}`:              `field "raw.p": found twice`,
		`{"own":{"p":1,"p":2}}`:              `field "own.p": found twice`,
		`{"word":{"Text":"x"}}`:              `cannot unmarshal`,
		`{"word":[]}`:                        `cannot unmarshal`,
		// It is like no other, and no other is proposed.
		`{"other":1}`:                        "field \"other\": not known\n",
		`{"Hidden":"x"}`:                     `not known`,
		`{"-":"x"}`:                          `field "-": not known`,
		`{"secret":1}`:                       `field "secret": not known`,
		`{"a":1}`:                            `field "a": not known`,
		`{"b":1}`:                            `field "b": not known`,
		`{"inner":{"a":1}}`:                  `field "inner": not known`,
		`{"Outer":{"b":1}}`:                  `field "Outer": not known`,
		`{"schema":"x"} {}`:                  `more after the end`,
		`{"schema":"x"`:                      `unexpected EOF`,
		``:                                   `unexpected EOF`,
		`{1:2}`:                              `invalid character '1'`,
		`{"pair":[{"a":1}}`:                  `invalid character '}'`,
		"{\"schema\":\"\xff\"}":              `UTF-8`,
		`{"schema":1}`:                       `cannot unmarshal`,
		`{"any":` + nested(maxDepth+1) + `}`: `field "any` + strings.Repeat("[0]", maxDepth) + `": found nesting deeper than 32`,
		`{"` + longest + `":1}`:              `field "` + longest + `": not known`,
		`{"` + longer + `":1}`:               `field "` + longest + `...": not known`,
		`{"any":{"` + longer + `":[{"p":1,"p":2}]}}`:     `field "any.` + longest[4:] + `...": found twice`,
		`{"schema":"` + strings.Repeat("x", 1000) + `"}`: `at most 1000`,
	} {
		if err := Unmarshal([]byte(in), new(document), 1000, "document"); err == nil || !strings.Contains(err.Error()+"\n", want) {
			t.Errorf("%.60s: found error %v, expected one with %q", in, err, want)
		}
	}
}

// The memory that a document takes is in proportion to its size: with the name of
// each element of a list in full, this one would take 16 GB, and a minute.
func TestLongKeyOfALongList(t *testing.T) {
	const n = 128 << 10
	in := []byte(`{"any":{"` + strings.Repeat("k", n) + `":[0` + strings.Repeat(",0", n) + `]}}`)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := Unmarshal(in, new(document), len(in), "document"); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 1000*uint64(len(in)) {
		t.Errorf("%d bytes took %d bytes of memory", len(in), got)
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
