package attest

import "time"

// VerdictSchema names the version of [Verdict]'s JSON form.
const VerdictSchema = "evtpm.verdict/v1"

// Results of a verdict.
const (
	ResultTrusted = "trusted"
	ResultRefused = "refused"
)

// Status of a check.
type Status string

// Statuses. A check that could not be made is failed, never not applicable.
const (
	Passed        Status = "passed"
	Failed        Status = "failed"
	NotApplicable Status = "not-applicable"
)

// A Class groups checks by what is wrong when they fail. Its number is the
// exit code of the command line.
type Class int

// Classes.
const (
	ClassOK             Class = 0
	ClassMisuse         Class = 1
	ClassSignature      Class = 2 // signature or chain
	ClassCertificates   Class = 3 // certificates unavailable
	ClassCRL            Class = 4 // CRL unavailable
	ClassPolicy         Class = 5 // policy or TCB
	ClassMeasurement    Class = 6 // launch digest or PCRs differ
	ClassVTPM           Class = 7 // the vTPM is not bound to the report
	ClassLaunch         Class = 8 // the VM could not be started, or died
	ClassHostNotCapable Class = 9
	ClassTimeout        Class = 10
)

// A Check is one thing looked at, and what came of it.
type Check struct {
	// Name of the check, stable: "report-signature".
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Reason is a stable code that says how a failed check failed
	// ("vmpl-not-zero"); empty otherwise.
	Reason string `json:"reason,omitempty"`
	Class  Class  `json:"class"`
	// Expected and Found are what was compared, for people and programs.
	Expected string `json:"expected,omitempty"`
	Found    string `json:"found,omitempty"`
	// Note says more in words: why a check does not apply, or what to do next.
	Note string `json:"note,omitempty"`
}

// A Verdict is what verification of one piece of evidence came to.
type Verdict struct {
	Schema string `json:"schema"`
	Result string `json:"result"`
	// Platform is "snp" or "sim": which kind of root signed the report.
	Platform string `json:"platform"`
	// Product is the processor's by the report's CPUID or, before version 3, by
	// the certificate; empty when report, certificate and chain do not agree on
	// one.
	Product string `json:"product,omitempty"`
	// Time is the time that validity was judged at.
	Time time.Time `json:"time"`
	// Live is true when the verifier itself made the challenge in this run, so
	// that the checks which need one were made.
	Live bool `json:"live"`
	// Binding is the evidence's binding mode.
	Binding string `json:"binding,omitempty"`
	// FloorsDate is the date of the table of TCB floors that the report was held
	// against; empty when it was held against none.
	FloorsDate string  `json:"floors_date,omitempty"`
	Checks     []Check `json:"checks"`
	// Warnings are things that no check failed on but a reader must know.
	Warnings []string `json:"warnings,omitempty"`
}

// Trusted reports whether every check passed or did not apply.
func (v *Verdict) Trusted() bool { return v.Result == ResultTrusted }

// Failures lists the failed checks in order.
func (v *Verdict) Failures() []Check {
	var out []Check
	for _, c := range v.Checks {
		if c.Status == Failed {
			out = append(out, c)
		}
	}
	return out
}

// Class is the class of the most fundamental failure: the lowest number among
// the failed checks, ClassOK when the verdict is trusted.
func (v *Verdict) Class() Class {
	class := ClassOK
	for _, c := range v.Failures() {
		if class == ClassOK || c.Class < class {
			class = c.Class
		}
	}
	return class
}
