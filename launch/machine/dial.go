package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/evidence"
)

// An AgentAddress says where a guest agent is reached. Its text form is
// unix:PATH, tcp:HOST:PORT or vsock:CID:PORT.
type AgentAddress struct {
	Network string // "unix", "tcp" or "vsock"
	Address string
}

// ParseAgentAddress reads the text form.
func ParseAgentAddress(text string) (AgentAddress, error) {
	network, address, ok := strings.Cut(text, ":")
	a := AgentAddress{Network: network, Address: address}
	switch {
	case !ok || address == "":
	case network == "unix":
		return a, nil
	case network == "tcp":
		if host, port, err := net.SplitHostPort(address); err == nil && host != "" && port != "" {
			return a, nil
		}
	case network == "vsock":
		if _, _, err := a.vsock(); err == nil {
			return a, nil
		}
	}
	return AgentAddress{}, fmt.Errorf("agent address %q: expected unix:PATH, tcp:HOST:PORT or vsock:CID:PORT", text)
}

// String returns the text form.
func (a AgentAddress) String() string { return a.Network + ":" + a.Address }

// vsock splits the address of a vsock.
func (a AgentAddress) vsock() (cid, port uint32, err error) {
	c, p, _ := strings.Cut(a.Address, ":")
	c64, err1 := strconv.ParseUint(c, 10, 32)
	p64, err2 := strconv.ParseUint(p, 10, 32)
	return uint32(c64), uint32(p64), errors.Join(err1, err2)
}

const (
	// How long an agent may say nothing before it is connected to anew: at first,
	// and at most. Each wait is twice the last.
	silentAfter = 5 * time.Second
	silentMost  = 30 * time.Second

	// dialAgain is the pause before a new connection where one was closed.
	dialAgain = 100 * time.Millisecond
)

// errNoHello ends the wait for an agent over one connection.
var errNoHello = errors.New("the agent says nothing")

// Greet connects to the agent and waits for its Hello, until ctx ends: what
// answers there comes with the guest.
//
// It connects again where that is what helps. Who accepts may be a forwarder, which
// hangs up while the agent does not listen. And QEMU may hold back what a guest
// writes to a virtio-serial port, if it wrote when the last verifier had just left,
// until another leaves.
func (a AgentAddress) Greet(ctx context.Context) (net.Conn, *evidence.Hello, error) {
	for wait := silentAfter; ; {
		conn, err := a.dial(ctx)
		if err != nil {
			return nil, nil, err
		}
		try, cancel := context.WithTimeoutCause(ctx, wait, errNoHello)
		hello, err := attest.Greet(try, conn)
		cancel()
		if err == nil {
			return conn, hello, nil
		}
		err = errors.Join(fmt.Errorf("wait for the guest's agent: %w", err), conn.Close())
		if ctx.Err() != nil || !worthAgain(err) {
			return nil, nil, err
		}
		if errors.Is(err, errNoHello) {
			wait = min(2*wait, silentMost)
		}
		select {
		case <-ctx.Done():
			return nil, nil, ended(ctx, err)
		case <-time.After(dialAgain):
		}
	}
}

// ended is why ctx ended. What failed last is told, and is not the reason.
func ended(ctx context.Context, last error) error {
	return fmt.Errorf("%w (last: %s)", context.Cause(ctx), last.Error())
}

// worthAgain says whether another connection may do what this one did not.
func worthAgain(err error) bool {
	return slices.ContainsFunc([]error{errNoHello, io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE},
		func(e error) bool { return errors.Is(err, e) })
}

// dial connects to the agent. It tries again until ctx ends.
func (a AgentAddress) dial(ctx context.Context) (net.Conn, error) {
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 250*time.Millisecond) {
		conn, err := a.dialOnce(ctx)
		if err == nil {
			return conn, nil
		}
		if errors.Is(err, errors.ErrUnsupported) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to the agent at %s: %w", a, ended(ctx, err))
		case <-time.After(wait):
		}
	}
}

func (a AgentAddress) dialOnce(ctx context.Context) (net.Conn, error) {
	if a.Network == "vsock" {
		cid, port, err := a.vsock()
		if err != nil {
			return nil, err
		}
		return dialVsock(ctx, cid, port)
	}
	return new(net.Dialer).DialContext(ctx, a.Network, a.Address)
}
