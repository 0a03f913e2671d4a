// Package libvirtdtest has a fake libvirt daemon for tests.
package libvirtdtest

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/digitalocean/go-libvirt"
)

// A Daemon is a libvirt daemon at the one seam that a connection is: it
// answers a few calls, with what a test wants.
type Daemon struct {
	Version uint64
	// Answer replaces the answer to a procedure: bytes that are sent as they are.
	Answer map[uint32][]byte
	// Refuse has a procedure refused with this text.
	Refuse map[uint32]string
	// Silent procedures are never answered, and Cut ones end the connection.
	Silent, Cut map[uint32]bool
}

// Sizes of a message (src/rpc/virnetprotocol.x).
const (
	lengthSize = 4
	headerSize = lengthSize + 24
)

// Procedures (src/remote/remote_protocol.x).
const (
	ProcOpen       = 1
	ProcAuthList   = 66
	ProcLibVersion = 157
)

// rpcReply encodes an answer; status 1 is an error.
func rpcReply(call []byte, status uint32, payload []byte) []byte {
	be := binary.BigEndian
	out := make([]byte, headerSize, headerSize+len(payload))
	be.PutUint32(out, uint32(headerSize+len(payload)))
	copy(out[4:16], call[4:16]) // program, version, procedure
	be.PutUint32(out[16:], 1)   // a reply
	copy(out[20:24], call[20:24])
	be.PutUint32(out[24:], status)
	return append(out, payload...)
}

// rpcError is libvirt's remote_error as go-libvirt reads it.
func rpcError(code libvirt.ErrorNumber, text string) []byte {
	be := binary.BigEndian
	out := be.AppendUint32(nil, uint32(code))
	out = be.AppendUint32(out, 10) // domain
	out = be.AppendUint32(out, 1)  // a message is there
	out = be.AppendUint32(out, uint32(len(text)))
	out = append(out, text...)
	out = append(out, make([]byte, (4-len(text)%4)%4)...)
	return be.AppendUint32(out, 2) // level
}

// Serve answers one connection.
func (f *Daemon) Serve(c net.Conn) {
	defer c.Close()
	for {
		head := make([]byte, lengthSize)
		if _, err := io.ReadFull(c, head); err != nil {
			return
		}
		call := append(head, make([]byte, binary.BigEndian.Uint32(head)-lengthSize)...)
		if _, err := io.ReadFull(c, call[lengthSize:]); err != nil {
			return
		}
		proc := binary.BigEndian.Uint32(call[12:])
		var reply []byte
		switch {
		case f.Silent[proc]:
			continue
		case f.Cut[proc]:
			return
		case f.Answer[proc] != nil:
			reply = f.Answer[proc]
		case f.Refuse[proc] != "":
			reply = rpcReply(call, 1, rpcError(libvirt.ErrOperationDenied, f.Refuse[proc]))
		case proc == ProcAuthList:
			reply = rpcReply(call, 0, binary.BigEndian.AppendUint32(nil, 0))
		case proc == ProcLibVersion:
			reply = rpcReply(call, 0, binary.BigEndian.AppendUint64(nil, f.Version))
		default:
			reply = rpcReply(call, 0, nil)
		}
		if _, err := c.Write(reply); err != nil {
			return
		}
	}
}

// Listen has it listen as the daemon of a session, and returns the runtime
// directory.
func (f *Daemon) Listen(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lv") // t.TempDir's paths are too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Mkdir(filepath.Join(dir, "libvirt"), 0o700); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "libvirt/libvirt-sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go f.Serve(c)
		}
	}()
	return dir
}
