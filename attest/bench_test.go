package attest_test

import (
	"crypto/ecdsa"
	"crypto/sha512"
	"crypto/x509"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
)

// benchReport is a report that verifies, with what is needed to verify it.
func benchReport(b *testing.B) (report []byte, o attest.Options) {
	b.Helper()
	m := attesttest.NewMachine(attesttest.Genoa)
	o = options(m)
	o.Certificates = append(o.Certificates, m.LeafCertificate(), m.Signer.ASK, m.Signer.ARK)
	return m.SignedReport([64]byte{1}), o
}

// bareSignature is the floor: SHA-384 and one ECDSA P-384 verification.
func bareSignature(report []byte) func() bool {
	key := &attesttest.LeafKey().PublicKey
	scalar := func(off int) *big.Int {
		be := make([]byte, 48)
		for i := range be {
			be[47-i] = report[off+i]
		}
		return new(big.Int).SetBytes(be)
	}
	r, s := scalar(attesttest.OffSignature), scalar(attesttest.OffSignatureS)
	return func() bool {
		digest := sha512.Sum384(report[:attesttest.OffSignature])
		return ecdsa.Verify(key, digest[:], r, s)
	}
}

func BenchmarkBareSignature(b *testing.B) {
	report, _ := benchReport(b)
	verify := bareSignature(report)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if !verify() {
				b.Fatal("the signature does not verify")
			}
		}
	})
}

// BenchmarkVerifyReport is the whole judgement of a bare report under the
// default policy, the chain being known.
func BenchmarkVerifyReport(b *testing.B) {
	report, o := benchReport(b)
	o.Cache = new(attest.ChainCache)
	o.Policy = attest.DefaultPolicy()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			v, err := attest.VerifyReport(b.Context(), report, nil, attest.Expect{}, o)
			if err != nil || !v.Trusted() {
				b.Fatal(err, reasons(v))
			}
		}
	})
}

// BenchmarkBesideBare does both in turn, on all processors, and reports how many
// times the bare signature a report costs: what else the machine does then slows
// both alike. Among a thousand machines' certificates the report's own has to be
// found.
func BenchmarkBesideBare(b *testing.B) {
	m := attesttest.NewMachine(attesttest.Genoa)
	report, o := benchReport(b)
	o.Cache = new(attest.ChainCache)
	o.Policy = attest.DefaultPolicy()
	b.Run("alone", func(b *testing.B) { besideBare(b, report, o) })
	var fleet []*x509.Certificate
	for i := range 1000 {
		l := attesttest.Leaf{ChipID: m.ChipID, Levels: m.Processor.Levels}
		l.ChipID[0], l.ChipID[1] = byte(i), byte(i>>8)
		fleet = append(fleet, m.Signer.Leaf(l))
	}
	o.Certificates = append(fleet, o.Certificates...)
	b.Run("among-1000", func(b *testing.B) { besideBare(b, report, o) })
}

func besideBare(b *testing.B, report []byte, o attest.Options) {
	verify := bareSignature(report)
	var mu sync.Mutex
	var bare, whole []time.Duration
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			start := time.Now()
			ok := verify()
			middle := time.Now()
			v, err := attest.VerifyReport(b.Context(), report, nil, attest.Expect{}, o)
			end := time.Now()
			if !ok || err != nil || !v.Trusted() {
				b.Fatal(ok, err, reasons(v))
			}
			mu.Lock()
			bare, whole = append(bare, middle.Sub(start)), append(whole, end.Sub(middle))
			mu.Unlock()
		}
	})
	slices.Sort(bare)
	slices.Sort(whole)
	n := len(bare) / 2
	b.ReportMetric(float64(whole[n])/float64(bare[n]), "times-bare")
}

// BenchmarkVerifyReportCold is the same with everything done anew, as in a
// process that judges one report.
func BenchmarkVerifyReportCold(b *testing.B) {
	report, o := benchReport(b)
	for b.Loop() {
		v, err := attest.VerifyReport(b.Context(), report, nil, attest.Expect{}, o)
		if err != nil || !v.Trusted() {
			b.Fatal(err, reasons(v))
		}
	}
}

// BenchmarkVerify is the judgement of whole evidence.
func BenchmarkVerify(b *testing.B) {
	m := attesttest.NewMachine(attesttest.Genoa)
	ev, golden, o := m.Evidence(), m.Golden(), options(m)
	o.Cache = new(attest.ChainCache)
	o.Policy = attest.DefaultPolicy()
	for b.Loop() {
		v, err := attest.Verify(b.Context(), ev, golden, o)
		if err != nil || !v.Trusted() {
			b.Fatal(err, reasons(v))
		}
	}
}
