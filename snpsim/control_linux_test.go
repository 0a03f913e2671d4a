package snpsim

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What QEMU must not do on the control channel ends the connection, and is never
// passed on.
func TestControlRefused(t *testing.T) {
	pipe, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer w.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	tcpFile, err := tcp.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer tcpFile.Close()
	socket := func() *os.File {
		_, theirs, err := socketPair("data")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { theirs.Close() })
		return theirs
	}
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	for name, c := range map[string]struct {
		input  []byte
		files  []*os.File
		want   string
		answer []byte
	}{
		"no descriptor":              {command(cmdSetDataFD), nil, "CMD_SET_DATAFD: found 0 descriptors, expected 1", nil},
		"two descriptors":            {command(cmdSetDataFD), []*os.File{socket(), socket()}, "found 2 descriptors, expected 1", nil},
		"too many descriptors":       {command(cmdSetDataFD), []*os.File{pipe, pipe, pipe, pipe, pipe}, "more than 4 descriptors", nil},
		"a pipe":                     {command(cmdSetDataFD), []*os.File{pipe}, "non-socket", nil},
		"a TCP socket":               {command(cmdSetDataFD), []*os.File{tcpFile}, "found a tcp socket, expected unix", nil},
		"descriptor with CMD_INIT":   {command(cmdInit, 0, 0, 0, 0), []*os.File{pipe}, "CMD_INIT: found 1 descriptors, expected none", nil},
		"take the state out":         {command(12, 0, 0, 0, 1), nil, "unknown command 12", []byte{0, 0, 0, 10}},
		"put a state in":             {command(13, 0, 0, 0, 1), nil, "unknown command 13", []byte{0, 0, 0, 10}},
		"store the volatile state":   {command(10), nil, "unknown command 10", []byte{0, 0, 0, 10}},
		"measure a dynamic launch":   {command(6), nil, "unknown command 6", []byte{0, 0, 0, 10}},
		"end inside a number":        {[]byte{0, 0, 0}, nil, "unexpected EOF", nil},
		"end inside its parameters":  {command(cmdInit, 0), nil, "unexpected EOF", nil},
		"two bytes and a descriptor": {[]byte{0, 0}, []*os.File{pipe}, "unexpected EOF", nil},
	} {
		t.Run(name, func(t *testing.T) {
			before := descriptors()
			tpm := new(fakePower)
			var err error
			answer := feed(t, c.input, c.files, func(conn *net.UnixConn) { err = serveControl(conn, tpm) })
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("found %v, expected %q", err, c.want)
			}
			if !bytes.Equal(answer, c.answer) {
				t.Errorf("answered %x, expected %x", answer, c.answer)
			}
			if tpm.power+len(tpm.attached)+tpm.cancels+len(tpm.localities) != 0 {
				t.Errorf("the TPM did %+v", tpm)
			}
			if after := descriptors(); after > before {
				t.Errorf("%d descriptors are left open", after-before)
			}
		})
	}
}

func TestControlSecondDataChannel(t *testing.T) {
	s := startSVSM(t, SVSMOptions{})
	f := connect(t, s).attach()
	_, theirs, err := socketPair("data")
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	if _, _, err := f.ctrl.WriteMsgUnix(command(cmdSetDataFD), unix.UnixRights(int(theirs.Fd())), nil); err != nil {
		t.Fatal(err)
	}
	f.ctrl.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := f.ctrl.Read(make([]byte, 4)); err == nil {
		t.Errorf("answered with %d bytes, expected the end of the connection", n)
	}
}

