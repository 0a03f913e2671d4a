package main

import (
	"context"
	"fmt"

	"github.com/evtpm/evtpm/explain"
	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/svsmimg"
)

// explainSVSM looks for the digest among the launches of a spec's SVSM image:
// under other host profiles, with other vCPUs, with zero pages measured in the
// other way.
func explainSVSM(ctx context.Context, l *launchInput, digest []byte) (*explain.Result, error) {
	if len(digest) != measure.DigestSize {
		return nil, fmt.Errorf("digest: found %d bytes, expected %d", len(digest), measure.DigestSize)
	}
	expected := svsmimg.Profile(l.plan.HostProfile)
	signatures := []explain.Signature{{Name: l.CPUModel, Value: l.Options.CPUSignature}}
	for _, m := range measure.CPUModels() {
		signatures = append(signatures, explain.Signature{Name: m.Name, Value: m.Signature()})
	}
	var variants []explain.Variant
	seen := make(map[uint32]bool)
	for _, sig := range signatures {
		if seen[sig.Value] {
			continue
		}
		seen[sig.Value] = true
		for _, profile := range svsmimg.Profiles() {
			for _, way := range svsmWays(l.plan) {
				o := svsmimg.SequenceOptions{Profile: profile, CPUSignature: sig.Value, NativeZero: way.zero}
				v := explain.Variant{VCPUs: profile == svsmimg.ProfileKVM, Expected: l.Options.VCPUs}
				if v.VCPUs {
					o.VCPUs = measure.MaxVCPUs
				} else if sig.Value != l.Options.CPUSignature {
					continue // the file's VMSAs say it
				}
				var err error
				if v.Sequence, err = way.sequence(o); err != nil {
					continue // no launch on such a host
				}
				differ := func(field, expected, found, text string) {
					v.Differences = append(v.Differences, explain.Difference{Field: field, Expected: expected, Found: found, Text: text})
				}
				if profile != expected {
					differ("host_profile", string(expected), string(profile), fmt.Sprintf("host profile %s instead of %s", profile, expected))
				}
				if sig.Value != l.Options.CPUSignature {
					differ("cpu", l.CPUModel, sig.Name, fmt.Sprintf("CPU %s instead of %s", sig.Name, l.CPUModel))
				}
				if way.zero {
					differ("native_zero", "off", "on", "pages without data measured as the AMD-SP's zero pages")
				}
				if way.hardware {
					differ("platform", launch.PlatformSim, launch.PlatformSNP, "platform snp instead of sim: without the simulated SVSM")
				}
				variants = append(variants, v)
			}
		}
	}
	r, err := explain.Sequences(ctx, measure.Digest(digest), variants)
	if err == nil && !r.Matched {
		first := l.plan.Sequence.Steps[0]
		r.Unexplained = []explain.Region{{Name: "SVSM image", GPA: first.GPA, Tried: "1 image, every host profile, 1 to 512 vCPUs of every CPU model of QEMU"}}
	}
	return r, err
}

// An svsmWay is a way to launch an image that host and vCPUs do not decide.
type svsmWay struct {
	sequence func(svsmimg.SequenceOptions) (*measure.Sequence, error)
	zero     bool // pages without data by the AMD-SP's own page type
	hardware bool // as on platform snp, where the plan's is sim
}

// svsmWays lists the ways for a plan's image, the planned one first.
func svsmWays(p *launch.Plan) []svsmWay {
	ways := []svsmWay{{sequence: p.SVSMSequence}, {sequence: p.SVSMSequence, zero: true}}
	if p.Extracted != nil && !p.Extracted.SVSM {
		image := p.SVSMImage.Sequence
		ways = append(ways, svsmWay{sequence: image, hardware: true}, svsmWay{sequence: image, zero: true, hardware: true})
	}
	return ways
}
