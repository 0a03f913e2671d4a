package attest_test

import (
	"crypto/ecdsa"
	"crypto/sha512"
	"crypto/x509"
	"math/big"
	"testing"

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

// BenchmarkBareSignature is the floor: SHA-384 and one ECDSA P-384 verification.
func BenchmarkBareSignature(b *testing.B) {
	report, _ := benchReport(b)
	key := &attesttest.LeafKey().PublicKey
	scalar := func(off int) *big.Int {
		be := make([]byte, 48)
		for i := range be {
			be[47-i] = report[off+i]
		}
		return new(big.Int).SetBytes(be)
	}
	r, s := scalar(attesttest.OffSignature), scalar(attesttest.OffSignatureS)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			digest := sha512.Sum384(report[:attesttest.OffSignature])
			if !ecdsa.Verify(key, digest[:], r, s) {
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

// BenchmarkVerifyReportFleet is the same with a bundle of a thousand machines'
// certificates.
func BenchmarkVerifyReportFleet(b *testing.B) {
	m := attesttest.NewMachine(attesttest.Genoa)
	report, o := benchReport(b)
	o.Cache = new(attest.ChainCache)
	o.Policy = attest.DefaultPolicy()
	var fleet []*x509.Certificate
	for i := range 1000 {
		l := attesttest.Leaf{ChipID: m.ChipID, Levels: m.Processor.Levels}
		l.ChipID[0], l.ChipID[1] = byte(i), byte(i>>8)
		fleet = append(fleet, m.Signer.Leaf(l))
	}
	o.Certificates = append(fleet, o.Certificates...)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			v, err := attest.VerifyReport(b.Context(), report, nil, attest.Expect{}, o)
			if err != nil || !v.Trusted() {
				b.Fatal(err, reasons(v))
			}
		}
	})
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
