package machine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
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

// Dial connects to the agent. It tries again until ctx ends: what listens there
// comes with the guest.
func (a AgentAddress) Dial(ctx context.Context) (net.Conn, error) {
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
			return nil, fmt.Errorf("connect to the agent at %s: %w (last: %w)", a, context.Cause(ctx), err)
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
