package attest_test

import (
	"strings"
	"testing"

	"github.com/evtpm/evtpm/attest"
)

// TestPolicyAges: an age below zero is no age. Taken as it is, it would refuse
// everything, or nothing, depending on who compares.
func TestPolicyAges(t *testing.T) {
	for want, set := range map[string]func(*attest.Policy){
		"crl_max_age_days is -1, expected 0 or more": func(p *attest.Policy) { p.CRLMaxAgeDays = -1 },
		"tcb.max_age_days is -1, expected 0 or more": func(p *attest.Policy) { p.TCB.MaxAgeDays = -1 },
	} {
		p := attest.DefaultPolicy()
		set(p)
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("found %v, expected %s", err, want)
		}
		p = attest.DefaultPolicy()
		p.CRLMaxAgeDays, p.TCB.MaxAgeDays = 0, 0
		if err := p.Validate(); err != nil {
			t.Errorf("ages of zero: %v", err)
		}
	}
}
