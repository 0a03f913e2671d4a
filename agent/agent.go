// Package agent is the guest's side of an attestation: it answers challenges
// with evidence, which is bytes, and never with a claim.
//
// The report comes from the SVSM through the kernel's configfs-tsm, from the NV
// index in which the ACSAC 2023 prototype's vTPM keeps it, or from the simulated
// platform's port; the quote, the EK and the AK come from the vTPM. The frames
// and messages are those of package [evidence].
//
// An agent trusts its peer no more than the peer trusts it: frames, time and
// connections are bounded, and the only thing that a peer can make the TPM do
// is to quote PCRs and to activate a credential for the agent's own AK.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/evtpm/evtpm/attest/evidence"
)

// Bounds on what a peer can make the agent do.
const (
	// maxRequest bounds a frame from the verifier: a challenge takes some 300
	// bytes, a credential for an RSA-4096 EK less than 2 KiB.
	maxRequest = 16 << 10
	// maxEventLog bounds the event log read from the kernel: firmware logs take
	// 20 to 64 KiB.
	maxEventLog = 256 << 10
	// maxConns bounds the connections that one listener serves at a time.
	maxConns = 8
)

// Options configures an agent.
type Options struct {
	// Version is what Hello says of the agent's version.
	Version string

	// TPM is the vTPM; required. The agent serialises its commands.
	TPM transport.TPM

	// Sources are where reports come from, best first; at least one.
	Sources []Source

	// BootID returns the guest kernel's boot identifier; required. [BootID] is
	// Linux's.
	BootID func() (string, error)

	// EventLog returns the firmware's event log, empty when there is none; nil
	// means none. [EventLog] is Linux's.
	EventLog func() ([]byte, error)

	// ReadTimeout bounds the time from the first byte of a request to its last;
	// zero means 5 s. WriteTimeout bounds the writing of an answer; zero means
	// 20 s.
	ReadTimeout, WriteTimeout time.Duration
}

// Agent answers challenges. It is safe for concurrent use; challenges are
// answered one at a time.
type Agent struct {
	o    Options
	tpm  *vtpm
	turn chan struct{} // holds a token while a request is being answered
}

// New makes an agent. It sends nothing to the TPM yet.
func New(o Options) (*Agent, error) {
	switch {
	case o.TPM == nil:
		return nil, errors.New("agent: no TPM")
	case len(o.Sources) == 0:
		return nil, errors.New("agent: no source of reports")
	case o.BootID == nil:
		return nil, errors.New("agent: no boot id")
	}
	if o.ReadTimeout == 0 {
		o.ReadTimeout = 5 * time.Second
	}
	if o.WriteTimeout == 0 {
		o.WriteTimeout = 20 * time.Second
	}
	return &Agent{o: o, tpm: &vtpm{tpm: o.TPM}, turn: make(chan struct{}, 1)}, nil
}

// Close flushes the agent's keys from the TPM.
func (a *Agent) Close() error {
	a.turn <- struct{}{}
	defer func() { <-a.turn }()
	return a.tpm.flush()
}

// Serve answers challenges on one connection until the peer closes it, breaks
// the protocol, or ctx ends; then it closes the connection. It returns nil
// after an orderly end.
func (a *Agent) Serve(ctx context.Context, conn net.Conn) error { return a.serve(ctx, conn, 0) }

func (a *Agent) serve(ctx context.Context, conn net.Conn, idle time.Duration) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	if err := a.hello(ctx, conn); err != nil {
		return err
	}
	s := session{agent: a}
	for {
		t, payload, err := a.readRequest(conn, idle)
		if err == nil && t == evidence.FrameHello {
			// A verifier that missed the first frame asks for it.
			if err := a.hello(ctx, conn); err != nil {
				return err
			}
			continue
		}
		if err == nil {
			var answer any
			var at evidence.FrameType
			if at, answer, err = s.answer(ctx, t, payload); err == nil {
				err = a.send(conn, at, answer)
			}
		}
		var failure *failureError
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &failure):
			// The peer learns why, and may ask again.
			if err := a.send(conn, evidence.FrameError, evidence.Failure{Message: failure.Error()}); err != nil {
				return err
			}
		case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe):
			return nil
		default:
			// What follows in the stream cannot be told from garbage any more.
			if errors.Is(err, evidence.ErrFrame) {
				_ = a.send(conn, evidence.FrameError, evidence.Failure{Message: err.Error()})
			}
			return err
		}
	}
}

// ListenOptions configures the serving of a listener.
type ListenOptions struct {
	// IdleTimeout closes a connection on which nothing has been asked for that
	// long; zero means never, as suits a virtio-serial port, whose host side may
	// stay open between challenges.
	IdleTimeout time.Duration

	// Report is told why a connection ended badly; nil means that nobody is.
	Report func(error)
}

// ServeListener serves every connection of l, at most eight at a time, until
// ctx ends or l fails; then it closes l and waits for the connections to end.
func (a *Agent) ServeListener(ctx context.Context, l net.Listener, o ListenOptions) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	var conns sync.WaitGroup
	defer conns.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	slots := make(chan struct{}, maxConns)
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if conn != nil {
				conn.Close()
			}
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		select {
		case slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		conns.Go(func() {
			defer func() { <-slots }()
			if err := a.serve(ctx, conn, o.IdleTimeout); err != nil && ctx.Err() == nil && o.Report != nil {
				o.Report(err)
			}
		})
	}
}

// hello sends the first frame of a connection.
func (a *Agent) hello(ctx context.Context, conn net.Conn) error {
	if err := a.take(ctx); err != nil {
		return err
	}
	boot, err := a.o.BootID()
	sources := bindings(a.o.Sources)
	a.release()
	if err != nil {
		return fmt.Errorf("boot id: %w", err)
	}
	return a.send(conn, evidence.FrameHello, evidence.Hello{AgentVersion: a.o.Version, BootID: boot, Sources: sources})
}

// take waits for the agent's turn.
func (a *Agent) take(ctx context.Context) error {
	select {
	case a.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *Agent) release() { <-a.turn }

// readRequest waits for a frame: idle for its first byte (zero: without end),
// then ReadTimeout for the rest.
func (a *Agent) readRequest(conn net.Conn, idle time.Duration) (evidence.FrameType, []byte, error) {
	var deadline time.Time
	if idle > 0 {
		deadline = time.Now().Add(idle)
	}
	if err := conn.SetReadDeadline(deadline); err != nil {
		return 0, nil, err
	}
	var first [1]byte
	if _, err := io.ReadFull(conn, first[:]); err != nil {
		return 0, nil, fmt.Errorf("wait for a request: %w", err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(a.o.ReadTimeout)); err != nil {
		return 0, nil, err
	}
	return evidence.ReadFrame(&prefixed{first: first[:], rest: conn}, maxRequest)
}

// prefixed gives back a byte that was read ahead.
type prefixed struct {
	first []byte
	rest  io.Reader
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.first) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	return p.rest.Read(b)
}

// send writes one frame within WriteTimeout.
func (a *Agent) send(conn net.Conn, t evidence.FrameType, message any) error {
	payload, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if err := conn.SetWriteDeadline(time.Now().Add(a.o.WriteTimeout)); err != nil {
		return err
	}
	if err := evidence.WriteFrame(conn, t, payload); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}
