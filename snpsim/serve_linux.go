package snpsim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/attest/evidence"
)

// quiet is how long a guest must send nothing before what follows counts as a
// new request.
const quiet = 200 * time.Millisecond

// Serve answers requests that the guest sends over the port org.evtpm.svsm.0,
// one at a time, until conn or ctx ends; then it closes conn. A guest that sends
// garbage, half a frame, or does not read its answers is a guest that is not
// served, for as long as it does so: the port outlives the programs in the guest
// that use it.
func (s *SVSM) Serve(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err := s.serve(conn)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return nil
	}
	return fmt.Errorf("simulated SVSM: port: %w", err)
}

func (s *SVSM) serve(conn net.Conn) error {
	for {
		t, payload, err := readRequest(conn, s.patience)
		switch {
		case errors.Is(err, evidence.ErrFrame), errors.Is(err, os.ErrDeadlineExceeded):
			// Where the next frame begins is not known until the guest pauses.
			if err := drain(conn); err != nil {
				return err
			}
		case err != nil:
			return err
		}
		var r any
		if err == nil {
			t, r, err = s.answer(t, payload)
		}
		if err != nil {
			t, r = evidence.FrameError, evidence.Failure{Message: err.Error()}
		}
		if err := respond(conn, s.patience, t, r); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

// answer answers one request of the guest's.
func (s *SVSM) answer(t evidence.FrameType, payload []byte) (evidence.FrameType, any, error) {
	s.mu.Lock()
	services := services{sp: s.sp, ek: s.ek, guestVMPL: VMPLGuest}
	over := s.over
	s.mu.Unlock()
	switch {
	case over != nil:
		return 0, nil, over
	case services.sp == nil:
		return 0, nil, errors.New("the vTPM is not ready: the VM has not been measured")
	}
	if s.o.Attack.GuestAtVMPL0 {
		services.guestVMPL = VMPLSVSM
	}
	return services.answer(t, payload)
}

// readRequest waits for a frame: without end for its first byte, then a while
// for the rest.
func readRequest(conn net.Conn, patience time.Duration) (evidence.FrameType, []byte, error) {
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return 0, nil, err
	}
	var first [1]byte
	if _, err := io.ReadFull(conn, first[:]); err != nil {
		return 0, nil, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return 0, nil, err
	}
	return evidence.ReadFrame(&afterFirst{first: first[:], rest: conn}, maxRequest)
}

// afterFirst gives back a byte that was read ahead.
type afterFirst struct {
	first []byte
	rest  io.Reader
}

func (a *afterFirst) Read(b []byte) (int, error) {
	if len(a.first) > 0 {
		n := copy(b, a.first)
		a.first = a.first[n:]
		return n, nil
	}
	return a.rest.Read(b)
}

// drain drops what comes until nothing has come for a while.
func drain(conn net.Conn) error {
	buf := make([]byte, 4096)
	for {
		if err := conn.SetReadDeadline(time.Now().Add(quiet)); err != nil {
			return err
		}
		if _, err := conn.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// respond sends an answer.
func respond(conn net.Conn, patience time.Duration, t evidence.FrameType, message any) error {
	payload, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if err := conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	return evidence.WriteFrame(conn, t, payload)
}
