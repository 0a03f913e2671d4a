package snpsim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A controlCommand is a command of swtpm's control protocol (swtpm's
// tpm_ioctl.h): its number as a big-endian u32, then its parameters. A response
// begins with a result, u32. QEMU waits for each response before it sends the
// next command.
type controlCommand uint32

// Commands that QEMU's -tpmdev emulator sends to every TPM. It asks first what
// there is (CMD_GET_CAPABILITY); of what moves a TPM's state out and in there is
// nothing.
const (
	cmdGetCapability       controlCommand = 1
	cmdInit                controlCommand = 2
	cmdShutdown            controlCommand = 3
	cmdGetTPMEstablished   controlCommand = 4
	cmdSetLocality         controlCommand = 5
	cmdCancelTPMCmd        controlCommand = 9
	cmdResetTPMEstablished controlCommand = 11
	cmdStop                controlCommand = 14
	cmdSetDataFD           controlCommand = 16
	cmdSetBufferSize       controlCommand = 17
)

// controlCommands says how many bytes of parameters follow each command, and
// which bit announces it among the capabilities.
var controlCommands = map[controlCommand]struct {
	name       string
	parameters int
	capability uint32
}{
	cmdGetCapability:       {"CMD_GET_CAPABILITY", 0, 0},
	cmdInit:                {"CMD_INIT", 4, 1 << 0},
	cmdShutdown:            {"CMD_SHUTDOWN", 0, 1 << 1},
	cmdGetTPMEstablished:   {"CMD_GET_TPMESTABLISHED", 0, 1 << 2},
	cmdSetLocality:         {"CMD_SET_LOCALITY", 4, 1 << 3},
	cmdCancelTPMCmd:        {"CMD_CANCEL_TPM_CMD", 0, 1 << 5},
	cmdResetTPMEstablished: {"CMD_RESET_TPMESTABLISHED", 4, 1 << 7},
	cmdStop:                {"CMD_STOP", 0, 1 << 10},
	cmdSetDataFD:           {"CMD_SET_DATAFD", 0, 1 << 12},
	cmdSetBufferSize:       {"CMD_SET_BUFFERSIZE", 4, 1 << 13},
}

// String returns swtpm's name of the command.
func (c controlCommand) String() string {
	if k, ok := controlCommands[c]; ok {
		return k.name
	}
	return fmt.Sprintf("control command %d", uint32(c))
}

// A controlResult is how a control command ended (TPM 1.2 result codes).
type controlResult uint32

const (
	resultSuccess    controlResult = 0
	resultFail       controlResult = 9  // TPM_FAIL
	resultBadOrdinal controlResult = 10 // TPM_BAD_ORDINAL
)

func (r controlResult) Error() string {
	return fmt.Sprintf("found result %d, expected 0", uint32(r))
}

// A tpmPower is what the control channel does to a TPM.
type tpmPower interface {
	// attach takes the guest's data channel.
	attach(*net.UnixConn) error
	// initialise is power on or a reset.
	initialise() error
	locality(uint8) error
	cancel() error
}

// frameTimeout bounds the time from the first byte of a command or a request to
// its last.
const frameTimeout = 10 * time.Second

// serveControl answers QEMU's control commands until it disconnects, which is
// no error, or breaks the protocol.
func serveControl(conn *net.UnixConn, tpm tpmPower) error {
	for {
		c, parameters, files, err := readControl(conn)
		if err != nil {
			closeAll(files)
			if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
				return nil
			}
			if errors.Is(err, errUnknownCommand) {
				_ = reply(conn, resultBadOrdinal) // the connection ends in any case
			}
			return fmt.Errorf("vTPM control channel: %w", err)
		}
		err = answerControl(conn, tpm, c, parameters, files)
		closeAll(files)
		if err != nil {
			return fmt.Errorf("vTPM control channel: %s: %w", c, err)
		}
	}
}

var errUnknownCommand = errors.New("unknown command")

// maxDescriptors bounds the descriptors taken from one message.
const maxDescriptors = 4

