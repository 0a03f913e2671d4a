// Command benchmeasure compares evtpm measure with other implementations of the
// same launch digest, and with what the hashing alone must cost. It prints
// ratios of times that were measured side by side in one run; scripts/bench-measure
// calls it.
package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
	"github.com/evtpm/evtpm/scripts/peak"
)

func main() {
	var b bench
	flag.StringVar(&b.evtpm, "evtpm", "bin/evtpm", "our `program`")
	flag.StringVar(&b.python, "python", "", "`program` sev-snp-measure")
	flag.StringVar(&b.rust, "rust", "", "`program` of scripts/peers/sev-crate")
	flag.StringVar(&b.ovmf, "ovmf", "", "firmware `FILE` that measures kernels")
	flag.IntVar(&b.rounds, "rounds", 40, "how often each program runs")
	flag.Parse()
	if err := b.run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench-measure:", err)
		os.Exit(1)
	}
}

type bench struct {
	evtpm, python, rust, ovmf string
	rounds                    int
	kernel, initrd            string
}

// kernelSize is that of a distribution's kernel.
const kernelSize = 14186432

func (b *bench) run() error {
	dir, err := os.MkdirTemp("", "bench-measure")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b.kernel, b.initrd = filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd")
	// Its contents do not matter: it is hashed, not run.
	kernel := make([]byte, kernelSize)
	rng := rand.NewPCG(1, 2)
	for i := range kernel {
		kernel[i] = byte(rng.Uint64())
	}
	if err := os.WriteFile(b.kernel, kernel, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(b.initrd, kernel[:512], 0o600); err != nil {
		return err
	}
	firmware, err := os.ReadFile(b.ovmf)
	if err != nil {
		return err
	}
	fmt.Printf("firmware %s, %d bytes; kernel %d bytes; 4 vCPUs; fastest of %d runs (median), programs in turn: other work on the machine only adds\n", filepath.Base(b.ovmf), len(firmware), len(kernel), b.rounds)
	if err := b.processes("without kernel", false, target{python: 12, rust: 2}); err != nil {
		return err
	}
	if err := b.processes("with kernel", true, target{python: 5}); err != nil {
		return err
	}
	if err := b.memory(int64(len(firmware))); err != nil {
		return err
	}
	if err := b.floor(firmware); err != nil {
		return err
	}
	if err := b.matrix(); err != nil {
		return err
	}
	return b.explain()
}

// target are the ratios that are wanted; zero is none.
type target struct{ python, rust float64 }

func (b *bench) args(program string, withKernel bool) []string {
	const cmdline = "console=ttyS0 loglevel=7 root=/dev/vda1 ro"
	if program == b.rust {
		kernel, initrd, line := "-", "-", ""
		if withKernel {
			kernel, initrd, line = b.kernel, b.initrd, fmt.Sprintf("%x", cmdline)
		}
		return []string{program, "snp", "QEMU", b.ovmf, "4", "EPYC-v4", "8392466", "1", kernel, initrd, line}
	}
	args := []string{program}
	if program == b.evtpm {
		args = append(args, "measure")
	}
	args = append(args, "--mode", "snp", "--ovmf", b.ovmf, "--vcpus", "4", "--vcpu-type", "EPYC-v4")
	if withKernel {
		args = append(args, "--kernel", b.kernel, "--initrd", b.initrd, "--append", cmdline)
	}
	return args
}

// processes times whole processes.
func (b *bench) processes(what string, withKernel bool, want target) error {
	programs := []string{b.evtpm}
	for _, p := range []string{b.python, b.rust} {
		if p != "" {
			programs = append(programs, p)
		}
	}
	times := make(map[string][]time.Duration)
	answers := make(map[string]string)
	for _, p := range programs {
		args := b.args(p, withKernel)
		out, err := exec.Command(args[0], args[1:]...).Output()
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		answers[p] = strings.TrimSpace(string(out))
	}
	// What they print goes nowhere: a pipe and its reader would be timed too.
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for range b.rounds {
		for _, p := range programs {
			args := b.args(p, withKernel)
			start := time.Now()
			process, err := os.StartProcess(args[0], args, &os.ProcAttr{Files: []*os.File{null, null, null}})
			if err != nil {
				return err
			}
			state, err := process.Wait()
			times[p] = append(times[p], time.Since(start))
			if err != nil || !state.Success() {
				return fmt.Errorf("%s: %v: %w", p, state, err)
			}
		}
	}
	ours, mid := fastest(times[b.evtpm])
	fmt.Printf("%-16s evtpm %s (%s)", what, ms(ours), ms(mid))
	for _, p := range []struct {
		name, program string
		want          float64
	}{{"sev-snp-measure", b.python, want.python}, {"sev crate", b.rust, want.rust}} {
		if p.program == "" {
			fmt.Printf("; %s not at hand", p.name)
			continue
		}
		if answers[p.program] != answers[b.evtpm] {
			return fmt.Errorf("%s: found digest %s, ours is %s", p.name, answers[p.program], answers[b.evtpm])
		}
		theirs, theirMid := fastest(times[p.program])
		ratio := float64(theirs) / float64(ours)
		fmt.Printf("; %s %s (%s): %.1f (%.1f) times faster%s", p.name, ms(theirs), ms(theirMid), ratio, float64(theirMid)/float64(mid), verdict(ratio >= p.want, p.want, "at least %g"))
	}
	fmt.Println()
	return nil
}

func verdict(ok bool, want float64, format string) string {
	if want == 0 {
		return ""
	}
	text := " (wanted: " + fmt.Sprintf(format, want)
	if !ok {
		text += ", MISSED"
	}
	return text + ")"
}

// fastest is the shortest of some times, and their median.
func fastest(d []time.Duration) (shortest, median time.Duration) {
	slices.Sort(d)
	return d[0], d[len(d)/2]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/1e6) }

