//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/agent"
)

// A fake QEMU, for what a real one does too slowly or never: this test binary
// under another name. It answers the monitor, holds firmware in "guest memory",
// connects to the vTPM, and runs the real agent as its guest, so that a launch
// takes a tenth of a second, can be held at any point, and can go wrong in every
// way. Next to its binary lies fake.json, which says how.

// fakeSettings is what fake.json holds.
type fakeSettings struct {
	// Hold is where to stand still: the fake makes the file "held" beside its
	// binary, and goes on when there is a file "go".
	Hold string `json:"hold,omitempty"`
	// Mode is what goes wrong.
	Mode string `json:"mode,omitempty"`
}

// Points where a fake QEMU can be held, in their order.
var fakePoints = []string{"start", "measure", "boot", "attest", "activate"}

func init() { programs["fake-qemu"] = func() { os.Exit(fakeQEMU(os.Args[1:])) } }

func fakeQEMU(argv []string) int {
	self, err := os.Executable()
	f := &fakeMachine{dir: filepath.Dir(self)}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(filepath.Join(f.dir, "fake.json"))
	}
	if err == nil {
		err = json.Unmarshal(data, &f.set)
	}
	if err == nil {
		err = f.run(argv)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fake qemu:", err)
		return 1
	}
	return 0
}

type fakeMachine struct {
	dir string
	set fakeSettings

	argv     []string
	firmware []byte
	mon      net.Conn
	monMu    sync.Mutex
	svsm     net.Conn
	tpm      net.Conn
	control  net.Conn // of the TPM
	agents   net.Listener
	running  chan struct{}
	quit     chan struct{}
	quitOnce sync.Once
}

