// Command benchlaunch measures what a launch costs beyond the boot of the same
// VM: it starts the VM of a spec in turn by evtpm launch, to the verdict, and by
// QEMU alone, to the guest agent's first byte.
//
//	go run ./scripts/benchlaunch [-n RUNS] [-evtpm PROGRAM] SPEC
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	runs := flag.Int("n", 5, "runs of each")
	evtpm := flag.String("evtpm", "bin/evtpm", "the program to measure")
	flag.Parse()
	if flag.NArg() != 1 || *runs < 1 {
		fmt.Fprintln(os.Stderr, "usage: benchlaunch [-n RUNS] [-evtpm PROGRAM] SPEC")
		os.Exit(2)
	}
	if err := bench(*evtpm, flag.Arg(0), *runs); err != nil {
		fmt.Fprintln(os.Stderr, "bench-launch:", err)
		os.Exit(1)
	}
}

func bench(evtpm, spec string, runs int) error {
	dir, err := os.MkdirTemp("", "evtpm-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bencher{dir: dir, spec: spec}
	if b.evtpm, err = filepath.Abs(evtpm); err != nil {
		return err
	}
	// Once before: the simulated platform's keys take seconds to make.
	if _, err := b.launch(); err != nil {
		return err
	}
	var bares, launches []moments
	for i := range runs {
		bare, err := b.bare()
		if err != nil {
			return fmt.Errorf("bare boot: %w", err)
		}
		launch, err := b.launch()
		if err != nil {
			return fmt.Errorf("launch: %w", err)
		}
		fmt.Printf("run %d: bare boot to the agent's first byte %.2f s, launch to the verdict %.2f s\n", i+1, bare.agent.Seconds(), launch.verdict.Seconds())
		bares, launches = append(bares, bare), append(launches, launch)
	}
	of := func(list []moments, pick func(moments) time.Duration) time.Duration {
		var d []time.Duration
		for _, m := range list {
			d = append(d, pick(m))
		}
		return median(d)
	}
	line := func(what string, bare, launch time.Duration) {
		fmt.Printf("%-46s bare %5d ms, launch %5d ms, overhead %5d ms\n", what, bare.Milliseconds(), launch.Milliseconds(), (launch - bare).Milliseconds())
	}
	ready := func(m moments) time.Duration { return m.ready }
	fmt.Printf("medians of %d runs, counted from the start of the program:\n", runs)
	line("QEMU ready", of(bares, ready), of(launches, ready))
	line("first instruction", of(bares, ready), of(launches, func(m moments) time.Duration { return m.first }))
	line("boot alone, to the agent's first byte",
		of(bares, func(m moments) time.Duration { return m.agent - m.ready }), of(launches, func(m moments) time.Duration { return m.agent - m.first }))
	line("the agent's first byte to the verdict", 0, of(launches, func(m moments) time.Duration { return m.verdict - m.agent }))
	line("whole", of(bares, func(m moments) time.Duration { return m.agent }), of(launches, func(m moments) time.Duration { return m.verdict }))
	fmt.Printf("overhead without the boot, which differs from run to run: %d ms\n",
		(of(launches, func(m moments) time.Duration { return m.first + m.verdict - m.agent }) - of(bares, ready)).Milliseconds())
	return nil
}

// moments are when a run came how far.
type moments struct {
	ready   time.Duration // QEMU answered, before its guest's first instruction
	first   time.Duration // the first instruction, of a launch
	agent   time.Duration // the agent's first byte
	verdict time.Duration // of a launch
}

func median(d []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

type bencher struct {
	dir, evtpm, spec string
}

// launch runs evtpm launch, and takes the time of what it says.
func (b *bencher) launch() (m moments, err error) {
	cmd := exec.Command(b.evtpm, "launch", "--rm", b.spec)
	cmd.Env = append(os.Environ(), "EVTPM_HOME="+filepath.Join(b.dir, "home"))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return m, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return m, err
	}
	var said strings.Builder
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		now := time.Since(began)
		said.WriteString(lines.Text() + "\n")
		words := strings.Fields(lines.Text())
		if len(words) < 2 {
			continue
		}
		switch words[1] {
		case "started":
			m.ready = now
		case "vTPM":
			m.first = now
		case "booted":
			m.agent = now
		case "judged":
			m.verdict = now
		}
	}
	if err := cmd.Wait(); err != nil {
		return m, fmt.Errorf("%w: %s", err, said.String())
	}
	if m.ready == 0 || m.first == 0 || m.agent == 0 || m.verdict == 0 {
		return m, fmt.Errorf("evtpm launch did not tell of every phase: %s", said.String())
	}
	return m, nil
}

// bare boots the same VM by QEMU alone, with a TPM of swtpm's.
func (b *bencher) bare() (m moments, err error) {
	dir, err := os.MkdirTemp(b.dir, "bare-")
	if err != nil {
		return m, err
	}
	defer os.RemoveAll(dir)
	out, err := exec.Command(b.evtpm, "render", "qemu", "--write", "--dir", dir, "-o", "json", b.spec).Output()
	if err != nil {
		return m, fmt.Errorf("evtpm render: %w", err)
	}
	var doc struct {
		Argv []string `json:"argv"`
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		return m, err
	}
	argv := slices.DeleteFunc(doc.Argv, func(a string) bool { return a == "-S" })
	ln, err := net.Listen("unix", filepath.Join(dir, "svsm.sock"))
	if err != nil {
		return m, err
	}
	defer ln.Close()
	tpm := filepath.Join(dir, "tpm.sock")
	if err := os.Mkdir(filepath.Join(dir, "tpm"), 0o700); err != nil {
		return m, err
	}
	swtpm := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+filepath.Join(dir, "tpm"), "--ctrl", "type=unixio,path="+tpm, "--terminate")
	if err := swtpm.Start(); err != nil {
		return m, err
	}
	defer end(swtpm)
	if err := await(func() bool { _, err := os.Stat(tpm); return err == nil }); err != nil {
		return m, err
	}
	qemu := exec.Command(argv[0], argv[1:]...)
	var said strings.Builder
	qemu.Stderr = &said
	began := time.Now()
	if err := qemu.Start(); err != nil {
		return m, err
	}
	defer end(qemu)
	if err := firstByte(filepath.Join(dir, "monitor.sock")); err != nil {
		return m, fmt.Errorf("monitor: %w: %s", err, said.String())
	}
	m.ready = time.Since(began)
	if err := firstByte(filepath.Join(dir, "agent.sock")); err != nil {
		return m, fmt.Errorf("agent: %w: %s", err, said.String())
	}
	m.agent = time.Since(began)
	return m, nil
}

func end(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

func await(done func() bool) error {
	for range 5000 {
		if done() {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("nothing within 5 s")
}

// firstByte connects to a socket as soon as it is there, and waits for a byte.
func firstByte(path string) error {
	var conn net.Conn
	err := await(func() bool {
		c, err := net.Dial("unix", path)
		conn = c
		return err == nil
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}
