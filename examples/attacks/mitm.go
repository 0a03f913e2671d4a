//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/evtpm/evtpm/attest/evidence"
)

// The malicious wire: a process that stands between the verifier and the guest
// agent, where QEMU's own socket would be. Everything it needs is what a host
// operator has anyway.

// A tamper changes evidence on its way to the verifier. It sees every evidence
// of its VM in turn, first is 0.
type tamper func(turn int, ev *evidence.Evidence) error

// tampers lists the wire attacks by name. arg is the file that some of them
// take their material from.
func tampers(arg string) map[string]tamper {
	var first evidence.Evidence
	return map[string]tamper{
		"report-garbage": func(_ int, ev *evidence.Evidence) error {
			_, err := rand.Read(ev.Report)
			return err
		},
		"report-from": func(_ int, ev *evidence.Evidence) error {
			other, err := readEvidence(arg)
			if err != nil {
				return err
			}
			ev.Report, ev.Certificates = other.Report, other.Certificates
			return nil
		},
		"quote-replayed": func(turn int, ev *evidence.Evidence) error {
			if turn == 0 {
				first = *ev
				return nil
			}
			ev.Quote, ev.QuoteSignature, ev.PCRs = first.Quote, first.QuoteSignature, first.PCRs
			return nil
		},
		"eventlog-changed": func(_ int, ev *evidence.Evidence) error {
			// The digest of the first separator, wherever it lies.
			digest := sha256.Sum256(make([]byte, 4))
			at := bytes.Index(ev.EventLog, digest[:])
			if at < 0 {
				return errors.New("found no separator in the guest's event log")
			}
			ev.EventLog[at] ^= 1
			return nil
		},
	}
}

func readEvidence(path string) (*evidence.Evidence, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	ev := new(evidence.Evidence)
	return ev, json.Unmarshal(data, ev)
}

// serveWire listens where the verifier expects the agent, and relays every
// connection to the real agent's socket, changing evidence by t (nil changes
// nothing). It returns when the process that started it is gone.
func serveWire(ctx context.Context, listen, real string, t tamper) error {
	ln, err := net.Listen("unix", listen)
	if err != nil {
		return err
	}
	defer ln.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	parent := os.Getppid()
	go func() {
		for os.Getppid() == parent && ctx.Err() == nil {
			time.Sleep(100 * time.Millisecond)
		}
		cancel()
		ln.Close()
	}()
	turn := 0
	for {
		verifier, err := ln.Accept()
		if err != nil {
			return nil
		}
		guest, err := dialUntil(ctx, real)
		if err != nil {
			verifier.Close()
			return err
		}
		relay(ctx, verifier, guest, func(ev *evidence.Evidence) error {
			if t == nil {
				return nil
			}
			defer func() { turn++ }()
			return t(turn, ev)
		})
	}
}

// dialUntil connects to a unix socket as soon as there is one.
func dialUntil(ctx context.Context, path string) (net.Conn, error) {
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// relay passes frames both ways until either side closes.
func relay(ctx context.Context, verifier, guest net.Conn, change func(*evidence.Evidence) error) {
	done := make(chan struct{}, 2)
	pass := func(dst, src net.Conn) {
		defer func() { done <- struct{}{} }()
		for {
			t, payload, err := evidence.ReadFrame(src, 0)
			if err != nil {
				return
			}
			if t == evidence.FrameEvidence {
				if payload, err = rewrite(payload, change); err != nil {
					fmt.Fprintln(os.Stderr, "attack:", err)
					return
				}
			}
			if evidence.WriteFrame(dst, t, payload) != nil {
				return
			}
		}
	}
	go pass(verifier, guest)
	go pass(guest, verifier)
	select {
	case <-done:
	case <-ctx.Done():
	}
	verifier.Close()
	guest.Close()
}

func rewrite(payload []byte, change func(*evidence.Evidence) error) ([]byte, error) {
	var ev evidence.Evidence
	if err := json.Unmarshal(payload, &ev); err != nil {
		return nil, err
	}
	if err := change(&ev); err != nil {
		return nil, err
	}
	return json.Marshal(&ev)
}
