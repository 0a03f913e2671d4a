package launch

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/measure"
)

const specDocHead = `# Spec files

A spec says what VM is launched: one YAML document. Eight lines are enough (` + "`examples/demo`" + `); everything else has a default.

` + "```yaml" + `
version: 1
name: demo
platform: sim
firmware: {path: OVMF.amdsev.fd}
kernel: vmlinuz
initrd: initrd.cpio
cmdline: quiet
memory: 256M
` + "```" + `

` + "`evtpm spec check FILE`" + ` lists everything that is wrong with a spec, each with its line; with ` + "`-o json`" + ` it prints the spec with
every default filled in. ` + "`evtpm spec schema`" + ` prints a JSON Schema for editors.

## How it is read

Strictly: what two readers of YAML could understand in two ways is an error.

- Unknown fields, repeated fields, names in another case.
- Values of another type. Numbers are decimal, or hexadecimal after ` + "`0x`" + `, without quotes; ` + "`010`" + `, ` + "`1_000`" + ` and ` + "`1e3`" + ` are none. Truth values are
  ` + "`true`" + ` and ` + "`false`" + `. Sizes and times carry a unit: ` + "`512M`" + `, ` + "`90s`" + `.
- Anchors, aliases, tags, merge keys, a second document, a byte order mark, control characters, more than 64 KiB.
- A file that others than you and root could have written (` + "`--allow-untrusted-file`" + ` takes it).

Paths are relative to the spec's folder. ` + "`~`" + ` and environment variables are not expanded.

## The lock

` + "`evtpm lock vm.yaml`" + ` writes ` + "`vm.lock`" + `: the SHA-256 of every input, the launch digest, and what a report must say besides. With ` + "`--frozen`" + `,
` + "`launch`" + `, ` + "`measure`" + ` and ` + "`render`" + ` refuse whatever differs, by name, with exit code 6. Disks are not inputs: they change while a VM runs.

## Fields

`

// specDoc is docs/spec.md: the fields as their tags describe them.
func specDoc() string {
	var b strings.Builder
	b.WriteString(specDocHead)
	b.WriteString("| field | what it takes | default | meaning |\n|---|---|---|---|\n")
	var list func(t reflect.Type, path string)
	list = func(t reflect.Type, path string) {
		for _, f := range fieldsOf(t) {
			at, elem := joinPath(path, f.name), f.typ
			if elem.Kind() == reflect.Pointer {
				elem = elem.Elem()
			}
			isList := elem.Kind() == reflect.Slice && elem != reflect.TypeFor[measure.HexBytes]()
			if isList {
				at, elem = at+"[]", elem.Elem()
			}
			def := ""
			if text, ok := f.tag.Lookup("default"); ok {
				def = "`" + text + "`"
			}
			if f.tag.Get("required") == "true" {
				def = "required"
			}
			takes := "a mapping"
			if elem.Kind() != reflect.Struct {
				takes = specDocTakes(f, elem)
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", at, takes, def, f.tag.Get("doc"))
			if elem == reflect.TypeFor[Policy]() {
				for _, p := range policyBits {
					fmt.Fprintf(&b, "| `%s.%s` | true or false | `%v` | %s |\n", at, p.name, DefaultPolicy>>p.bit&1 == 1, p.doc)
				}
				for _, name := range abiNames {
					fmt.Fprintf(&b, "| `%s.%s` | 0 to 255 | `0` | Lowest firmware ABI that the guest accepts. |\n", at, name)
				}
			}
			if elem.Kind() == reflect.Struct {
				list(elem, at)
			}
		}
	}
	list(reflect.TypeFor[Spec](), "")
	return b.String()
}

func specDocTakes(f field, t reflect.Type) string {
	if enum := f.list("enum"); enum != nil {
		return "`" + strings.Join(enum, "`, `") + "`"
	}
	if n, ok := f.number("size"); ok {
		return fmt.Sprintf("%d bytes in hex or base64", n)
	}
	if t.Kind() == reflect.Int || t.Kind() == reflect.Uint32 {
		if text := strings.TrimPrefix(expectation(f), ", expected "); text != "" {
			return text
		}
	}
	if kind := f.tag.Get("kind"); kind == "path" {
		return "a path"
	}
	if want := f.tag.Get("want"); want != "" {
		return want
	}
	return wanted(t)
}

// TestSpecDoc: the manual is made from the tags. EVTPM_UPDATE_DOCS=1 writes it.
func TestSpecDoc(t *testing.T) {
	const path = "../docs/spec.md"
	if os.Getenv("EVTPM_UPDATE_DOCS") != "" {
		if err := os.WriteFile(path, []byte(specDoc()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	found, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(found) != specDoc() {
		t.Errorf("%s differs from the tags of Spec: EVTPM_UPDATE_DOCS=1 go test ./launch -run TestSpecDoc writes it anew", path)
	}
}
