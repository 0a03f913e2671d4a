package snpsim

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/attest/evidence"
)

// fakePower is a TPM that counts.
type fakePower struct {
	attached   []*net.UnixConn
	localities []uint8
	power      int
	cancels    int
}

func (f *fakePower) attach(c *net.UnixConn) error {
	f.attached = append(f.attached, c)
	if len(f.attached) > 1 {
		return errors.New("one is enough")
	}
	return nil
}
func (f *fakePower) initialise() error { f.power++; return nil }
func (f *fakePower) cancel() error     { f.cancels++; return nil }
func (f *fakePower) locality(l uint8) error {
	f.localities = append(f.localities, l)
	if l > 4 {
		return errors.New("no such locality")
	}
	return nil
}

// feed runs a server on one end of a connection, sends what a hostile peer does,
// and returns all that it answered.
func feed(t testing.TB, input []byte, files []*os.File, serve func(*net.UnixConn)) []byte {
	t.Helper()
	peer, file, err := socketPair("peer")
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	server, err := unixConn(file)
	if err != nil {
		t.Fatal(err)
	}
	var answers []byte
	var done sync.WaitGroup
	done.Go(func() { answers, _ = io.ReadAll(io.LimitReader(peer, 1<<20)) })
	done.Go(func() {
		defer server.Close()
		serve(server)
	})
	peer.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if len(files) > 0 && len(input) > 0 {
		// Descriptors come with the first bytes.
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		n, _, err := peer.WriteMsgUnix(input[:1], unix.UnixRights(fds...), nil)
		if err == nil {
			input = input[n:]
		}
	}
	peer.Write(input)
	peer.CloseWrite()
	done.Wait()
	return answers
}

func command(c controlCommand, parameters ...byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(c)), parameters...)
}

// FuzzControl is a QEMU that sends anything on the control channel.
func FuzzControl(f *testing.F) {
	start := bytes.Join([][]byte{
		command(cmdSetDataFD), command(cmdGetCapability), command(cmdStop), command(cmdSetBufferSize, 0, 0, 15, 128), command(cmdInit, 0, 0, 0, 0),
		command(cmdSetLocality, 3, 0, 0, 0), command(cmdGetTPMEstablished), command(cmdResetTPMEstablished, 0, 0, 0, 0), command(cmdCancelTPMCmd), command(cmdShutdown),
	}, nil)
	f.Add(start, uint8(1))
	f.Add(start, uint8(0))
	f.Add(start[4:], uint8(2))
	f.Add(command(12, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0), uint8(0)) // CMD_GET_STATEBLOB
	f.Add(command(cmdSetDataFD), uint8(8))
	f.Add([]byte{0, 0}, uint8(1))
	f.Fuzz(func(t *testing.T, input []byte, descriptors uint8) {
		var files []*os.File
		for range descriptors % 8 {
			_, theirs, err := socketPair("data")
			if err != nil {
				t.Fatal(err)
			}
			defer theirs.Close()
			files = append(files, theirs)
		}
		tpm := new(fakePower)
		answers := feed(t, input, files, func(c *net.UnixConn) { serveControl(c, tpm) })
		for _, c := range tpm.attached {
			c.Close()
		}
		// Every command takes 4 bytes or more, and is answered with 16 or less.
		if len(answers) > 4*len(input)+16 {
			t.Errorf("%d bytes in, %d bytes out", len(input), len(answers))
		}
		if len(tpm.attached) > 0 && descriptors%8 == 0 {
			t.Error("a data channel out of nothing")
		}
		if n := len(input) / 4; tpm.power+tpm.cancels+len(tpm.localities) > n {
			t.Errorf("%d commands did %+v", n, tpm)
		}
	})
}

// FuzzRelay is a guest that sends anything as TPM commands.
func FuzzRelay(f *testing.F) {
	clock := []byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x81}
	f.Add(clock)
	f.Add(append(bytes.Clone(clock), clock...))
	f.Add([]byte{0x80, 0x01, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01, 0x81})
	f.Add([]byte{0x80, 0x01, 0, 0, 0, 9, 0, 0, 0x01, 0x81})
	f.Fuzz(func(t *testing.T, input []byte) {
		var passed []byte
		answers := feed(t, input, nil, func(c *net.UnixConn) {
			relay(c, func(command []byte) []byte {
				if n := len(command); n < tpmMessageHeader || n > tpmBuffer || binary.BigEndian.Uint32(command[tpmMessageSize:]) != uint32(n) {
					t.Errorf("the TPM got %x", command)
				}
				passed = append(passed, command...)
				return tpmError(tpmRCFailure)
			})
		})
		if !bytes.HasPrefix(input, passed) {
			t.Errorf("the TPM got %x of %x", passed, input)
		}
		if len(answers)%tpmMessageHeader != 0 || len(answers) > len(input) {
			t.Errorf("%d bytes in, %d bytes out", len(input), len(answers))
		}
	})
}

// FuzzPort is a guest that sends anything to the SVSM's port.
func FuzzPort(f *testing.F) {
	frame := func(t evidence.FrameType, v any) []byte {
		payload, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		var b bytes.Buffer
		if err := evidence.WriteFrame(&b, t, payload); err != nil {
			f.Fatal(err)
		}
		return b.Bytes()
	}
	single := frame(evidence.FrameSVSMAttest, singleService())
	all := frame(evidence.FrameSVSMAttest, evidence.SVSMAttest{Nonce: testNonce})
	own := frame(evidence.FrameGuestReport, evidence.GuestReport{ReportData: testNonce, VMPL: 1})
	f.Add(single)
	f.Add(bytes.Join([][]byte{all, own, frame(evidence.FrameGuestReport, evidence.GuestReport{ReportData: testNonce})}, nil))
	f.Add(append([]byte("garbage"), single...))
	f.Add(single[:len(single)-1])

	dir, err := os.MkdirTemp("", "evtpm-")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { os.RemoveAll(dir) })
	chip, err := testRoot(f, filepath.Join(dir, "root"), "Genoa").Chip("")
	if err != nil {
		f.Fatal(err)
	}
	sp := launchedSP(f, chip, SPOptions{})
	ek := make([]byte, 316)
	f.Fuzz(func(t *testing.T, input []byte) {
		s := &SVSM{sp: sp, ek: ek, patience: time.Second}
		answers := bytes.NewReader(feed(t, input, nil, func(c *net.UnixConn) {
			if err := s.serve(c); err == nil {
				t.Error("serve ended without a reason")
			}
		}))
		for answers.Len() > 0 {
			ft, payload, err := evidence.ReadFrame(answers, 0)
			if err != nil {
				t.Fatalf("answer: %v", err)
			}
			switch ft {
			case evidence.FrameError:
			case evidence.FrameSVSMAttestResult:
				r := decode[evidence.SVSMAttestResult](t, ft, ft, payload)
				if len(r.Report) != ReportSize || r.Report[reportVMPL] != 0 || !bytes.HasSuffix(r.Manifest, ek[2:]) {
					t.Errorf("attestation %x", r.Report)
				}
			case evidence.FrameGuestReportReply:
				r := decode[evidence.GuestReportReply](t, ft, ft, payload)
				if vmpl := r.Report[reportVMPL]; vmpl < 1 || vmpl > 3 {
					t.Errorf("a guest got a report for VMPL %d", vmpl)
				}
			default:
				t.Errorf("answer of type %d", ft)
			}
		}
	})
}
