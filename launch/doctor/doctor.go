// Package doctor looks whether a host has what a launch needs: processor, kernel,
// AMD-SP, QEMU, swtpm, libvirt, and a spec's inputs. It asks each of them itself,
// as a launch would, and changes nothing.
package doctor

import (
	"slices"
	"strings"

	"github.com/evtpm/evtpm/launch"
)

// Schema names the version of [Report]'s JSON form.
const Schema = "evtpm.doctor/v1"

// Status is what came of looking at one thing.
type Status string

// Statuses of a finding. A thing that could not be looked at is never ok.
const (
	OK   Status = "ok"
	Warn Status = "warn" // a launch works, and somebody should know
	Fail Status = "fail" // a launch cannot work
)

// A Finding is one thing of the host that a launch needs.
type Finding struct {
	// Name is stable: "sev-device". A spec with three disks has three of one name.
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Platforms lists the platforms that need it.
	Platforms []string `json:"platforms"`
	// Found is what the host has, Needed what a launch needs.
	Found  string `json:"found"`
	Needed string `json:"needed,omitempty"`
	// Fix is the next step; empty when the status is ok.
	Fix string `json:"fix,omitempty"`
}

// A Report says whether this host has what a launch needs.
type Report struct {
	Schema string `json:"schema"`
	// Name and Platform are the spec's; empty without one.
	Name     string `json:"name,omitempty"`
	Platform string `json:"platform,omitempty"`
	// Host is the machine that the spec's libvirt runs on, when it is another one:
	// nothing of it was looked at.
	Host string `json:"host,omitempty"`
	// Works says whether a launch of the spec can work; without a spec, whether
	// one on any platform can.
	Works bool `json:"works"`
	// Platforms says whether a launch on each platform that was looked at can
	// work.
	Platforms map[string]bool `json:"platforms"`
	// Summary is the conclusion in one sentence.
	Summary  string    `json:"summary"`
	Findings []Finding `json:"findings"`
}

// Failures lists what keeps a platform from working.
func (r *Report) Failures(platform string) []Finding {
	var out []Finding
	for _, f := range r.Findings {
		if f.Status == Fail && slices.Contains(f.Platforms, platform) {
			out = append(out, f)
		}
	}
	return out
}

// maxReasons is how many failures the summary names.
const maxReasons = 3

// conclude draws the conclusion from the findings. platforms are those that were
// looked at.
func (r *Report) conclude(platforms []string) {
	r.Platforms = make(map[string]bool)
	for _, p := range platforms {
		r.Platforms[p] = len(r.Failures(p)) == 0
		if p == r.Platform || r.Platform == "" {
			r.Works = r.Works || r.Platforms[p]
		}
	}
	if r.Host != "" {
		r.Summary = "nothing speaks against a launch on " + r.Host + ", of which nothing was looked at; run evtpm doctor there"
		if !r.Works {
			r.Summary = "a launch on " + r.Host + " cannot work: " + r.reasons(r.Platform)
		}
		return
	}
	var said []string
	if works, ok := r.Platforms[launch.PlatformSNP]; ok {
		if works {
			said = append(said, "this machine can run SEV-SNP guests")
		} else {
			said = append(said, "this machine cannot run SEV-SNP guests: "+r.reasons(launch.PlatformSNP))
		}
	}
	if works, ok := r.Platforms[launch.PlatformSim]; ok {
		if works {
			said = append(said, "the simulated platform works")
		} else {
			said = append(said, "the simulated platform does not work: "+r.reasons(launch.PlatformSim))
		}
	}
	r.Summary = strings.Join(said, "; ")
}

// reasons names the first failures of a platform.
func (r *Report) reasons(platform string) string {
	var out []string
	for _, f := range r.Failures(platform) {
		if len(out) == maxReasons {
			out = append(out, "and more")
			break
		}
		out = append(out, f.Found)
	}
	return strings.Join(out, ", ")
}
