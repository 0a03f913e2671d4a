package measure

import (
	"bytes"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
)

// streamChunk is what is read at a time: small enough to stay in a processor's
// cache until it is hashed.
const streamChunk = 16 * PageSize

// FoldReader folds size bytes of PageNormal contents, from r's start, into the
// digest that a launch starts with: what a firmware image at gpa gives, without
// holding it in memory. Pages are read and hashed on all processors.
func FoldReader(r io.ReaderAt, size int64, gpa uint64) (Digest, error) {
	step := Step{Type: PageNormal, GPA: gpa, Size: uint64(size)}
	if size < 0 || uint64(size) > MaxPages*PageSize {
		return Digest{}, fmt.Errorf("found %d bytes, expected at most %d", size, MaxPages*PageSize)
	}
	if err := step.validate(); err != nil {
		return Digest{}, err
	}
	f := &foldReader{
		r: r, gpa: gpa, size: size,
		chunks: make([]atomic.Pointer[[]Digest], (size+streamChunk-1)/streamChunk),
	}
	var wg sync.WaitGroup
	workers := min(runtime.GOMAXPROCS(0), len(f.chunks))
	errs := make([]error, workers)
	for i := 1; i < workers; i++ {
		wg.Go(func() { errs[i] = f.work() })
	}
	errs[0] = f.work()
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return Digest{}, err
		}
	}
	f.fold()
	return f.cur, nil
}

// foldReader is the state that its workers share.
type foldReader struct {
	r    io.ReaderAt
	gpa  uint64
	size int64

	next   atomic.Int64                // the chunk to read
	chunks []atomic.Pointer[[]Digest]  // page digests of those that are hashed
	fills  [256]atomic.Pointer[Digest] // of pages of one repeated byte

	mu     sync.Mutex
	folded int    // chunks that are part of cur
	cur    Digest // the launch digest after them
}

// work reads and hashes chunks until none is left.
func (f *foldReader) work() error {
	buf := make([]byte, min(f.size, streamChunk))
	for {
		i := f.next.Add(1) - 1
		if i >= int64(len(f.chunks)) {
			return nil
		}
		at := i * streamChunk
		data := buf[:min(streamChunk, f.size-at)]
		if n, err := f.r.ReadAt(data, at); n < len(data) {
			f.next.Store(int64(len(f.chunks))) // the others may stop
			if errors.Is(err, io.EOF) {
				return errors.New("became shorter while it was read")
			}
			return err
		}
		digests := f.hash(data)
		f.chunks[i].Store(&digests)
		// The chain of digests is serial and takes less than the hashing: whoever
		// finds nobody at it goes on with it.
		if f.mu.TryLock() {
			f.fold()
			f.mu.Unlock()
		}
	}
}

// hash returns the digests of the pages of data. Padding is most of a firmware:
// pages of one repeated byte are hashed once.
func (f *foldReader) hash(data []byte) []Digest {
	out := make([]Digest, len(data)/PageSize)
	for p := range out {
		page := data[p*PageSize : (p+1)*PageSize]
		if !bytes.Equal(page[1:], page[:PageSize-1]) {
			out[p] = sha512.Sum384(page)
			continue
		}
		known := f.fills[page[0]].Load()
		if known == nil {
			d := Digest(sha512.Sum384(page))
			known = &d
			f.fills[page[0]].Store(known)
		}
		out[p] = *known
	}
	return out
}

// fold folds the chunks that have become ready, in order. The lock is held, or
// the workers have ended.
func (f *foldReader) fold() {
	for f.folded < len(f.chunks) {
		digests := f.chunks[f.folded].Swap(nil)
		if digests == nil {
			return
		}
		gpa := f.gpa + uint64(f.folded)*streamChunk
		for p, d := range *digests {
			f.cur = Extend(f.cur, PageNormal, gpa+uint64(p)*PageSize, d)
		}
		f.folded++
	}
}
