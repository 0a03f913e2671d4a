// Command benchlaunch measures what a launch costs beyond the boot of the same
// VM: it starts the VM of a spec in turn by evtpm launch, to the verdict, and by
// QEMU alone, to the guest agent's first byte.
//
//	go run ./scripts/benchlaunch [-n RUNS] [-evtpm PROGRAM] SPEC
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
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
	if _, _, err := b.launch(); err != nil {
		return err
	}
	var bare, verdict, ready, bareReady []time.Duration
	for i := range runs {
		first, greeting, err := b.bare()
		if err != nil {
			return fmt.Errorf("bare boot: %w", err)
		}
		total, start, err := b.launch()
		if err != nil {
			return fmt.Errorf("launch: %w", err)
		}
		fmt.Printf("run %d: bare boot to the agent's first byte %.2f s, launch to the verdict %.2f s\n", i+1, first.Seconds(), total.Seconds())
		bare, verdict = append(bare, first), append(verdict, total)
		bareReady, ready = append(bareReady, greeting), append(ready, start)
	}
	fmt.Printf("QEMU ready:  bare %4d ms, launch %4d ms, overhead %4d ms (medians of %d)\n",
		median(bareReady).Milliseconds(), median(ready).Milliseconds(), (median(ready) - median(bareReady)).Milliseconds(), runs)
	fmt.Printf("whole:       bare %.2f s, launch to verdict %.2f s, overhead %.2f s (medians of %d)\n",
		median(bare).Seconds(), median(verdict).Seconds(), (median(verdict) - median(bare)).Seconds(), runs)
	return nil
}

func median(d []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

type bencher struct {
	dir, evtpm, spec string
}

// launch runs evtpm launch and returns how long it took to the verdict, and to a
// QEMU that is ready to run.
func (b *bencher) launch() (verdict, ready time.Duration, err error) {
	cmd := exec.Command(b.evtpm, "launch", "--rm", "-o", "json", b.spec)
	cmd.Env = append(os.Environ(), "EVTPM_HOME="+filepath.Join(b.dir, "home"))
	var out, say strings.Builder
	cmd.Stderr = &say
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	if _, err := io.Copy(&out, stdout); err != nil {
		return 0, 0, err
	}
	if err := cmd.Wait(); err != nil {
		return 0, 0, fmt.Errorf("%w: %s", err, say.String())
	}
	whole := time.Since(began)
	var doc struct {
		Timings []struct {
			Phase   string  `json:"phase"`
			Elapsed float64 `json:"elapsed"`
		} `json:"timings"`
	}
	if err := json.Unmarshal([]byte(out.String()), &doc); err != nil {
		return 0, 0, err
	}
	// Elapsed counts from the command's first act; what the system took to start
	// the program comes on top, and is not known better than by what is left.
	for _, t := range doc.Timings {
		d := time.Duration(t.Elapsed * float64(time.Second))
		switch t.Phase {
		case "start":
			ready = d
		case "verdict":
			verdict = d
		}
	}
	if verdict == 0 || verdict > whole {
		return 0, 0, errors.New("no time of the verdict in the output of evtpm launch")
	}
	return verdict, ready, nil
}

// bare boots the same VM by QEMU alone, with a TPM of swtpm's, and returns when
// the agent's first byte came, and when the monitor answered.
func (b *bencher) bare() (first, greeting time.Duration, err error) {
	dir, err := os.MkdirTemp(b.dir, "bare-")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	out, err := exec.Command(b.evtpm, "render", "qemu", "--write", "--dir", dir, "-o", "json", b.spec).Output()
	if err != nil {
		return 0, 0, fmt.Errorf("evtpm render: %w", err)
	}
	var doc struct {
		Argv []string `json:"argv"`
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		return 0, 0, err
	}
	argv := slices.DeleteFunc(doc.Argv, func(a string) bool { return a == "-S" })
	ln, err := net.Listen("unix", filepath.Join(dir, "svsm.sock"))
	if err != nil {
		return 0, 0, err
	}
	defer ln.Close()
	tpm := filepath.Join(dir, "tpm.sock")
	if err := os.Mkdir(filepath.Join(dir, "tpm"), 0o700); err != nil {
		return 0, 0, err
	}
	swtpm := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+filepath.Join(dir, "tpm"), "--ctrl", "type=unixio,path="+tpm, "--terminate")
	if err := swtpm.Start(); err != nil {
		return 0, 0, err
	}
	defer end(swtpm)
	if err := await(func() bool { _, err := os.Stat(tpm); return err == nil }); err != nil {
		return 0, 0, err
	}
	qemu := exec.Command(argv[0], argv[1:]...)
	var said strings.Builder
	qemu.Stderr = &said
	began := time.Now()
	if err := qemu.Start(); err != nil {
		return 0, 0, err
	}
	defer end(qemu)
	if err := firstByte(filepath.Join(dir, "monitor.sock")); err != nil {
		return 0, 0, fmt.Errorf("monitor: %w: %s", err, said.String())
	}
	greeting = time.Since(began)
	if err := firstByte(filepath.Join(dir, "agent.sock")); err != nil {
		return 0, 0, fmt.Errorf("agent: %w: %s", err, said.String())
	}
	return time.Since(began), greeting, nil
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
