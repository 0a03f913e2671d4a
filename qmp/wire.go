package qmp

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// ErrTooLong is wrapped by the error that ends a connection on which a message
// is longer than [MaxMessage].
var ErrTooLong = errors.New("message too long")

func newReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, 64<<10) }

// readMessage reads one message: QEMU ends each with a line feed and puts none
// inside. Empty lines are passed over. The result is the caller's. Memory grows
// with what has arrived, up to MaxMessage.
func readMessage(r *bufio.Reader) ([]byte, error) {
	var whole []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(whole)+len(part) > MaxMessage {
			return nil, fmt.Errorf("%w: over %d bytes", ErrTooLong, MaxMessage)
		}
		whole = append(whole, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && len(bytes.TrimSpace(whole)) > 0:
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		}
		if whole = bytes.TrimSpace(whole); len(whole) > 0 {
			return whole, nil
		}
	}
}