// memory prints the peak memory of a whole process.
func (b *bench) memory(firmware int64) error {
	peak, err := peak.Memory(b.args(b.evtpm, false))
	if err != nil {
		return err
	}
	ratio := float64(peak) / float64(firmware)
	fmt.Printf("%-16s evtpm %d KiB: %.2f times the firmware%s\n", "peak memory", peak>>10, ratio, verdict(ratio < 3, 3, "below %g"))
	return nil
}

// floor compares the library with the hashing that no implementation can avoid:
// SHA-384 of each distinct page, and the chain of page digests, on one processor.
func (b *bench) floor(firmware []byte) error {
	distinct := make(map[string][]byte)
	for at := 0; at < len(firmware); at += measure.PageSize {
		page := firmware[at : at+measure.PageSize]
		distinct[string(page)] = page
	}
	img, err := ovmf.Parse(firmware)
	if err != nil {
		return err
	}
	o := ovmf.LaunchOptions{VCPUs: 4, CPUSignature: 0x800f12}
	seq, err := img.Sequence(o)
	if err != nil {
		return err
	}
	pages, err := seq.Pages()
	if err != nil {
		return err
	}
	var floors, library []time.Duration
	for range b.rounds {
		start := time.Now()
		for _, p := range distinct {
			sha512.Sum384(p)
		}
		var cur measure.Digest
		for _, p := range pages {
			cur = measure.Extend(cur, p.Type, p.GPA, p.Contents)
		}
		floors = append(floors, time.Since(start))

		start = time.Now()
		img, err := ovmf.Scan(bytes.NewReader(firmware), int64(len(firmware)))
		if err != nil {
			return err
		}
		seq, err := img.Sequence(o)
		if err != nil {
			return err
		}
		if _, err := seq.LaunchDigest(); err != nil {
			return err
		}
		library = append(library, time.Since(start))
	}
	f, _ := fastest(floors)
	l, _ := fastest(library)
	fmt.Printf("%-16s library %s, floor on one processor %s (%d distinct pages, chain of %d): %.2f times the floor\n", "floor", ms(l), ms(f), len(distinct), len(pages), float64(l)/float64(f))
	kernel, err := os.ReadFile(b.kernel)
	if err != nil {
		return err
	}
	start := time.Now()
	sha256.Sum256(kernel)
	fmt.Printf("%-16s SHA-256 of the kernel alone %s\n", "", ms(time.Since(start)))
	return nil
}

func (b *bench) matrix() error {
	args := []string{"-q", "measure", "--mode", "snp", "--ovmf", b.ovmf, "--kernel", b.kernel, "--append", "ro", "--matrix", "vcpus=1..512,cpu=all,kernel-hashes=on,off"}
	start := time.Now()
	out, err := exec.Command(b.evtpm, args...).Output()
	took := time.Since(start)
	if err != nil {
		return fmt.Errorf("matrix: %w", err)
	}
	fmt.Printf("%-16s %d digests in %s%s\n", "matrix", bytes.Count(out, []byte("\n")), ms(took), verdict(took < 500*time.Millisecond, 500, "below %g ms"))
	return nil
}

func (b *bench) explain() error {
	args := []string{"-q", "explain", "-o", "json", "--mode", "snp", "--ovmf", b.ovmf, "--vcpus", "4", "--vcpu-type", "EPYC-v4",
		"--kernel", b.kernel, "--append", "console=ttyS0 ro", "--digest", strings.Repeat("11", measure.DigestSize)}
	start := time.Now()
	out, err := exec.Command(b.evtpm, args...).Output()
	took := time.Since(start)
	var r struct{ Tried int64 }
	if jsonErr := json.Unmarshal(out, &r); jsonErr != nil {
		return fmt.Errorf("explain: %w", err)
	}
	rate := float64(r.Tried) / took.Seconds()
	fmt.Printf("%-16s %d candidates in %s: %.0f a second%s\n", "explain", r.Tried, ms(took), rate, verdict(rate >= 100000, 100000, "at least %g"))
	return nil
}
