package explain

import (
	"context"
	"fmt"
	"strconv"

	"github.com/evtpm/evtpm/measure"
)

// A Variant is a launch that may be what was found: of an SVSM image under
// another host profile, say.
type Variant struct {
	Sequence    *measure.Sequence
	Differences []Difference // from what is expected; none for that itself

	// VCPUs is set where the host measures every vCPU's VMSA: the digest after
	// each of them is compared, since it is that of a launch with so many vCPUs,
	// of which Expected are expected.
	VCPUs    bool
	Expected int
}

// Sequences looks for the digest among variants, and returns the one with the
// fewest differences. A variant that could not be launched is passed over.
func Sequences(ctx context.Context, digest measure.Digest, variants []Variant) (*Result, error) {
	r := new(Result)
	var best []Difference
	for _, v := range variants {
		if err := ctx.Err(); err != nil {
			return r, fmt.Errorf("explain: no match among the first %d variants: %w", r.Tried, err)
		}
		var counts []measure.Digest
		var err error
		if v.VCPUs {
			counts, err = v.Sequence.VMSAChain()
		} else {
			counts = make([]measure.Digest, 1)
			counts[0], err = v.Sequence.LaunchDigest()
		}
		if err != nil {
			continue
		}
		r.Tried += int64(len(counts))
		for i, d := range counts {
			if d != digest {
				continue
			}
			diffs := v.Differences[:len(v.Differences):len(v.Differences)]
			if n := i + 1; v.VCPUs && n != v.Expected {
				diffs = append(diffs, Difference{"vcpus", strconv.Itoa(v.Expected), strconv.Itoa(n), fmt.Sprintf("%d vCPUs instead of %d", n, v.Expected)})
			}
			if !r.Matched || len(diffs) < len(best) {
				r.Matched, best = true, diffs
			}
		}
	}
	r.Differences = best
	return r, nil
}
