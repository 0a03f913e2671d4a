package measure

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"hash/maphash"
	"runtime"
	"sync"
	"sync/atomic"
)

// PAGE_INFO, the structure whose SHA-384 is the next launch digest (SNP ABI
// 56860, SNP_LAUNCH_UPDATE, "PAGE_INFO structure"). Little-endian.
const (
	pageInfoDigestCur = 0x00 // 48 bytes: the digest so far
	pageInfoContents  = 0x30 // 48 bytes: SHA-384 of the page, or zeros
	pageInfoLength    = 0x60 // u16: size of this structure
	pageInfoPageType  = 0x62 // u8
	pageInfoIMI       = 0x63 // u8: zero, no migration agent's page
	pageInfoVMPL1     = 0x65 // u8, after a reserved byte; then VMPL2, VMPL3
	pageInfoGPA       = 0x68 // u64
	pageInfoSize      = 0x70
)

// An Update is one page given to the AMD-SP, and the digest after it.
type Update struct {
	// Step is the index into Sequence.Steps, or into Sequence.VMSAs when VMSA is
	// set; Page counts the pages of the step.
	Step, Page int
	VMSA       bool

	Type PageType
	GPA  uint64

	// Contents is the SHA-384 of the page, or zero for types whose contents are
	// not measured.
	Contents Digest

	// After is the launch digest when this page has been folded in.
	After Digest
}

// Extend folds one page into a launch digest: contents is the page's SHA-384
// for PageNormal and PageVMSA, and zero for every other type.
func Extend(cur Digest, t PageType, gpa uint64, contents Digest) Digest {
	return extend(cur, t, gpa, contents, [3]uint8{})
}

func extend(cur Digest, t PageType, gpa uint64, contents Digest, perms [3]uint8) Digest {
	var info [pageInfoSize]byte
	copy(info[pageInfoDigestCur:], cur[:])
	copy(info[pageInfoContents:], contents[:])
	binary.LittleEndian.PutUint16(info[pageInfoLength:], pageInfoSize)
	info[pageInfoPageType] = byte(t)
	copy(info[pageInfoVMPL1:pageInfoVMPL1+3], perms[:])
	binary.LittleEndian.PutUint64(info[pageInfoGPA:], gpa)
	return sha512.Sum384(info[:])
}

// PageDigest is the SHA-384 of one page's contents.
func PageDigest(page []byte) Digest { return sha512.Sum384(page) }

// LaunchDigest folds the sequence as the AMD-SP does and returns the digest
// that a report's MEASUREMENT field will hold. It is for SNP sequences; those of
// SEV and SEV-ES have a [Sequence.SEVDigest].
func (s *Sequence) LaunchDigest() (Digest, error) { return s.Walk(nil) }

// PrefixDigest folds the steps and leaves out the VMSAs: the part that is the
// same for every vCPU count and CPU model.
func (s *Sequence) PrefixDigest() (Digest, error) {
	prefix := *s
	prefix.VMSAs = nil
	return prefix.Walk(nil)
}

// VMSAChain returns the launch digest after each VMSA: element n-1 is that of n
// vCPUs, since all but the last fold are the same for every count.
func (s *Sequence) VMSAChain() ([]Digest, error) {
	out := make([]Digest, 0, len(s.VMSAs))
	_, err := s.Walk(func(u Update) {
		if u.VMSA {
			out = append(out, u.After)
		}
	})
	return out, err
}

// Walk folds the sequence and calls visit for every page, in order. It returns
// the launch digest. A nil visit is allowed.
func (s *Sequence) Walk(visit func(Update)) (Digest, error) {
	if err := s.validateSNP(); err != nil {
		return Digest{}, err
	}
	contents := newPageDigests(s)
	cur := s.Start
	fold := func(steps []Step, ids [][]int32, vmsa bool) {
		for i := range steps {
			st := &steps[i]
			for p := range int(st.Size / PageSize) {
				u := Update{Step: i, Page: p, VMSA: vmsa, Type: st.Type, GPA: st.GPA + uint64(p)*PageSize}
				if st.Type == PageNormal || st.Type == PageVMSA {
					u.Contents = contents.zero
					if st.Data != nil {
						u.Contents = contents.digests[ids[i][p]]
					}
				}
				cur = extend(cur, u.Type, u.GPA, u.Contents, st.VMPLPerms)
				if visit != nil {
					u.After = cur
					visit(u)
				}
			}
		}
	}
	fold(s.Steps, contents.steps, false)
	fold(s.VMSAs, contents.vmsas, true)
	return cur, nil
}

// pageDigests holds the SHA-384 of every page of a sequence that has contents.
// Most of a firmware image is padding, and VMSAs come in two kinds, so equal
// pages are found first and hashed once.
type pageDigests struct {
	digests      []Digest
	steps, vmsas [][]int32 // for each step, the index of each page's digest
	zero         Digest    // of a page of zeros
}

func newPageDigests(s *Sequence) *pageDigests {
	var (
		out    = &pageDigests{steps: make([][]int32, len(s.Steps)), vmsas: make([][]int32, len(s.VMSAs))}
		unique [][]byte
		fills  [256]int32         // pages of one repeated byte, by that byte; 0 is none
		byHash map[uint64][]int32 // other pages
		seed   = maphash.MakeSeed()
		whole  = map[*byte][]int32{} // steps that share Data
	)
	index := func(page []byte) int32 {
		if bytes.Equal(page[1:], page[:len(page)-1]) {
			if fills[page[0]] == 0 {
				unique = append(unique, page)
				fills[page[0]] = int32(len(unique))
			}
			return fills[page[0]] - 1
		}
		if byHash == nil {
			byHash = make(map[uint64][]int32)
		}
		h := maphash.Bytes(seed, page)
		for _, id := range byHash[h] {
			if bytes.Equal(unique[id], page) {
				return id
			}
		}
		id := int32(len(unique))
		unique = append(unique, page)
		byHash[h] = append(byHash[h], id)
		return id
	}
	collect := func(steps []Step, ids [][]int32) {
		for i := range steps {
			data := steps[i].Data
			if data == nil {
				continue
			}
			if known, ok := whole[&data[0]]; ok && len(known) == len(data)/PageSize {
				ids[i] = known
				continue
			}
			ids[i] = make([]int32, len(data)/PageSize)
			for p := range ids[i] {
				ids[i][p] = index(data[p*PageSize : (p+1)*PageSize])
			}
			whole[&data[0]] = ids[i]
		}
	}
	collect(s.Steps, out.steps)
	collect(s.VMSAs, out.vmsas)
	out.digests = hashPages(unique)
	if needsZeroPage(s) {
		out.zero = sha512.Sum384(make([]byte, PageSize))
	}
	return out
}

func needsZeroPage(s *Sequence) bool {
	for _, steps := range [][]Step{s.Steps, s.VMSAs} {
		for i := range steps {
			if steps[i].Data == nil && (steps[i].Type == PageNormal || steps[i].Type == PageVMSA) {
				return true
			}
		}
	}
	return false
}

// hashPages hashes pages on all processors. A page takes some 5 µs, so that a
// goroutine is worth starting for a few dozen of them.
func hashPages(pages [][]byte) []Digest {
	const worthwhile = 32
	out := make([]Digest, len(pages))
	workers := min(runtime.GOMAXPROCS(0), len(pages)/worthwhile)
	if workers < 2 {
		for i, p := range pages {
			out[i] = sha512.Sum384(p)
		}
		return out
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(pages) {
					return
				}
				out[i] = sha512.Sum384(pages[i])
			}
		})
	}
	wg.Wait()
	return out
}
