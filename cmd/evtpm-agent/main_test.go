//go:build linux

package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest/evidence"
)

func TestFlags(t *testing.T) {
	for args, want := range map[string]string{
		"-port= ":                     "nothing to serve on",
		"-port= extra":                `found argument "extra"`,
		"-port= -vsock=4294967296":    "expected at most 4294967295",
		"-nosuch":                     "flag provided but not defined",
		"-port= -tcp=256.0.0.1:x":     "nothing to serve on",
		"-port= -tcp=127.0.0.1:99999": "invalid port",
	} {
		err := serve(t.Context(), strings.Fields(args))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, expected an error with %q", args, err, want)
		}
	}
	for _, args := range []string{"-version", "-h"} {
		if err := serve(t.Context(), []string{args}); err != nil {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// A guest without a TPM says so to whoever asks.
func TestWithoutTPM(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serveAll(ctx, []net.Listener{l}, noTPM{fs.ErrNotExist}) }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if ft, _, err := evidence.ReadFrame(conn, 0); err != nil || ft != evidence.FrameHello {
		t.Fatalf("frame type %d, %v", ft, err)
	}
	if err := evidence.WriteFrame(conn, evidence.FrameActivate, []byte(`{"credential_blob":"","secret":""}`)); err != nil {
		t.Fatal(err)
	}
	if ft, payload, err := evidence.ReadFrame(conn, 0); err != nil || ft != evidence.FrameError {
		t.Errorf("frame type %d %q, %v", ft, payload, err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	if _, err := (noTPM{fs.ErrNotExist}).Send(nil); err == nil || !strings.Contains(err.Error(), "this guest has no TPM") {
		t.Errorf("no TPM: %v", err)
	}
}

func expired(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

func TestAwait(t *testing.T) {
	calls := 0
	err := await(t.Context(), time.Minute, func() error {
		if calls++; calls < 3 {
			return fs.ErrNotExist
		}
		return nil
	})
	if err != nil || calls != 3 {
		t.Errorf("%v after %d calls", err, calls)
	}
	if err := await(t.Context(), 0, func() error { return fs.ErrNotExist }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("never found: %v", err)
	}
	denied := errors.New("permission denied")
	calls = 0
	if err := await(t.Context(), time.Minute, func() error { calls++; return denied }); !errors.Is(err, denied) || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
	if err := await(expired(t), time.Minute, func() error { return fs.ErrNotExist }); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}
