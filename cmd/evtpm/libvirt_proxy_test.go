//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// A libvirtProxy stands between evtpm and a real libvirt daemon. It can hold a
// message back, until something was done to one of those concerned, or do
// something to the conversation itself.
type libvirtProxy struct {
	daemon string
	at     rpcPoint
	mode   string // "": hold

	held chan struct{} // closed when the message is there
	free chan struct{} // closed when it may go on
	once sync.Once
}

// An rpcPoint is a message of libvirt's RPC.
type rpcPoint struct {
	program, procedure uint32
	reply              bool   // the answer, not the call
	holds              string // what is in it
}

// Programs and procedures (src/remote/remote_protocol.x, qemu_protocol.x).
const (
	remoteProgram = 0x20008086
	qemuProgram   = 0x20008087

	procOpen      = 1
	procCreateXML = 10
	procResume    = 28
	procMonitor   = 1 // of the QEMU program
)

// libvirtPoints are where a launch can be held, in their order. After "resume"
// comes "boot": the guest runs, and says nothing.
var libvirtPoints = []struct {
	name string
	at   rpcPoint
	vm   bool // there is a QEMU
}{
	{"connect", rpcPoint{program: remoteProgram, procedure: procOpen}, false},
	{"create", rpcPoint{program: remoteProgram, procedure: procCreateXML}, false},
	{"created", rpcPoint{program: remoteProgram, procedure: procCreateXML, reply: true}, true},
	{"check", rpcPoint{program: qemuProgram, procedure: procMonitor, holds: "qom-list"}, true},
	{"measure", rpcPoint{program: qemuProgram, procedure: procMonitor, holds: "pmemsave"}, true},
	{"resume", rpcPoint{program: remoteProgram, procedure: procResume}, true},
}

// proxy puts a proxy in the daemon's place.
func (l *libvirtRig) proxy(t *testing.T, at rpcPoint, mode string) *libvirtProxy {
	t.Helper()
	p := &libvirtProxy{daemon: l.daemonSocket(), at: at, mode: mode, held: make(chan struct{}), free: make(chan struct{})}
	l.runtime = filepath.Join(l.dir, "proxy")
	dir := filepath.Join(l.runtime, "libvirt")
	err := os.MkdirAll(dir, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "libvirt-sock"))
	if err == nil {
		err = os.Chmod(ln.Addr().String(), 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.release()
		ln.Close()
	})
	go func() {
		for {
			evtpm, err := ln.Accept()
			if err != nil {
				return
			}
			daemon, err := net.Dial("unix", p.daemon)
			if err != nil {
				evtpm.Close()
				continue
			}
			go p.relay(daemon, evtpm, false)
			go p.relay(evtpm, daemon, true)
		}
	}()
	return p
}

// release lets what is held go on.
func (p *libvirtProxy) release() { p.once.Do(func() { close(p.free) }) }

// relay passes messages on.
func (p *libvirtProxy) relay(to, from net.Conn, reply bool) {
	defer to.Close()
	defer from.Close()
	for {
		message, err := readRPC(from)
		if err != nil {
			return
		}
		if p.matches(message, reply) {
			switch p.mode {
			case "":
				select {
				case <-p.held: // held before
				default:
					close(p.held)
				}
				<-p.free
			case "rpc-drop":
				return
			case "rpc-mute":
				_, _ = io.Copy(io.Discard, from) // until the daemon hangs up
				return
			case "rpc-garbage":
				message = bytes.Repeat([]byte("\xff\x00HTTP/1.1"), 1000)
			case "rpc-empty":
				message = message[:28]
				binary.BigEndian.PutUint32(message, 28)
			case "rpc-half":
				message = message[:len(message)/2]
				_, _ = to.Write(message)
				return
			case "rpc-huge":
				binary.BigEndian.PutUint32(message, 1<<31)
			}
		}
		if _, err := to.Write(message); err != nil {
			return
		}
	}
}

// matches tells the message. Modes are about answers, whatever they hold.
func (p *libvirtProxy) matches(m []byte, reply bool) bool {
	be := binary.BigEndian
	return be.Uint32(m[4:]) == p.at.program && be.Uint32(m[12:]) == p.at.procedure &&
		reply == (p.at.reply || p.mode != "") && (p.mode != "" || bytes.Contains(m, []byte(p.at.holds))) && be.Uint32(m[16:]) < 2
}

// readRPC reads one message.
func readRPC(from io.Reader) ([]byte, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(from, head); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head)
	if n < 28 || n > 64<<20 {
		return nil, errors.New("no message of libvirt's")
	}
	message := append(head, make([]byte, n-4)...)
	_, err := io.ReadFull(from, message[4:])
	return message, err
}
