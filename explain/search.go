package explain

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"runtime"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

// A search compares variants with a digest: each prefix with each kind of VMSA,
// and for each pair every vCPU count in one pass.
type search struct {
	ctx        context.Context
	base       Launch
	candidates Candidates
	modes      []measure.Mode
	target     measure.Digest // in its first 32 bytes for SEV and SEV-ES

	hashesMu sync.Mutex
	hashes   map[*ovmf.Image]measure.Digest // of images' pages

	pagesMu sync.Mutex
	pages   map[measure.VCPU]*vmsaPage
}

// vmsaPage is a save area and its hash.
type vmsaPage struct {
	page   []byte
	digest measure.Digest
}

// A pair is one prefix with one kind of VMSA.
type pair struct {
	prefix *start
	cpu    *cpu
	cost   int
}

// start is a prefix with its digest, computed when it is first needed.
type start struct {
	prefix
	once   sync.Once
	digest measure.Digest // SNP
	sha    hash.Cloner    // SEV and SEV-ES
	err    error
}

// match is a variant that has the digest.
type match struct {
	cost  int
	diffs []Difference
}

func (s *search) run() (*Result, error) {
	s.hashes = make(map[*ovmf.Image]measure.Digest)
	s.pages = make(map[measure.VCPU]*vmsaPage)
	pairs := s.pairs()
	sort.SliceStable(pairs, func(i, j int) bool { return pairs[i].cost < pairs[j].cost })

	var (
		next, tried atomic.Int64
		bestMu      sync.Mutex
		best        *match
		failed      error
		ended       int
		wg          sync.WaitGroup
	)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for s.ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(pairs) {
					return
				}
				bestMu.Lock()
				// A later pair has no fewer differences than this one.
				done := failed != nil || best != nil && pairs[i].cost >= best.cost
				bestMu.Unlock()
				if done {
					return
				}
				m, n, err := s.try(&pairs[i])
				tried.Add(n)
				bestMu.Lock()
				if ended++; s.candidates.Progress != nil {
					s.candidates.Progress(ended, len(pairs))
				}
				if err != nil && failed == nil {
					failed = err
				}
				if m != nil && (best == nil || m.cost < best.cost) {
					best = m
				}
				bestMu.Unlock()
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return nil, failed
	}
	r := &Result{Tried: tried.Load()}
	if best != nil {
		r.Matched, r.Differences = true, best.diffs
		return r, nil
	}
	if err := s.ctx.Err(); err != nil {
		return r, fmt.Errorf("explain: no match among the first %d variants: %w", r.Tried, err)
	}
	var err error
	r.Unexplained, err = s.unexplained()
	return r, err
}

// pairs lists what is to be tried.
func (s *search) pairs() []pair {
	type key struct {
		mode measure.Mode
		vmm  measure.VMM
	}
	cpus := make(map[key][]cpu)
	var out []pair
	for _, p := range s.prefixes() {
		k := key{p.mode, p.vmm}
		if p.mode == measure.ModeSEV {
			if p.vmm != s.base.Options.VMM {
				continue // nothing of the VMM is measured
			}
			cpus[k] = []cpu{{}}
		}
		if cpus[k] == nil {
			cpus[k] = s.cpus(p.mode, p.vmm)
		}
		st := &start{prefix: p}
		for i := range cpus[k] {
			c := &cpus[k][i]
			cost := len(p.diffs) + c.cost
			if cost > maxCost {
				continue
			}
			out = append(out, pair{st, c, cost})
		}
	}
	return out
}

// try compares every vCPU count of a pair. n is how many digests were compared.
func (s *search) try(p *pair) (m *match, n int64, err error) {
	p.prefix.once.Do(func() { p.prefix.err = s.begin(p.prefix) })
	if p.prefix.err != nil {
		var unusable *unusableError
		if errors.As(p.prefix.err, &unusable) {
			return nil, 0, nil // this firmware cannot be started so: no variant
		}
		return nil, 0, p.prefix.err
	}
	if p.prefix.mode == measure.ModeSEV {
		return s.trySEV(p)
	}
	bsp, ap, err := s.vmsaPages(p)
	if err != nil {
		return nil, 0, err
	}
	if p.prefix.mode == measure.ModeSEVES {
		return s.trySEVES(p, bsp, ap)
	}
	cur := p.prefix.digest
	for count := 1; count <= measure.MaxVCPUs; count++ {
		page := ap
		if count == 1 {
			page = bsp
		}
		cur = measure.Extend(cur, measure.PageVMSA, p.cpu.gpa, page.digest)
		if cur == s.target {
			m = s.better(m, p, count)
		}
	}
	return m, measure.MaxVCPUs, nil
}

func (s *search) trySEV(p *pair) (*match, int64, error) {
	if s.sum(p.prefix.sha) != s.target {
		return nil, 1, nil
	}
	return &match{p.cost, p.prefix.diffs}, 1, nil
}

