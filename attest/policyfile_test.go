package attest_test

import (
	"strings"
	"testing"

	"github.com/evtpm/evtpm/attest"
)

// TestPolicyFaultsInWords: what is wrong with a policy is said in the words of the
// file, with its name and the line, and with what was probably meant.
func TestPolicyFaultsInWords(t *testing.T) {
	good := string(attest.DefaultPolicyYAML())
	first, _, _ := strings.Cut(good, "host_data: zero")
	line := strings.Count(first, "\n") + 1
	for name, c := range map[string]struct{ old, new, says string }{
		"field":          {"host_data: zero", "host_dta: zero", `p.yaml: line 19: unknown field "host_dta", nearest is "host_data"`},
		"not near":       {"host_data: zero", "host_data: zero\nxyz: 1", `p.yaml: line 20: unknown field "xyz"`},
		"inner field":    {"  event_log: required", "  eventlog: required", `unknown field "eventlog", nearest is "event_log"`},
		"two":            {"host_data: zero", "host_dta: zero\nsignrs: []", "p.yaml: line 19: unknown field \"host_dta\", nearest is \"host_data\"\np.yaml: line 20: unknown field \"signrs\", nearest is \"signers\""},
		"in floors":      {"floors: default", "floors: {version: 1, dat: x}", `unknown field "dat", nearest is "date"`},
		"in a row":       {"floors: default", "floors: {version: 1, floors: [{cpu: x}]}", `unknown field "cpu", nearest is "cpuid"`},
		"word for rules": {"host_data: zero", "host_data: zero\nmitigations: all", "p.yaml: line 20: found no fields, expected launch, current"},
		"no name":        {"host_data: zero", "host_data: zero\n\"\": 1", `p.yaml: line 20: unknown field ""`},
		"word for list":  {"signers: [vcek, vlek]", "signers: vcek", "found no list, expected one"},
		"rows of fields": {"floors: default", "floors: {version: 1, floors: {a: b}}", "found no list, expected one"},
		"no value":       {"name: default", "name:", "p.yaml: line 3: a value is missing"},
		"product":        {"[Milan,", "[Milann,", `p.yaml: products: unknown product "Milann", nearest is "Milan"`},
		"host data":      {"host_data: zero", "host_data: nul", `p.yaml: host_data: found "nul", expected 32 bytes in hexadecimal, or zero, or any`},
		"bit":            {"debug: forbidden", "debgu: forbidden", `p.yaml: guest_policy.bits: unknown bit "debgu", nearest is "debug"`},
	} {
		if !strings.Contains(good, c.old) {
			t.Fatalf("%s: the default policy has no %q", name, c.old)
		}
		_, err := attest.ParsePolicy([]byte(strings.Replace(good, c.old, c.new, 1)), "p.yaml")
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: found %v, expected %q (host_data stands on line %d)", name, err, c.says, line)
		}
		if err != nil && strings.Contains(err.Error(), "nearest") != strings.Contains(c.says, "nearest") {
			t.Errorf("%s: found %v, expected %q", name, err, c.says)
		}
		if err != nil && strings.Contains(err.Error(), "attest.") {
			t.Errorf("%s: speaks Go: %v", name, err)
		}
	}
	for text, says := range map[string]string{
		"default":                    "p.yaml: line 1: found no fields, expected version, name, report, ",
		"- version: 1":               "p.yaml: line 1: found no fields",
		"a: [":                       "p.yaml: yaml: line 1: did not find expected node content",
		"version: 1\nversion: 1":     `p.yaml: line 2: mapping key "version" already defined at line 1`,
		"version: x\nvmpl: [a, 0]":   "p.yaml: line 1: cannot unmarshal !!str `x` into int; line 2: cannot unmarshal !!str `a` into uint32",
		"version: 2\nhost_data: any": "p.yaml: version is 2, expected 1\np.yaml: report.min_version is 0",
	} {
		_, err := attest.ParsePolicy([]byte(text), "p.yaml")
		if err == nil || !strings.HasPrefix(err.Error(), says) {
			t.Errorf("%q: found %v, expected %q", text, err, says)
		}
	}
}