// hold stands still at a point if it was told to.
func (f *fakeMachine) hold(point string) {
	if f.set.Hold != point {
		return
	}
	_ = os.WriteFile(filepath.Join(f.dir, "held"), nil, 0o600)
	for {
		if _, err := os.Stat(filepath.Join(f.dir, "go")); err == nil {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (f *fakeMachine) run(argv []string) (err error) {
	f.argv = argv
	f.running, f.quit = make(chan struct{}), make(chan struct{})
	chardevs := map[string]string{}
	for i, a := range argv[:len(argv)-1] {
		switch a {
		case "-chardev":
			_, rest, _ := strings.Cut(argv[i+1], ",id=")
			id, rest, _ := strings.Cut(rest, ",")
			chardevs[id] = rest
		case "-bios":
			if f.firmware, err = os.ReadFile(argv[i+1]); err != nil {
				return err
			}
		}
	}
	if f.mon, err = inherited(chardevs["monitor"]); err != nil {
		return err
	}
	if f.svsm, err = inherited(chardevs["svsm"]); err != nil {
		return err
	}
	switch f.set.Mode {
	case "die":
		return errors.New("cannot set up guest memory 'pc.ram': Cannot allocate memory")
	case "no-greeting":
		for {
			time.Sleep(time.Hour)
		}
	case "greeting-garbage":
		_, err := f.mon.Write([]byte("\x00\xff{\"QMP\": [[[[ HTTP/1.1 200 OK\r\n\r\n"))
		if err == nil {
			for {
				time.Sleep(time.Hour)
			}
		}
		return err
	case "endless-line":
		for {
			if _, err := f.mon.Write(bytes.Repeat([]byte("a"), 1<<20)); err != nil {
				return nil
			}
		}
	}
	if path := value(chardevs["agent"], "path"); path != "" {
		if f.agents, err = net.Listen("unix", path); err != nil {
			return err
		}
		go f.guest()
		if f.set.Mode == "reboots" {
			go f.reboot()
		}
	}
	if err := f.connectTPM(value(chardevs["tpm"], "path")); err != nil {
		return err
	}
	f.hold("start")
	go f.monitor()
	<-f.quit
	return nil
}

// value reads an option from a key=value list.
func value(s, name string) string {
	for part := range strings.SplitSeq(s, ",") {
		if v, ok := strings.CutPrefix(part, name+"="); ok {
			return v
		}
	}
	return ""
}

// inherited makes a connection of "fd=N".
func inherited(s string) (net.Conn, error) {
	fd, err := strconv.Atoi(value(s, "fd"))
	if err != nil {
		return nil, fmt.Errorf("chardev %q: %w", s, err)
	}
	file := os.NewFile(uintptr(fd), s)
	defer file.Close()
	return net.FileConn(file)
}

// connectTPM does what -tpmdev emulator does: it hands over one end of the data
// channel and powers the TPM on.
func (f *fakeMachine) connectTPM(path string) error {
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "data"), os.NewFile(uintptr(fds[1]), "data")
	defer ours.Close()
	defer theirs.Close()
	if f.tpm, err = net.FileConn(ours); err != nil {
		return err
	}
	const setDataFD, initialise = 16, 2
	uc := c.(*net.UnixConn)
	f.control = c // lives as long as the machine
	if _, _, err := uc.WriteMsgUnix(binary.BigEndian.AppendUint32(nil, setDataFD), unix.UnixRights(int(theirs.Fd())), nil); err != nil {
		return err
	}
	if err := controlAnswer(c); err != nil {
		return err
	}
	if _, err := c.Write(append(binary.BigEndian.AppendUint32(nil, initialise), 0, 0, 0, 0)); err != nil {
		return err
	}
	return controlAnswer(c)
}

func controlAnswer(c net.Conn) error {
	var result [4]byte
	if _, err := io.ReadFull(c, result[:]); err != nil {
		return err
	}
	if n := binary.BigEndian.Uint32(result[:]); n != 0 {
		return fmt.Errorf("vTPM control: result %d", n)
	}
	return nil
}

func (f *fakeMachine) say(v any) {
	data, err := json.Marshal(v)
	if err != nil {
		return
	}
	f.monMu.Lock()
	defer f.monMu.Unlock()
	_, _ = f.mon.Write(append(data, '\n'))
}

func (f *fakeMachine) event(name string, data any) {
	f.say(map[string]any{"event": name, "data": data, "timestamp": map[string]int{"seconds": 1, "microseconds": 0}})
}

// arg is the value of an option.
func (f *fakeMachine) arg(option string) string {
	for i, a := range f.argv[:len(f.argv)-1] {
		if a == option {
			return f.argv[i+1]
		}
	}
	return ""
}

// property answers qom-get.
func (f *fakeMachine) property(path, name string) any {
	if path != "/machine" {
		return f.arg("-cpu") + "-x86_64-cpu"
	}
	switch name {
	case "smm":
		return "off"
	case "dump-guest-core":
		return f.set.Mode == "drift"
	case "confidential-guest-support":
		return ""
	case "firmware":
		return f.arg("-bios")
	}
	return f.arg("-" + name)
}

// monitor answers QMP.
func (f *fakeMachine) monitor() {
	defer f.end()
	f.say(map[string]any{"QMP": map[string]any{
		"version":      map[string]any{"qemu": map[string]int{"major": 10, "minor": 0, "micro": 2}, "package": "fake"},
		"capabilities": []string{},
	}})
	r := bufio.NewReader(f.mon)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		var c struct {
			Execute   string          `json:"execute"`
			ID        json.RawMessage `json:"id"`
			Arguments struct {
				Line     string `json:"command-line"`
				Val      uint64 `json:"val"`
				Size     uint64 `json:"size"`
				Filename string `json:"filename"`
				Path     string `json:"path"`
				Property string `json:"property"`
			} `json:"arguments"`
		}
		if err := json.Unmarshal(line, &c); err != nil {
			return
		}
		switch f.set.Mode {
		case "qmp-hang":
			if c.Execute != "qmp_capabilities" {
				continue
			}
		case "qmp-garbage":
			if c.Execute != "qmp_capabilities" {
				_, _ = f.mon.Write([]byte("}{]\x00\xfe\"return\"\n"))
				continue
			}
		case "qmp-flood":
			for range 2000 {
				f.event("RTC_CHANGE", map[string]any{"offset": 0, "qom-path": strings.Repeat("x", 200)})
			}
		}
		var result any = map[string]any{}
		switch c.Execute {
		case "query-status":
			status := "prelaunch"
			select {
			case <-f.running:
				status = "running"
			default:
			}
			result = map[string]any{"status": status, "running": status == "running"}
		case "query-cpus-fast":
			result = []map[string]any{{"cpu-index": 0, "thread-id": os.Getpid(), "qom-path": "/machine/unattached/device[0]"}}
		case "human-monitor-command":
			result = f.human(c.Arguments.Line)
		case "query-memory-size-summary":
			mib, _ := strconv.Atoi(strings.TrimSuffix(f.arg("-m"), "M"))
			result = map[string]any{"base-memory": mib << 20, "plugged-memory": 0}
		case "qom-get":
			result = f.property(c.Arguments.Path, c.Arguments.Property)
		case "qom-list":
			list := []map[string]string{{"name": "type", "type": "string"}}
			for i, a := range f.argv {
				if a == "-device" && c.Arguments.Path == "/machine/peripheral-anon" {
					kind, _, _ := strings.Cut(f.argv[i+1], ",")
					list = append(list, map[string]string{"name": fmt.Sprintf("device[%d]", i), "type": "child<" + kind + ">"})
				}
			}
			result = list
		case "pmemsave":
			f.hold("measure")
			if err := f.save(c.Arguments.Val, c.Arguments.Size, c.Arguments.Filename); err != nil {
				f.say(map[string]any{"id": c.ID, "error": map[string]string{"class": "GenericError", "desc": err.Error()}})
				continue
			}
		case "cont":
			f.say(map[string]any{"id": c.ID, "return": result})
			f.event("RESUME", map[string]any{})
			close(f.running)
			continue
		case "quit", "system_powerdown":
			if f.set.Mode == "ignores-quit" {
				for {
					time.Sleep(time.Hour)
				}
			}
			f.event("SHUTDOWN", map[string]any{"guest": c.Execute != "quit", "reason": "host-qmp-quit"})
			f.say(map[string]any{"id": c.ID, "return": result})
			return
		}
		f.say(map[string]any{"id": c.ID, "return": result})
	}
}

func (f *fakeMachine) end() { f.quitOnce.Do(func() { close(f.quit) }) }

// human answers the human monitor with what the simulated AMD-SP looks for.
func (f *fakeMachine) human(line string) string {
	switch line {
	case "info mtree -f":
		return fmt.Sprintf("FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n  %016x-00000000ffffffff (prio 0, rom): pc.bios\n", 1<<32-len(f.firmware))
	case "info registers -a":
		return "\nCPU#0\nEAX=00000000 EBX=00000000 ECX=00000000 EDX=00800f12\n" +
			"ESI=00000000 EDI=00000000 EBP=00000000 ESP=00000000\nEIP=0000fff0 EFL=00000002\n" +
			"CS =f000 ffff0000 0000ffff 00009b00\n"
	}
	return ""
}

// save writes guest memory to a file, the firmware ending at 4 GiB.
func (f *fakeMachine) save(gpa, size uint64, name string) error {
	from := uint64(1<<32 - len(f.firmware))
	if gpa < from || gpa+size > 1<<32 {
		return os.WriteFile(name, make([]byte, size), 0o600)
	}
	return os.WriteFile(name, f.firmware[gpa-from:][:size], 0o600)
}

// guest is the guest's agent: the real one, unless it is to do something else.
func (f *fakeMachine) guest() {
	var a *agent.Agent
	for {
		c, err := f.agents.Accept()
		if err != nil {
			return
		}
		<-f.running
		f.hold("boot")
		if f.misbehave(c) {
			continue
		}
		if a == nil {
			a, err = agent.New(agent.Options{
				Version: "fake", TPM: transport.FromReadWriter(f.tpm),
				Sources: []agent.Source{agent.SVSMPort(func() bool { return true }, func(context.Context) (net.Conn, error) { return &lasting{f.svsm}, nil })},
				BootID:  func() (string, error) { return fmt.Sprintf("fake-%d-%d", os.Getpid(), time.Now().UnixNano()), nil },
			})
			if err != nil {
				fmt.Fprintln(os.Stderr, "fake guest:", err)
				return
			}
		}
		// The challenge is held on its way, or the credential.
		_ = a.Serve(context.Background(), &heldConn{Conn: c, f: f})
	}
}

// lasting is a port: it stays open when an exchange ends.
type lasting struct{ net.Conn }

func (*lasting) Close() error { return nil }

// heldConn holds what the verifier sends: the first frame or the second.
type heldConn struct {
	net.Conn
	f      *fakeMachine
	frames int
	header []byte
	rest   uint32 // of the frame's payload
}

func (c *heldConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	for _, b := range p[:n] {
		if c.rest > 0 {
			c.rest--
			continue
		}
		if c.header = append(c.header, b); len(c.header) < 12 {
			continue
		}
		c.rest, c.header = binary.BigEndian.Uint32(c.header[8:]), nil
		c.frames++
		c.f.hold([]string{"attest", "activate", ""}[min(c.frames-1, 2)])
	}
	return n, err
}

// misbehave is what a hostile or broken agent does.
func (f *fakeMachine) misbehave(c net.Conn) bool {
	stays := func() bool {
		go func() {
			// The connection stays, as long as the other side wants it.
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}()
		return true
	}
	write := func(p []byte) bool { _, err := c.Write(p); return err == nil }
	hello := []byte("evtp\x01\x01\x00\x00\x00\x00\x00\x3e" + `{"agent_version":"x","boot_id":"y","sources":["svsm"]}        `)
	binary.BigEndian.PutUint32(hello[8:], uint32(len(hello)-12))
	switch f.set.Mode {
	case "agent-silent":
		return stays()
	case "agent-garbage":
		write([]byte("SSH-2.0-OpenSSH_9.2\r\n"))
		return stays()
	case "agent-huge":
		write([]byte("evtp\x01\x01\x00\x00\xff\xff\xff\xff"))
		return stays()
	case "agent-flood":
		for write(bytes.Repeat(hello, 1000)) {
		}
		return stays()
	case "agent-drip":
		for i := range hello {
			if !write(hello[i : i+1]) {
				break
			}
			time.Sleep(time.Second)
		}
		return stays()
	case "agent-mute": // says hello and nothing more
		write(hello)
		return stays()
	case "agent-leaves":
		write(hello)
		c.Close()
		return true
	case "guest-shutdown":
		f.event("SHUTDOWN", map[string]any{"guest": true, "reason": "guest-shutdown"})
		f.end()
		return stays()
	case "guest-panic":
		f.event("GUEST_PANICKED", map[string]any{"action": "pause"})
		return stays()
	case "guest-reset":
		write(hello)
		f.event("RESET", map[string]any{"guest": true, "reason": "guest-reset"})
		return stays()
	}
	return false
}

// reboot is what a guest does once there is a file "reboot": QEMU, which was told
// so, ends.
func (f *fakeMachine) reboot() {
	name := filepath.Join(f.dir, "reboot")
	for {
		if os.Remove(name) == nil {
			f.event("SHUTDOWN", map[string]any{"guest": true, "reason": "guest-reset"})
			f.end()
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}
