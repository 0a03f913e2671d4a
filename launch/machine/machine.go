package machine

import (
	"encoding/json"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/process"
)

// RecordSchema names the version of [Record]'s JSON form.
const RecordSchema = "evtpm.machine/v1"

// A Record is what is known of a machine: the contents of machine.json, which
// its supervisor writes, and what [Home.Status] makes of it.
type Record struct {
	Schema   string `json:"schema"`
	Name     string `json:"name"`
	Platform string `json:"platform"`
	State    State  `json:"state"`
	// Reason says why the machine is in this state, where that is not obvious.
	Reason string `json:"reason,omitempty"`
	// Running says that there is a VM.
	Running bool `json:"running"`
	// Grace is what the guest is given to shut down: what the spec allows, when it
	// has a disk that it can write; a guest without has nothing to save.
	Grace launch.Duration `json:"grace,omitempty"`
	// Phase that the launch has come to.
	Phase Phase `json:"phase,omitempty"`
	// Class of the error that the machine failed with.
	Class attest.Class `json:"class,omitempty"`

	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`

	Supervisor process.Process `json:"supervisor"`
	// Processes are the supervisor's children, and a domain's QEMU.
	Processes []process.Process `json:"processes,omitempty"`
	// Domain is the UUID of the machine's domain, for backend libvirt.
	Domain string `json:"domain,omitempty"`

	// Boots counts the guest's boots: more than one after a reset.
	Boots int `json:"boots,omitempty"`
	// LaunchDigest is the one that the simulated AMD-SP measured.
	LaunchDigest string `json:"launch_digest,omitempty"`
	// Agent is the address of the guest agent, as evtpm attest --connect takes it.
	Agent   string   `json:"agent,omitempty"`
	Timings []Timing `json:"timings,omitempty"`
	// Verdict is the result of the latest attestation of this boot.
	Verdict *VerdictSummary `json:"verdict,omitempty"`
}

// A VerdictSummary is the outcome of an attestation without its checks.
type VerdictSummary struct {
	Result  string       `json:"result"`
	Class   attest.Class `json:"class"`
	Reasons []string     `json:"reasons,omitempty"`
	Time    time.Time    `json:"time"`
}

// An Outcome is evidence and what was found of it.
type Outcome struct {
	Verdict *attest.Verdict `json:"verdict"`
	// Evidence is the document as the guest's agent gave it.
	Evidence json.RawMessage `json:"evidence"`
}

func summarize(v *attest.Verdict) *VerdictSummary {
	s := &VerdictSummary{Result: v.Result, Class: v.Class(), Time: v.Time}
	for _, c := range v.Failures() {
		reason := c.Reason
		if reason == "" {
			reason = c.Name
		}
		s.Reasons = append(s.Reasons, reason)
	}
	return s
}