// readControl reads one command, and the descriptors that came with it, which
// are the caller's to close even with an error.
func readControl(conn *net.UnixConn) (c controlCommand, parameters []byte, files []*os.File, err error) {
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return 0, nil, nil, err
	}
	var number [4]byte
	oob := make([]byte, unix.CmsgSpace(4*maxDescriptors))
	n, oobn, flags, _, err := conn.ReadMsgUnix(number[:], oob)
	if n == 0 && err == nil {
		err = io.EOF
	}
	if err != nil {
		return 0, nil, nil, err
	}
	if files, err = receivedFiles(oob[:oobn]); err != nil {
		return 0, nil, files, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return 0, nil, files, fmt.Errorf("found more than %d descriptors", maxDescriptors)
	}
	if err := conn.SetReadDeadline(time.Now().Add(frameTimeout)); err != nil {
		return 0, nil, files, err
	}
	if _, err := io.ReadFull(conn, number[n:]); err != nil {
		return 0, nil, files, noEOF(err)
	}
	c = controlCommand(binary.BigEndian.Uint32(number[:]))
	known, ok := controlCommands[c]
	if !ok {
		return c, nil, files, fmt.Errorf("%w %d", errUnknownCommand, uint32(c))
	}
	parameters = make([]byte, known.parameters)
	_, err = io.ReadFull(conn, parameters)
	return c, parameters, files, noEOF(err)
}

// noEOF makes the end of a connection inside a command an error of its own.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// answerControl does what a command asks for. Its error ends the connection.
func answerControl(conn *net.UnixConn, tpm tpmPower, c controlCommand, parameters []byte, files []*os.File) error {
	if c != cmdSetDataFD && len(files) != 0 {
		return fmt.Errorf("found %d descriptors, expected none", len(files))
	}
	switch c {
	case cmdGetCapability:
		var bits uint32
		for _, k := range controlCommands {
			bits |= k.capability
		}
		return reply(conn, resultSuccess, bits)
	case cmdInit:
		return reply(conn, resultOf(tpm.initialise()))
	case cmdShutdown, cmdStop, cmdResetTPMEstablished:
		// The vTPM is the SVSM's: the host's device stops without it. The flag
		// of a dynamic launch is never set.
		return reply(conn, resultSuccess)
	case cmdGetTPMEstablished:
		return reply(conn, resultSuccess, 0)
	case cmdSetLocality:
		return reply(conn, resultOf(tpm.locality(parameters[0])))
	case cmdCancelTPMCmd:
		return reply(conn, resultOf(tpm.cancel()))
	case cmdSetBufferSize:
		// One size is all that there is: present, least, largest.
		return reply(conn, resultSuccess, tpmBuffer, tpmBuffer, tpmBuffer)
	case cmdSetDataFD:
		if len(files) != 1 {
			return fmt.Errorf("found %d descriptors, expected 1", len(files))
		}
		data, err := unixConn(files[0])
		if err != nil {
			return err
		}
		if err := tpm.attach(data); err != nil {
			data.Close()
			return err
		}
		return reply(conn, resultSuccess)
	}
	return fmt.Errorf("%w %d", errUnknownCommand, uint32(c))
}

// resultOf is how QEMU is told of an error.
func resultOf(err error) controlResult {
	if err != nil {
		return resultFail
	}
	return resultSuccess
}

func reply(conn *net.UnixConn, r controlResult, values ...uint32) error {
	response := binary.BigEndian.AppendUint32(nil, uint32(r))
	for _, v := range values {
		response = binary.BigEndian.AppendUint32(response, v)
	}
	if err := conn.SetWriteDeadline(time.Now().Add(controlTimeout)); err != nil {
		return err
	}
	_, err := conn.Write(response)
	return err
}

// receivedFiles takes the descriptors out of control data. Go receives them
// close-on-exec.
func receivedFiles(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "descriptor from QEMU"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Response codes of a TPM (TCG TPM 2.0 Library, part 2, TPM_RC).
const (
	tpmRCFailure = 0x101
	tpmRCRetry   = 0x922
)

// tpmError is a response that holds a response code alone.
func tpmError(code uint32) []byte {
	r := []byte{0x80, 0x01, 0, 0, 0, tpmMessageHeader} // TPM_ST_NO_SESSIONS
	return binary.BigEndian.AppendUint32(r, code)
}

// relay passes a guest's TPM commands on, one at a time, until its channel ends
// or breaks the protocol.
func relay(guest net.Conn, send func([]byte) []byte) {
	defer guest.Close()
	for {
		command, err := readTPMMessage(guest)
		if err != nil {
			return
		}
		if err := guest.SetWriteDeadline(time.Now().Add(tpmTimeout)); err != nil {
			return
		}
		if _, err := guest.Write(send(command)); err != nil {
			return
		}
	}
}