// TestFakeSwtpm is no test by itself: it is the program in place of swtpm in
// TestBadSwtpm. The name of the fault is the last argument.
func TestFakeSwtpm(t *testing.T) {
	fault := ""
	for i, a := range os.Args {
		if a == "--" && i+1 < len(os.Args) {
			fault = os.Args[i+1]
		}
	}
	if fault == "" {
		return
	}
	ctrl, err := unixConn(os.NewFile(3, "control"))
	if err != nil {
		t.Fatal(err)
	}
	var data *net.UnixConn
	for {
		c, parameters, files, err := readControl(ctrl)
		if err != nil {
			os.Exit(0)
		}
		result, values := resultSuccess, []uint32(nil)
		switch c {
		case cmdSetDataFD:
			if data, err = unixConn(files[0]); err != nil {
				t.Fatal(err)
			}
			go fakeTPM(data, fault)
		case cmdSetBufferSize:
			size := binary.BigEndian.Uint32(parameters)
			if fault == "small buffer" {
				size--
			}
			values = []uint32{size, size, size}
		case cmdInit:
			if fault == "refuses" {
				result = resultFail
			}
		}
		if fault == "half an answer" {
			ctrl.Write([]byte{0, 0})
			os.Exit(0)
		}
		if err := reply(ctrl, result, values...); err != nil {
			t.Fatal(err)
		}
	}
}

// fakeTPM answers the first command with the fault.
func fakeTPM(data *net.UnixConn, fault string) {
	if _, err := readTPMMessage(data); err != nil {
		return
	}
	switch fault {
	case "garbage":
		data.Write([]byte("garbage garbage"))
	case "short answer":
		data.Write([]byte{0x80, 0x01, 0, 0, 0, 20, 0, 0, 0, 0})
		data.Close()
	case "error":
		data.Write(tpmError(tpmRCFailure))
	}
	io.Copy(io.Discard, data)
}

func TestBadSwtpm(t *testing.T) {
	dir := shortDir(t)
	for fault, c := range map[string]struct{ start, provision string }{
		"refuses":        {start: "CMD_INIT: found result 9, expected 0"},
		"small buffer":   {start: "CMD_SET_BUFFERSIZE: found 3967 bytes, expected 3968"},
		"half an answer": {start: "EOF"},
		"garbage":        {provision: "TPM message: found size"},
		"short answer":   {provision: "TPM2_Startup"},
		"error":          {provision: "TPM_RC_FAILURE"},
	} {
		t.Run(fault, func(t *testing.T) {
			name := strings.ReplaceAll(fault, " ", "-")
			path := script(t, dir, name, fmt.Sprintf("exec %s -test.run='^TestFakeSwtpm$' -- '%s'", os.Args[0], fault))
			sub := filepath.Join(dir, "d-"+name)
			if err := os.Mkdir(sub, 0o700); err != nil {
				t.Fatal(err)
			}
			s, err := StartSVSM(context.Background(), SVSMOptions{Dir: sub, Swtpm: path})
			if c.start != "" {
				if err == nil || !strings.Contains(err.Error(), c.start) {
					t.Fatalf("start: found %v, expected %q", err, c.start)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			err = s.Provision(context.Background(), launchedSP(t, testChip(t, "Genoa"), SPOptions{}))
			if err == nil || !strings.Contains(err.Error(), c.provision) {
				t.Fatalf("provision: found %v, expected %q", err, c.provision)
			}
		})
	}
}

// A swtpm that is stopped does not keep an SVSM from its end.
func TestCloseOfAStoppedSwtpm(t *testing.T) {
	s, _ := provisioned(t, SVSMOptions{})
	pid := s.Pid()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second || !gone(pid) {
		t.Errorf("Close took %v", took)
	}
}

// Starts that fail leave nothing behind.
func TestFailedStartsLeaveNothing(t *testing.T) {
	dir := shortDir(t)
	ends := script(t, dir, "ends", "exit 1")
	count := func() string {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return strconv.Itoa(len(fds)) + " descriptors, " + strconv.Itoa(len(files)) + " files"
	}
	start := func() {
		if s, err := StartSVSM(context.Background(), SVSMOptions{Dir: dir, Swtpm: ends}); err == nil {
			s.Close()
			t.Fatal("it started")
		}
	}
	start()
	before := count()
	for range 20 {
		start()
	}
	if after := count(); after != before {
		t.Errorf("%s before, %s after", before, after)
	}
}