func (s *search) trySEVES(p *pair, bsp, ap *vmsaPage) (m *match, n int64, err error) {
	h, err := p.prefix.sha.Clone()
	if err != nil {
		return nil, 0, err
	}
	h.Write(bsp.page)
	for count := 1; ; count++ {
		if s.sum(h) == s.target {
			m = s.better(m, p, count)
		}
		if count == measure.MaxVCPUs {
			return m, measure.MaxVCPUs, nil
		}
		h.Write(ap.page)
	}
}

// sum is a SHA-256 in the place of a launch digest.
func (s *search) sum(h hash.Hash) (d measure.Digest) {
	h.Sum(d[:0])
	return d
}

// better returns the match with fewer differences.
func (s *search) better(m *match, p *pair, count int) *match {
	found := &match{p.cost, join(p.prefix.diffs, p.cpu.diffs)}
	if base := s.base.Options.VCPUs; count != base {
		found.cost++
		text := fmt.Sprintf("%d vCPUs instead of %d", count, base)
		if count == 1 {
			text = fmt.Sprintf("1 vCPU instead of %d (or a host that measures the first vCPU alone)", base)
		}
		found.diffs = append(found.diffs, Difference{"vcpus", fmt.Sprint(base), fmt.Sprint(count), text})
	}
	if m != nil && m.cost <= found.cost {
		return m
	}
	return found
}

// unusableError says that a firmware cannot be started in a way that is tried.
type unusableError struct{ err error }

func (e *unusableError) Error() string { return e.err.Error() }
func (e *unusableError) Unwrap() error { return e.err }

// begin computes a prefix's digest.
func (s *search) begin(p *start) error {
	o := s.base.Options
	o.Mode, o.VMM, o.Hashes, o.VCPUs = p.mode, p.vmm, p.hashes, 1
	img := p.firmware
	if p.mode == measure.ModeSNP {
		hash, err := s.imageHash(img)
		if err != nil {
			return err
		}
		light := *img
		light.Data, light.Prefix = nil, hash
		img = &light
	}
	seq, err := img.Sequence(o)
	if err != nil {
		return &unusableError{err}
	}
	seq.Steps = append(seq.Steps, s.base.Append...)
	if p.mode == measure.ModeSNP {
		p.digest, err = seq.PrefixDigest()
		return err
	}
	h := sha256.New().(hash.Cloner)
	for i := range seq.Steps {
		h.Write(seq.Steps[i].Data)
	}
	p.sha = h
	return nil
}

// imageHash hashes an image's pages once.
func (s *search) imageHash(img *ovmf.Image) (measure.Digest, error) {
	s.hashesMu.Lock()
	defer s.hashesMu.Unlock()
	if d, ok := s.hashes[img]; ok {
		return d, nil
	}
	d, err := img.Hash()
	if err != nil {
		return d, &unusableError{err}
	}
	s.hashes[img] = d
	return d, nil
}

// vmsaPages returns the save areas of the first vCPU and the others.
func (s *search) vmsaPages(p *pair) (bsp, ap *vmsaPage, err error) {
	if bsp, err = s.vmsaPage(p.cpu.vcpu, measure.ResetEIP); err != nil {
		return nil, nil, err
	}
	ap, err = s.vmsaPage(p.cpu.vcpu, *p.prefix.firmware.ResetEIP)
	return bsp, ap, err
}

func (s *search) vmsaPage(v measure.VCPU, eip uint32) (*vmsaPage, error) {
	v.EIP = eip
	s.pagesMu.Lock()
	defer s.pagesMu.Unlock()
	if p, ok := s.pages[v]; ok {
		return p, nil
	}
	vmsa, err := v.VMSA()
	if err != nil {
		return nil, err
	}
	page := vmsa.Page()
	p := &vmsaPage{page, measure.PageDigest(page)}
	s.pages[v] = p
	return p, nil
}

// unexplained lists the parts of the launch that may hold anything. The vCPUs
// are not among them: what was tried for them is all that is known to exist.
func (s *search) unexplained() ([]Region, error) {
	seq, err := s.base.Sequence()
	if err != nil {
		return nil, err
	}
	var out []Region
	for _, st := range seq.Steps {
		r := Region{Name: st.Source, GPA: st.GPA}
		switch st.Source {
		case "firmware":
			r.Tried = countOf(1+len(s.candidates.Firmwares), "build")
		case "kernel hashes":
			r.Tried = countOf(1+len(s.candidates.Kernels), "kernel") + ", " + countOf(1+len(s.candidates.Initrds), "initrd") + ", " +
				countOf(len(cmdlines(s.base.Boot.Cmdline, s.candidates.Cmdlines)), "command line")
		default:
			continue
		}
		out = append(out, r)
	}
	if !seq.Start.IsZero() {
		out = append([]Region{{Name: "firmware", GPA: s.base.Firmware.GPA(), Tried: countOf(1+len(s.candidates.Firmwares), "build")}}, out...)
	}
	return append(out, Region{
		Name: "vCPUs", GPA: measure.VMSAGPA,
		Tried: "1 to 512 vCPUs of every CPU model of QEMU and every SNP processor, guest features, x87 and SSE state, EC2's and GCE's registers",
	}), nil
}

// countOf says how many of something there are.
func countOf(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
