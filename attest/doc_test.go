package attest_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/attest"
)

// className names the classes as the manual does.
var className = map[attest.Class]string{
	attest.ClassSignature: "signature or chain", attest.ClassCertificates: "certificates unavailable", attest.ClassCRL: "CRL unavailable",
	attest.ClassPolicy: "policy or TCB", attest.ClassMeasurement: "measurement or PCRs", attest.ClassVTPM: "vTPM binding",
}

// TestManualListsEveryCheck: docs/verification.md has the table of checks as the
// program has it. EVTPM_WRITE_DOCS=1 writes it.
func TestManualListsEveryCheck(t *testing.T) {
	const name, begin, end = "../docs/verification.md", "<!-- checks: made from attest/checks.go -->\n", "<!-- end of checks -->\n"
	text := string(readFile(t, name))
	head, rest, ok := strings.Cut(text, begin)
	_, tail, found := strings.Cut(rest, end)
	if !ok || !found {
		t.Fatalf("%s has no place for the table", name)
	}
	var b bytes.Buffer
	b.WriteString(head + begin)
	b.WriteString("| check | passes when | reason of a failure | | exit code |\n|---|---|---|---|---|\n")
	for _, c := range attest.Checks() {
		first := fmt.Sprintf("| `%s` | %s |", c.Name, c.Meaning)
		code := fmt.Sprintf(" %d |\n", c.Class)
		if len(c.Reasons) == 0 {
			fmt.Fprintf(&b, "%s never fails | |%s", first, code)
		}
		for _, r := range c.Reasons {
			fmt.Fprintf(&b, "%s `%s` | %s |%s", first, r.Reason, r.Meaning, code)
			first = "| | |"
		}
		if className[c.Class] == "" {
			t.Errorf("%s: class %d has no name", c.Name, c.Class)
		}
	}
	b.WriteString(end + tail)
	if b.String() == text {
		return
	}
	if os.Getenv("EVTPM_WRITE_DOCS") == "" {
		t.Fatalf("%s is not what the program does: run this test with EVTPM_WRITE_DOCS=1", name)
	}
	if err := os.WriteFile(name, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
