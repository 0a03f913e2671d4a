package ovmf

import (
	"fmt"

	"github.com/evtpm/evtpm/measure"
)

// Axes are the values over which a matrix of launch digests runs. An axis that
// is empty has the one value of the options.
type Axes struct {
	VCPUs      []int
	Signatures []uint32
	Features   []uint64
	// Hashes are kernel hashes; a nil element is kernel-hashes=off.
	Hashes []*measure.KernelHashes
}

// A Cell is one combination of a matrix: indices into its axes.
type Cell struct{ VCPUs, Signature, Features, Hashes int }

// Matrix calls yield with the launch digest of every combination, vCPU counts
// running fastest, hashes slowest. The firmware is hashed once, and one pass
// over the VMSAs serves all counts. Only SNP has digests that can be continued
// so.
func (img *Image) Matrix(o LaunchOptions, axes Axes, yield func(Cell, measure.Digest)) error {
	if o.Mode != measure.ModeSNP && o.Mode != "" {
		return fmt.Errorf("matrix: found mode %q, expected snp", o.Mode)
	}
	if len(axes.VCPUs) == 0 {
		axes.VCPUs = []int{o.VCPUs}
	}
	if len(axes.Signatures) == 0 {
		axes.Signatures = []uint32{o.CPUSignature}
	}
	if len(axes.Hashes) == 0 {
		axes.Hashes = []*measure.KernelHashes{o.Hashes}
	}
	if len(axes.Features) == 0 {
		axes.Features = []uint64{o.features()}
	}
	largest := 0
	for _, n := range axes.VCPUs {
		if n < 1 || n > measure.MaxVCPUs {
			return fmt.Errorf("matrix: vCPUs: found %d, expected 1 to %d", n, measure.MaxVCPUs)
		}
		largest = max(largest, n)
	}
	hash, err := img.Hash()
	if err != nil {
		return err
	}
	light := *img
	light.Data, light.Prefix = nil, hash
	chains := make(map[chainKey][]measure.Digest)
	for h, hashes := range axes.Hashes {
		o.Hashes = hashes
		for f, features := range axes.Features {
			for s, signature := range axes.Signatures {
				key := chainKey{h, features, signature}
				chain := chains[key]
				if chain == nil {
					o.GuestFeatures, o.RawFeatures, o.CPUSignature, o.VCPUs = features, true, signature, largest
					seq, err := light.Sequence(o)
					if err != nil {
						return err
					}
					if chain, err = seq.VMSAChain(); err != nil {
						return err
					}
					chains[key] = chain
				}
				for v, n := range axes.VCPUs {
					yield(Cell{v, s, f, h}, chain[n-1])
				}
			}
		}
	}
	return nil
}

// chainKey names a pass over the VMSAs.
type chainKey struct {
	hashes    int
	features  uint64
	signature uint32
}
