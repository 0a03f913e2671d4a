package snpsim

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// TPM messages (TCG TPM 2.0 Library, part 1, Command/Response Structure): tag
// u16, size u32 of the whole, code u32, big-endian.
const (
	tpmMessageSize   = 2
	tpmMessageHeader = 10

	// tpmBuffer bounds a message. It is what swtpm is set to, and what QEMU's
	// tpm-crb can hold behind the registers of its 4 KiB page.
	tpmBuffer = 4096 - 128
)

const (
	// tpmTimeout bounds one TPM command: RSA keys take a second on a busy
	// machine.
	tpmTimeout = time.Minute
	// controlTimeout bounds one control command.
	controlTimeout = 10 * time.Second
)

// A swtpm is a TPM: a process with a control and a data channel that nobody else
// can reach, and its state.
type swtpm struct {
	cmd *exec.Cmd
	out outputTail

	controlMu sync.Mutex
	ctrl      *net.UnixConn

	dataMu sync.Mutex
	data   *net.UnixConn

	exited chan struct{} // closed when the process has ended
}

// startSwtpm starts a TPM, which has power but has not been started
// (TPM2_Startup).
//
// Fresh state lies in a memory file that has no name, so that it ends with the
// process. kept names a directory whose state is used, and kept, instead.
func startSwtpm(ctx context.Context, program, kept string, spawn func(*exec.Cmd) error) (_ *swtpm, err error) {
	t := &swtpm{exited: make(chan struct{})}
	var theirs []*os.File
	defer func() {
		closeAll(theirs)
		if err != nil {
			t.kill()
		}
	}()
	var file *os.File
	if t.ctrl, file, err = socketPair("swtpm control"); err != nil {
		return nil, err
	}
	theirs = append(theirs, file)
	state := "dir=" + kept
	if kept == "" {
		fd, err := unix.MemfdCreate("evtpm-vtpm", unix.MFD_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("memory file: %w", err)
		}
		theirs = append(theirs, os.NewFile(uintptr(fd), "vTPM state"))
		state = "backend-uri=file:///proc/self/fd/4"
	}
	// It ends with its control connection, which ends with this process.
	t.cmd = exec.Command(program, "socket", "--tpm2", "--terminate", "--ctrl", "type=unixio,clientfd=3", "--tpmstate", state)
	t.cmd.ExtraFiles = theirs
	t.cmd.Env = []string{}
	t.cmd.Stdout, t.cmd.Stderr = &t.out, &t.out
	if err := spawn(t.cmd); err != nil {
		t.cmd = nil
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	go func() {
		_ = t.cmd.Wait() // what it said is in out
		close(t.exited)
	}()
	// With these open here too, its end would not be noticed.
	closeAll(theirs)
	unhang := context.AfterFunc(ctx, func() { t.ctrl.Close() })
	err = t.power()
	if !unhang() {
		return nil, fmt.Errorf("start %s: %w", program, context.Cause(ctx))
	}
	if err != nil {
		return nil, t.explain(fmt.Errorf("start %s: %w", program, err))
	}
	return t, nil
}

// power connects the data channel and initialises the TPM.
func (t *swtpm) power() error {
	data, file, err := socketPair("swtpm data")
	if err != nil {
		return err
	}
	t.data = data
	_, err = t.control(cmdSetDataFD, nil, 0, file)
	file.Close()
	if err != nil {
		return err
	}
	size := binary.BigEndian.AppendUint32(nil, tpmBuffer)
	sizes, err := t.control(cmdSetBufferSize, size, 12, nil)
	if err != nil {
		return err
	}
	if got := binary.BigEndian.Uint32(sizes); got != tpmBuffer {
		return fmt.Errorf("%s: found %d bytes, expected %d", cmdSetBufferSize, got, tpmBuffer)
	}
	_, err = t.control(cmdInit, make([]byte, 4), 0, nil)
	return err
}

// control sends a control command, with a descriptor if file is not nil, and
// returns rest bytes of what follows the result.
func (t *swtpm) control(c controlCommand, body []byte, rest int, file *os.File) ([]byte, error) {
	t.controlMu.Lock()
	defer t.controlMu.Unlock()
	if err := t.ctrl.SetDeadline(time.Now().Add(controlTimeout)); err != nil {
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	request := append(binary.BigEndian.AppendUint32(nil, uint32(c)), body...)
	if _, _, err := t.ctrl.WriteMsgUnix(request, rights, nil); err != nil {
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	var result [4]byte
	if _, err := io.ReadFull(t.ctrl, result[:]); err != nil {
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	if r := controlResult(binary.BigEndian.Uint32(result[:])); r != resultSuccess {
		return nil, fmt.Errorf("%s: %w", c, r)
	}
	response := make([]byte, rest)
	if _, err := io.ReadFull(t.ctrl, response); err != nil {
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	return response, nil
}

// Send passes one command to the TPM and returns its response. It implements
// go-tpm's transport.TPM. After a failure the TPM is of no use any more, since a
// late response would be taken for another command's.
func (t *swtpm) Send(command []byte) ([]byte, error) {
	t.dataMu.Lock()
	defer t.dataMu.Unlock()
	err := t.data.SetDeadline(time.Now().Add(tpmTimeout))
	if err == nil {
		_, err = t.data.Write(command)
	}
	var response []byte
	if err == nil {
		response, err = readTPMMessage(t.data)
	}
	if err != nil {
		t.data.Close()
		return nil, t.explain(err)
	}
	return response, nil
}

// readTPMMessage reads one command or response.
func readTPMMessage(r io.Reader) ([]byte, error) {
	message := make([]byte, tpmMessageHeader, tpmBuffer)
	if _, err := io.ReadFull(r, message); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(message[tpmMessageSize:])
	if size < tpmMessageHeader || size > tpmBuffer {
		return nil, fmt.Errorf("TPM message: found size %d, expected %d to %d", size, tpmMessageHeader, tpmBuffer)
	}
	message = message[:size]
	_, err := io.ReadFull(r, message[tpmMessageHeader:])
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return message, err
}

// locality sets the locality of the commands that follow.
func (t *swtpm) locality(l uint8) error {
	_, err := t.control(cmdSetLocality, []byte{l, 0, 0, 0}, 0, nil)
	return err
}

// cancel asks the TPM to give up the command that it is working on.
func (t *swtpm) cancel() error {
	_, err := t.control(cmdCancelTPMCmd, nil, 0, nil)
	return err
}

// kill ends the process and, with it, the state. It may be called repeatedly.
func (t *swtpm) kill() {
	for _, c := range []*net.UnixConn{t.ctrl, t.data} {
		if c != nil {
			c.Close()
		}
	}
	if t.cmd != nil {
		_ = t.cmd.Process.Kill() // fails when it has ended, which is what is wanted
		<-t.exited
	}
}

// explain adds what swtpm said to an error.
func (t *swtpm) explain(err error) error {
	select {
	case <-t.exited:
		err = fmt.Errorf("%w (swtpm has ended: %v)", err, t.cmd.ProcessState)
	case <-time.After(50 * time.Millisecond): // its end may be on its way
	}
	if said := t.out.String(); said != "" {
		err = fmt.Errorf("%w; swtpm said: %s", err, said)
	}
	return err
}

// outputTail keeps the last of what a process prints.
type outputTail struct {
	mu  sync.Mutex
	buf []byte
}

const maxTail = 1024

func (o *outputTail) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf = append(o.buf, p...)
	if extra := len(o.buf) - maxTail; extra > 0 {
		o.buf = append(o.buf[:0], o.buf[extra:]...)
	}
	return len(p), nil
}

// String returns it on one line.
func (o *outputTail) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(strings.FieldsFunc(string(bytes.TrimSpace(o.buf)), func(r rune) bool { return r == '\n' }), "; ")
}

// socketPair makes two connected sockets: ours, and one for another process.
func socketPair(name string) (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair for %s: %w", name, err)
	}
	theirs := os.NewFile(uintptr(fds[1]), name)
	ours, err := unixConn(os.NewFile(uintptr(fds[0]), name))
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("socket pair for %s: %w", name, err)
	}
	return ours, theirs, nil
}

// unixConn makes a connection of a stream socket. It takes the file.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("found a %s socket, expected unix", conn.LocalAddr().Network())
	}
	return u, nil
}
