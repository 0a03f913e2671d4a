package attest

import (
	"encoding/json"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest/evidence"
)

// What cannot be written as JSON is not sent at all, not even as an empty frame.
// No message of a challenge is such a thing; one that may be added could be.
func TestSendWhatIsNoJSON(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	theirs.Close() // A frame that is sent all the same fails in another way.
	p := &peer{ctx: t.Context(), conn: ours}
	err := p.send(time.Minute, evidence.FrameChallenge, make(chan int))
	if kind := (*json.UnsupportedTypeError)(nil); !errors.As(err, &kind) {
		t.Errorf("error is %v", err)
	}
}
