package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/strictjson"
)

// FuzzServe feeds a connection with a peer's bytes. The agent must end, must
// not panic, and must answer nothing but Hello and failures, since its TPM
// answers nothing.
func FuzzServe(f *testing.F) {
	frame := func(t evidence.FrameType, m any) []byte {
		b, err := json.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		var buf bytes.Buffer
		if err := evidence.WriteFrame(&buf, t, b); err != nil {
			f.Fatal(err)
		}
		return buf.Bytes()
	}
	challenge := frame(evidence.FrameChallenge, evidence.Challenge{Nonce: nonce(1), PCRBank: "sha256", PCRs: []int{0, 9}})
	f.Add(challenge)
	f.Add(append(bytes.Clone(challenge), frame(evidence.FrameActivate, evidence.Activate{CredentialBlob: []byte{0, 1, 2}, Secret: []byte{0, 0}})...))
	f.Add(frame(evidence.FrameHello, struct{}{}))
	f.Add(challenge[:20])
	f.Add([]byte("evtp\x01\x02\x00\x00\xff\xff\xff\xff"))

	f.Fuzz(func(t *testing.T, stream []byte) {
		a, err := New(options(noTPM{}))
		if err != nil {
			t.Fatal(err)
		}
		here, there := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- a.Serve(context.Background(), there) }()
		go func() {
			here.Write(stream)
			// Answers to what was asked are still to be read.
			time.Sleep(time.Millisecond)
			here.Close()
		}()
		for {
			ft, payload, err := evidence.ReadFrame(here, 0)
			if err != nil {
				break
			}
			switch ft {
			case evidence.FrameHello:
			case evidence.FrameError:
				var failure evidence.Failure
				if err := json.Unmarshal(payload, &failure); err != nil || failure.Message == "" {
					t.Errorf("failure %q: %v", payload, err)
				}
			default:
				t.Errorf("frame type %d without a TPM: %q", ft, payload)
			}
		}
		here.Close()
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			t.Fatal("the agent does not end")
		}
	})
}

// FuzzRequest checks a request's payload on its own: what is accepted obeys
// the bounds that the TPM code relies on.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"nonce":"AA==","pcr_bank":"sha256","pcrs":[0,4,9]}`))
	f.Add([]byte(`{"nonce":"","binding":"nv","pcr_bank":"sha384","pcrs":[-1,24,1e3]}`))
	f.Add([]byte(`{"credential_blob":"AAA=","secret":"AAEC"}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		var c evidence.Challenge
		if strictjson.Unmarshal(payload, &c, maxRequest, "challenge") == nil && checkChallenge(&c) == nil {
			alg, err := bankAlg(c.PCRBank)
			if err != nil || len(c.Nonce) != 64 || len(c.PCRs) == 0 || len(c.PCRs) > 24 {
				t.Errorf("accepted %+v", c)
			}
			if got := selected(selection(alg, c.PCRs), alg); len(got) != len(c.PCRs) {
				t.Errorf("selection of %v is %v", c.PCRs, got)
			}
		}
		var m evidence.Activate
		if strictjson.Unmarshal(payload, &m, maxRequest, "activate") == nil {
			if b, err := unwrap2B("credential_blob", m.CredentialBlob); err == nil && len(b)+2 != len(m.CredentialBlob) {
				t.Errorf("%x unwrapped to %x", m.CredentialBlob, b)
			}
			v := vtpm{tpm: noTPM{}}
			if _, err := v.activate(m.CredentialBlob, m.Secret); err == nil {
				t.Error(errors.New("activated without a TPM"))
			}
		}
	})
}
