//go:build !linux

package machine

import (
	"context"
	"errors"
	"fmt"
	"net"
)

func dialVsock(context.Context, uint32, uint32) (net.Conn, error) {
	return nil, fmt.Errorf("vsock: %w on this system", errors.ErrUnsupported)
}
