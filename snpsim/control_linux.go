package snpsim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// swtpm's control protocol (swtpm's tpm_ioctl.h): a command is its number as a
// big-endian u32, then its parameters; a response begins with a result, u32, 0
// for success. QEMU waits for each response before it sends the next command.
const (
	ctrlInit      = 2
	ctrlShutdown  = 3
	ctrlSetDataFD = 16

	ctrlSuccess = 0
	ctrlFail    = 9 // TPM_FAIL

	// maxControl bounds a control command: parameters are a few bytes; only
	// state blobs (migration) are longer, and are refused.
	maxControl = 4096
	maxCommand = 19 // CMD_LOCK_STORAGE
)

// Commands that QEMU sends in a VM's life and that an ephemeral vTPM must not
// follow: they take its state out, or put another in.
var refusedControl = map[uint32]string{
	10: "CMD_STORE_VOLATILE",
	12: "CMD_GET_STATEBLOB",
	13: "CMD_SET_STATEBLOB",
}

// control stands between QEMU and swtpm. Control commands pass through, with two
// exceptions: the data channel that QEMU offers stays here, so that TPM commands
// pass through the SVSM; and once the vTPM has been provisioned, initialising it
// again ends its life.
type control struct {
	qemu  *net.UnixConn
	swtpm *net.UnixConn
	tpm   *channel

	mu          sync.Mutex
	provisioned bool
	inited      chan struct{} // closed at the first CMD_INIT that succeeded
	onReset     func()
}

// run serves QEMU until it disconnects. It returns nil when QEMU did.
func (c *control) run() error {
	buf := make([]byte, maxControl)
	oob := make([]byte, syscall.CmsgSpace(4*4))
	for {
		n, oobn, _, _, err := c.qemu.ReadMsgUnix(buf, oob)
		if errors.Is(err, io.EOF) || n == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		files, err := receivedFiles(oob[:oobn])
		if err != nil {
			return err
		}
		if err := c.command(buf[:n], files); err != nil {
			return err
		}
	}
}

// command handles one command of QEMU's, and answers it.
func (c *control) command(request []byte, files []*os.File) error {
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if len(request) < 4 {
		return fmt.Errorf("vTPM control: found a command of %d bytes, expected at least 4", len(request))
	}
	number := binary.BigEndian.Uint32(request)
	switch name, refused := refusedControl[number]; {
	case refused:
		return c.answer(ctrlFail, fmt.Errorf("vTPM control: %s refused: the vTPM is ephemeral", name))
	case number == 0 || number > maxCommand:
		return fmt.Errorf("vTPM control: unknown command %d", number)
	case number == ctrlSetDataFD:
		if len(files) != 1 {
			return fmt.Errorf("vTPM control: CMD_SET_DATAFD with %d descriptors, expected 1", len(files))
		}
		conn, err := net.FileConn(files[0])
		if err != nil {
			return fmt.Errorf("vTPM control: data channel: %w", err)
		}
		go c.relay(conn)
		return c.answer(ctrlSuccess, nil)
	case number == ctrlInit && c.ended():
		return c.answer(ctrlFail, nil)
	}
	result, err := c.forward(request)
	if err == nil && number == ctrlInit && result == ctrlSuccess {
		c.mu.Lock()
		select {
		case <-c.inited:
		default:
			close(c.inited)
		}
		c.mu.Unlock()
	}
	return err
}

// ended says whether the vTPM has been provisioned, so that initialising it
// again is a guest's reset; it tells the owner.
func (c *control) ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.provisioned && c.onReset != nil {
		go c.onReset()
	}
	return c.provisioned
}

func (c *control) answer(result uint32, then error) error {
	_, err := c.qemu.Write(binary.BigEndian.AppendUint32(nil, result))
	return errors.Join(then, err)
}

// forward passes a command to swtpm and its response, which comes in one piece,
// to QEMU.
func (c *control) forward(request []byte) (result uint32, err error) {
	if err := c.swtpm.SetDeadline(time.Now().Add(tpmTimeout)); err != nil {
		return 0, err
	}
	if _, err := c.swtpm.Write(request); err != nil {
		return 0, fmt.Errorf("vTPM control: %w", err)
	}
	buf := make([]byte, maxControl)
	n, err := c.swtpm.Read(buf)
	if err != nil {
		return 0, fmt.Errorf("vTPM control: response: %w", err)
	}
	if n < 4 {
		return 0, fmt.Errorf("vTPM control: found a response of %d bytes, expected at least 4", n)
	}
	if _, err := c.qemu.Write(buf[:n]); err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint32(buf), nil
}

// relay passes the guest's TPM commands on, one at a time.
func (c *control) relay(guest net.Conn) {
	defer guest.Close()
	for {
		command, err := readTPMMessage(guest)
		if err != nil {
			return
		}
		response, err := c.tpm.Send(command)
		if err != nil {
			return
		}
		if _, err := guest.Write(response); err != nil {
			return
		}
	}
}

// receivedFiles takes descriptors out of control data.
func receivedFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := syscall.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			syscall.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "descriptor from QEMU"))
		}
	}
	return files, nil
}

// sendDataFD gives swtpm the other end of the SVSM's data channel.
func sendDataFD(swtpm *net.UnixConn, file *os.File) error {
	if err := swtpm.SetDeadline(time.Now().Add(tpmTimeout)); err != nil {
		return err
	}
	request := binary.BigEndian.AppendUint32(nil, ctrlSetDataFD)
	if _, _, err := swtpm.WriteMsgUnix(request, syscall.UnixRights(int(file.Fd())), nil); err != nil {
		return err
	}
	var response [4]byte
	if _, err := io.ReadFull(swtpm, response[:]); err != nil {
		return err
	}
	if result := binary.BigEndian.Uint32(response[:]); result != ctrlSuccess {
		return fmt.Errorf("CMD_SET_DATAFD: swtpm answers %d, expected 0", result)
	}
	return nil
}

// socketPair makes two connected unix stream sockets: ours, and a file for
// another process.
func socketPair(name string) (*net.UnixConn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}
