//go:build unix

// Command benchigvm times evtpm svsm on an image of 16 MiB of distinct pages, and
// says how that compares with hashing these pages and nothing else, all in one run.
// scripts/bench-igvm calls it.
package main

import (
	"crypto/sha512"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/scripts/peak"
	"github.com/evtpm/evtpm/svsmimg"
)

func main() {
	evtpm := flag.String("evtpm", "bin/evtpm", "our `program`")
	rounds := flag.Int("rounds", 25, "how often each program runs")
	flag.Parse()
	if err := run(*evtpm, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "bench-igvm:", err)
		os.Exit(1)
	}
}

// pages is how many the image has, of 4 KiB.
const pages = 4096

func run(evtpm string, rounds int) error {
	image, data, err := makeImage()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench-igvm")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "large.igvm")
	if err := os.WriteFile(name, image, 0o600); err != nil {
		return err
	}
	fmt.Printf("image of %d bytes, %d distinct pages; %d processors; median of %d rounds, in turn\n", len(image), pages, runtime.GOMAXPROCS(0), rounds)
	programs := []struct {
		name string
		args []string
	}{
		{"measure", []string{evtpm, "-q", "svsm", "measure", name}},
		{"inspect", []string{evtpm, "-q", "svsm", "inspect", name}},
		{"lint", []string{evtpm, "-q", "svsm", "lint", name}},
	}
	var low, library samples
	whole := make([]samples, len(programs))
	for range rounds {
		err := errors.Join(
			low.add(func() (time.Duration, error) { return own(func() error { floor(data); return nil }) }),
			library.add(func() (time.Duration, error) { return own(func() error { return digest(image) }) }))
		for i, p := range programs {
			err = errors.Join(err, whole[i].add(func() (time.Duration, error) {
				cmd := exec.Command(p.args[0], p.args[1:]...)
				err := cmd.Run()
				return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), err
			}))
		}
		if err != nil {
			return err
		}
	}
	fmt.Println("clock: what passes on this machine, whatever else it does; processor: what is computed")
	fmt.Printf("SHA-384 of the pages, on all processors: %s\n", low)
	fmt.Printf("measure, as a package: %s; %s (at most 1.5)\n", library, library.times(low))
	for i, p := range programs {
		memory, err := peak.Memory(p.args)
		if err != nil {
			return err
		}
		note := ""
		switch p.name {
		case "measure":
			note = "; " + whole[i].times(low)
		case "inspect":
			note = " (at most 20ms)"
		}
		fmt.Printf("%s, whole process: %s%s; %.1f MiB, %.2f times the file (at most 2)\n",
			p.name, whole[i], note, float64(memory)/(1<<20), float64(memory)/float64(len(image)))
	}
	return nil
}

// samples are how long something took in each round, by the clock and in time of
// processors.
type samples struct{ clock, processor []time.Duration }

// add takes a sample of what says itself how much time of processors it took.
func (s *samples) add(do func() (time.Duration, error)) error {
	start := time.Now()
	used, err := do()
	s.clock = append(s.clock, time.Since(start))
	s.processor = append(s.processor, used)
	return err
}

func (s samples) String() string {
	const unit = 100 * time.Microsecond
	return fmt.Sprintf("clock %v, processor %v", median(s.clock).Round(unit), median(s.processor).Round(unit))
}

// times compares with the hashing alone.
func (s samples) times(low samples) string {
	ratio := func(a, b []time.Duration) float64 { return float64(median(a)) / float64(median(b)) }
	return fmt.Sprintf("clock %.2f, processor %.2f times the hashing", ratio(s.clock, low.clock), ratio(s.processor, low.processor))
}

// own is how much time of processors this process takes for something.
func own(do func() error) (time.Duration, error) {
	now := func() time.Duration {
		var u syscall.Rusage
		if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
			return 0
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := now()
	err := do()
	return now() - before, err
}

// makeImage makes an image, and returns its pages besides.
func makeImage() (image, data []byte, err error) {
	data = make([]byte, pages*measure.PageSize)
	rng := rand.NewPCG(1, 2)
	for i := range data {
		data[i] = byte(rng.Uint64())
	}
	vmsa, err := measure.VCPU{Features: measure.FeatureSNPActive, EIP: measure.ResetEIP}.VMSA()
	if err != nil {
		return nil, nil, err
	}
	f := &svsmimg.File{Version: 1, Data: append(slices.Clip(data), vmsa.Page()...)}
	f.Headers = append(f.Headers, &svsmimg.Platform{Mask: 1, Platform: svsmimg.PlatformSNP, Version: 1}, &svsmimg.GuestPolicy{Policy: 0x30000, Mask: 1})
	blob := func(page int) svsmimg.Blob {
		return svsmimg.Blob{Offset: uint32(page) * measure.PageSize, Size: measure.PageSize}
	}
	// Most of it an SVSM, the last quarter a firmware.
	for i := range pages {
		gpa := uint64(0x8000000 + i*measure.PageSize)
		if i >= pages*3/4 {
			gpa = uint64(1<<32 - (pages-i)*measure.PageSize)
		}
		f.Headers = append(f.Headers, &svsmimg.PageData{GPA: gpa, Mask: 1, Data: blob(i)})
	}
	f.Headers = append(f.Headers, &svsmimg.VPContext{GPA: measure.VMSAGPA, Mask: 1, Data: blob(pages)})
	image, err = f.Encode()
	return image, data, err
}

func digest(image []byte) error {
	f, err := svsmimg.Parse(image)
	if err != nil {
		return err
	}
	s, err := f.Sequence(svsmimg.SequenceOptions{})
	if err != nil {
		return err
	}
	_, err = s.LaunchDigest()
	return err
}

// floor hashes every page once, on all processors.
func floor(data []byte) {
	var wg sync.WaitGroup
	n := runtime.GOMAXPROCS(0)
	for w := range n {
		wg.Go(func() {
			for p := w * pages / n; p < (w+1)*pages/n; p++ {
				sha512.Sum384(data[p*measure.PageSize : (p+1)*measure.PageSize])
			}
		})
	}
	wg.Wait()
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}
