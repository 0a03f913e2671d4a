package machine

import (
	"strings"
	"testing"

	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/svsmimg"
)

// TestImageWords: a launch of an image says what of it is simulated, and one
// without says nothing.
func TestImageWords(t *testing.T) {
	for _, svsm := range []bool{false, true} {
		p := &launch.Plan{SVSM: &launch.Input{Path: "/dir/a.igvm"}, Extracted: &svsmimg.Extracted{Firmware: make([]byte, 4096), SVSM: svsm}}
		if imageRuns(p) != ", which runs the firmware of a.igvm (4 KiB)" || !strings.Contains(imageMeasured(p), "by the simulated AMD-SP") || !strings.Contains(imageStandsFor(p), "in the simulated SVSM") {
			t.Errorf("found %q, %q, %q", imageRuns(p), imageMeasured(p), imageStandsFor(p))
		}
	}
	if p := new(launch.Plan); imageRuns(p)+imageMeasured(p)+imageStandsFor(p) != "" {
		t.Error("a launch without an image speaks of one")
	}
}
