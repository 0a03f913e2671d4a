package nearest

import (
	"strings"
	"testing"
)

func TestName(t *testing.T) {
	known := []string{"launch", "ps", "rm", "measure", "kernel_hashes", "kernel"}
	for name, want := range map[string]string{
		"lanuch":                   "launch",
		"LAUNCH":                   "launch",
		"measur":                   "measure",
		"kernel-hashes":            "kernel_hashes",
		"kernl":                    "kernel",
		"pss":                      "ps",
		"foo":                      "",
		"":                         "",
		"kern":                     "kernel",
		"meas":                     "measure",
		"Mea":                      "measure",
		"la":                       "",
		"launc":                    "launch",
		"nothing":                  "",
		strings.Repeat("x", 1<<20): "",
	} {
		if got := Name(name, known); got != want {
			t.Errorf("%.20q: found %q, expected %q", name, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"Kitten", "kITTEN", 0}, {"ab", "ba", 2}} {
		if got := Distance(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: found %d, expected %d", c.a, c.b, got, c.want)
		}
	}
}
