package attest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/strictjson"
)

const (
	// How long an agent that says nothing is waited for before it is asked for
	// Hello: at first, and at most. Each wait is ten times the last: every question
	// of a boot is answered, and the answers take the guest some milliseconds each.
	askAfter = 50 * time.Millisecond
	askMost  = 30 * time.Second

	// frameTime bounds the time from the first byte of Hello to its last.
	frameTime = 30 * time.Second
)

// Greet waits for Hello of the agent at the other end of a connection, until ctx
// ends. An agent greets whoever comes. But through a virtio-serial port it may not
// see that one verifier left and another came; so an agent that says nothing is
// asked. Nobody may be there to hear it: the guest boots, or its firmware reads
// the port. So it is asked again.
//
// Whoever waits for a guest's boot greets first, and gives Hello to [Challenge].
// The deadline of the connection is left as Challenge leaves it.
func Greet(ctx context.Context, conn net.Conn) (*evidence.Hello, error) {
	p, done := newPeer(ctx, conn)
	defer done()
	return p.greet(longest)
}

// longest is the time of a wait that only the context ends.
const longest = 1<<63 - 1

func (p *peer) greet(within time.Duration) (*evidence.Hello, error) {
	began := time.Now()
	strays := 0
	for wait := askAfter; ; {
		left := within - time.Since(began)
		first, err := p.firstByte(min(wait, left))
		if errors.Is(err, os.ErrDeadlineExceeded) && wait < left {
			if err := p.ask(wait); err != nil {
				return nil, err
			}
			wait = min(10*wait, askMost)
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := p.deadline(min(frameTime, left)); err != nil {
			return nil, err
		}
		t, payload, err := evidence.ReadFrame(io.MultiReader(bytes.NewReader(first), p.conn), 0)
		if err != nil {
			return nil, p.because(err)
		}
		if t == evidence.FrameHello {
			hello := new(evidence.Hello)
			if err := strictjson.Unmarshal(payload, hello, evidence.MaxPayload, "hello"); err != nil {
				return nil, err
			}
			return hello, nil
		}
		// What answers an earlier conversation may still lie in the port.
		if strays++; strays == maxStrayFrames {
			return nil, fmt.Errorf("%w: found %d frames, none of type %d", evidence.ErrFrame, strays, evidence.FrameHello)
		}
	}
}

// firstByte waits for the first byte of a frame.
func (p *peer) firstByte(wait time.Duration) ([]byte, error) {
	if err := p.deadline(wait); err != nil {
		return nil, err
	}
	first := make([]byte, 1)
	_, err := io.ReadFull(p.conn, first)
	return first, p.because(err)
}

// ask asks for Hello. That nobody takes it is no error: the agent may be about to
// greet. Of half a question it says that it is no frame, and greets again.
func (p *peer) ask(wait time.Duration) error {
	if err := p.deadline(wait); err != nil {
		return err
	}
	err := evidence.WriteFrame(p.conn, evidence.FrameHello, nil)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	return p.because(err)
}
