package attest_test

import (
	"crypto/x509"
	"slices"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
	"github.com/evtpm/evtpm/attest/evidence"
)

// Tests named TestS01_, TestV01_ and so on are the cases of the adversarial
// catalogue: S for reports and certificates, V for the vTPM's binding, A for
// published attacks. Each is a good machine with one thing changed, and says
// exactly which checks fail, with which reasons.

// genoa is a good machine.
func genoa() *attesttest.Machine { return attesttest.NewMachine(attesttest.Genoa) }

// failures lists what failed, "check: reason" each, leaving out what could not
// be made in consequence.
func failures(v *attest.Verdict) []string {
	var out []string
	for _, c := range v.Failures() {
		if c.Reason == string(attest.ReasonNotMade) {
			continue
		}
		if !listed[c.Name+": "+c.Reason] {
			panic("the table of checks has no " + c.Name + ": " + c.Reason)
		}
		out = append(out, c.Name+": "+c.Reason)
	}
	return out
}

// listed are the failures that the table of checks knows.
var listed = func() map[string]bool {
	m := map[string]bool{}
	for _, c := range attest.Checks() {
		for _, r := range c.Reasons {
			m[is(c.Name, r.Reason)] = true
		}
	}
	return m
}()

// is names a failure.
func is(check attest.CheckName, reason attest.Reason) string {
	return string(check) + ": " + string(reason)
}

// want demands that exactly these checks failed; none means trusted.
func want(t *testing.T, v *attest.Verdict, exactly ...string) {
	t.Helper()
	got := failures(v)
	slices.Sort(got)
	slices.Sort(exactly)
	if !slices.Equal(got, exactly) {
		t.Errorf("failures:\n  %s\nexpected:\n  %s\n%s", strings.Join(got, "\n  "), strings.Join(exactly, "\n  "), reasons(v))
	}
	if trusted := len(exactly) == 0; v.Trusted() != trusted {
		t.Errorf("verdict is %s", v.Result)
	}
}

// wantAny demands a refusal with at least this failure.
func wantAny(t *testing.T, v *attest.Verdict, failure string) {
	t.Helper()
	if v.Trusted() || !slices.Contains(failures(v), failure) {
		t.Errorf("verdict is %s, failures:\n  %s\nexpected at least %s", v.Result, strings.Join(failures(v), "\n  "), failure)
	}
}

// judge verifies a machine's evidence under the default policy.
func judge(t *testing.T, m *attesttest.Machine) *attest.Verdict {
	t.Helper()
	return verify(t, m, options(m))
}

// judgeWith is judge under a changed default policy.
func judgeWith(t *testing.T, m *attesttest.Machine, change func(*attest.Policy)) *attest.Verdict {
	t.Helper()
	o := options(m)
	o.Policy = attest.DefaultPolicy()
	change(o.Policy)
	return verify(t, m, o)
}

// bare verifies a machine's report alone.
func bare(t *testing.T, m *attesttest.Machine, report []byte, expect attest.Expect, change func(*attest.Options)) *attest.Verdict {
	t.Helper()
	o := options(m)
	if change != nil {
		change(&o)
	}
	v, err := attest.VerifyReport(t.Context(), report, m.CertTable(), expect, o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// withReport is a machine whose report is changed before it is signed.
func withReport(edit func(attesttest.Report)) *attesttest.Machine {
	m := genoa()
	m.EditReport = edit
	return m
}

// withSigned is a machine whose report is changed after it was signed.
func withSigned(edit func(attesttest.Report)) *attesttest.Machine {
	m := genoa()
	m.EditSigned = edit
	return m
}

// withLeaf is a machine whose leaf certificate's template is changed.
func withLeaf(edit func(*x509.Certificate)) *attesttest.Machine {
	m := genoa()
	m.Leaf = &attesttest.Leaf{ChipID: m.ChipID, Levels: m.Processor.Levels, Edit: edit}
	return m
}

// withEvidence is a machine whose evidence is changed on its way.
func withEvidence(edit func(*evidence.Evidence)) *attesttest.Machine {
	m := genoa()
	m.EditEvidence = edit
	return m
}
