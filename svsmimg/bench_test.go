package svsmimg

import (
	"crypto/sha512"
	"fmt"
	"runtime"
	"runtime/metrics"
	"sync"
	"testing"
	"time"

	"github.com/evtpm/evtpm/measure"
)

// large is an image of 16 MiB of distinct pages.
func large() []byte {
	b := newBuilder(1)
	b.add(&Platform{Mask: maskSNP, Platform: PlatformSNP, Version: 1})
	b.add(&GuestPolicy{Policy: policyDefault, Mask: maskSNP})
	b.pages(0x8000000, maskSNP, filler(12<<20, 1))
	b.pages(top4G-4<<20, maskSNP, filler(4<<20, 2))
	b.context(measure.VMSAGPA, maskSNP, vmsaPage())
	return must(must(b.file()).Encode())
}

// floor hashes every page of data once, on all processors.
func floor(data []byte) {
	var wg sync.WaitGroup
	n := runtime.GOMAXPROCS(0)
	pages := len(data) / pageSize
	for w := range n {
		wg.Go(func() {
			for p := w * pages / n; p < (w+1)*pages/n; p++ {
				sha512.Sum384(data[p*pageSize : (p+1)*pageSize])
			}
		})
	}
	wg.Wait()
}

// BenchmarkMeasure measures a 16 MiB image, and reports the ratio to hashing its
// pages and nothing else.
func BenchmarkMeasure(b *testing.B) {
	data := large()
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	var floors, whole time.Duration
	for b.Loop() {
		start := time.Now()
		floor(data[len(data)-16<<20:])
		floors += time.Since(start)
		start = time.Now()
		s := must(must(Parse(data)).Sequence(SequenceOptions{}))
		must(s.LaunchDigest())
		whole += time.Since(start)
	}
	b.ReportMetric(float64(whole)/float64(floors), "x-floor")
}

// BenchmarkInspect looks into a 16 MiB image.
func BenchmarkInspect(b *testing.B) {
	data := large()
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		must(Parse(data)).Inspect()
	}
}

// used runs a function and returns how much memory it has in use at most, what
// waits for the garbage collector included, and how long it takes.
func used(f func()) (peak uint64, d time.Duration) {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before := m.HeapAlloc
	done, sampled := make(chan bool), make(chan uint64)
	go func() {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		highest := uint64(0)
		for {
			metrics.Read(sample)
			highest = max(highest, sample[0].Value.Uint64())
			select {
			case <-done:
				sampled <- highest
				return
			case <-time.After(200 * time.Microsecond):
			}
		}
	}()
	start := time.Now()
	f()
	d = time.Since(start)
	close(done)
	highest := <-sampled
	return highest - min(highest, before), d
}

// TestBounds: whatever a file says, reading, measuring, checking and showing it
// take less than 64 MiB beyond the file, and a bounded time.
func TestBounds(t *testing.T) {
	hostile := map[string]*File{
		"pages that are no neighbours": small(func(b *builder) {
			for i := range uint64(MaxPages - 40) {
				b.add(&PageData{GPA: 0x100000000 + i*2*pageSize, Mask: maskSNP})
			}
		}),
		"pages in falling order that share data": small(func(b *builder) {
			one := b.blob(filler(pageSize, 9))
			for i := range uint64(MaxPages - 40) {
				b.add(&PageData{GPA: 0x1000000000 - i*pageSize, Mask: maskSNP, Data: one})
			}
		}),
		"large pages": small(func(b *builder) {
			for i := range uint64(MaxPages/512 - 1) {
				b.add(&PageData{GPA: 0x100000000 + i*largePage, Mask: maskSNP, Flags: Page2MiB})
			}
		}),
		"parameter areas": small(func(b *builder) {
			for i := range uint32(30) {
				b.add(&ParameterArea{Bytes: maxParameterArea, Index: 100 + i})
				b.add(&ParameterInsert{GPA: 0x100000000 + uint64(i)*maxParameterArea, Mask: maskSNP, Index: 100 + i})
			}
		}),
		"unknown headers": small(func(b *builder) {
			for range MaxPages {
				b.add(&Unknown{Kind: 0x3f0})
			}
		}),
		"platforms": small(func(b *builder) {
			b.f.Headers = b.f.Headers[:2]
			for p := PlatformNative; p < PlatformCCA; p++ {
				if p != PlatformSNP {
					insertAt(TypeGuestPolicy, &Platform{Mask: 1 << (p + 4), Platform: p, Version: 1})(b)
				}
			}
			for i := range uint64(MaxPages - 40) {
				b.add(&PageData{GPA: i * 2 * pageSize, Mask: 0xffffffff})
			}
		}),
	}
	for name, f := range hostile {
		data := encodedOptional(f)
		steps := map[string]func(*File) error{
			"parse":   func(*File) error { return nil },
			"inspect": func(f *File) error { f.Inspect(); return nil },
			"measure": func(f *File) error {
				s, err := f.Sequence(SequenceOptions{CPUSignature: 1})
				if err == nil {
					_, err = s.LaunchDigest()
				}
				return err
			},
			"extract": func(f *File) error { _, _ = f.Extract(); return nil },
			"lint":    func(f *File) error { _, err := f.Lint(LintOptions{}); return err },
			"write":   func(f *File) error { _, err := f.Encode(); return err },
		}
		for step, do := range steps {
			bytes, d := used(func() {
				f, err := Parse(data)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if err := do(f); err != nil {
					t.Fatalf("%s: %s: %v", name, step, err)
				}
			})
			if limit := uint64(len(data)) + 64<<20; bytes > limit {
				t.Errorf("%s: %s uses %d bytes for a file of %d", name, step, bytes, len(data))
			}
			// A second is what it may take; a busy machine is slower.
			if d > 5*time.Second {
				t.Errorf("%s: %s takes %v", name, step, d)
			}
			if testing.Verbose() {
				fmt.Printf("%-40s %-8s %6.1f MiB of memory, %v, file %.1f MiB\n", name, step, float64(bytes)/(1<<20), d.Round(time.Millisecond), float64(len(data))/(1<<20))
			}
		}
	}
	data := large()
	if n, _ := used(func() {
		f := must(Parse(data))
		f.Inspect()
		must(must(f.Sequence(SequenceOptions{})).LaunchDigest())
	}); n > uint64(len(data)) {
		t.Errorf("inspecting and measuring an image of %d bytes uses %d", len(data), n)
	}
}
