package attest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/evtpm/evtpm/attest/attesttest"
	"github.com/evtpm/evtpm/attest/evidence"
)

// Parts of TPM structures for the cases about the vTPM.

func rsassa(hash tpm2.TPMAlgID) tpm2.TPMTRSAScheme {
	return tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: hash})}
}

func ecdsaForRSA() tpm2.TPMTRSAScheme {
	return tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}
}

func modulus(b byte, n int) tpm2.TPMUPublicID {
	return tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Repeat([]byte{b}, n)})
}

// storageSymmetric is what a storage key has and a signing key has not.
func storageSymmetric() tpm2.TPMTSymDefObject {
	parms, err := tpm2.RSASRKTemplate.Parameters.RSADetail()
	if err != nil {
		panic(err)
	}
	return parms.Symmetric
}

func eccParms(p *tpm2.TPMTPublic) *tpm2.TPMSECCParms {
	parms, err := p.Parameters.ECCDetail()
	if err != nil {
		panic(err)
	}
	fresh := *parms
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &fresh)
	return &fresh
}

// offCurve is an AK whose point is not on P-256.
func offCurve() tpm2.TPMTPublic {
	p := attesttest.NewVTPM(3, true).AK
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: bytes.Repeat([]byte{1}, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: bytes.Repeat([]byte{1}, 32)},
	})
	return p
}

// anotherAK is a good AK of another TPM, as TPM2B_PUBLIC.
func anotherAK() []byte {
	v := attesttest.NewVTPM(3, false)
	v.AK.Unique = attesttest.NewVTPM(5, false).EK.Unique
	return v.AKPublic()
}

func quoteInfo(a *tpm2.TPMSAttest) *tpm2.TPMSQuoteInfo {
	q, err := a.Attested.Quote()
	if err != nil {
		panic(err)
	}
	return q
}

func certifyInfo() tpm2.TPMUAttest {
	return tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{})
}

func timeInfo() tpm2.TPMUAttest {
	return tpm2.NewTPMUAttest(tpm2.TPMSTAttestTime, &tpm2.TPMSTimeAttestInfo{})
}

// serveChanged plays an agent that answers another challenge than the one that
// it was given.
func serveChanged(c net.Conn, m *attesttest.Machine, change func(*evidence.Challenge)) error {
	send := func(t evidence.FrameType, v any) error {
		b, err := json.Marshal(v)
		return errors.Join(err, evidence.WriteFrame(c, t, b))
	}
	receive := func(v any) error {
		_, b, err := evidence.ReadFrame(c, 0)
		return errors.Join(err, json.Unmarshal(b, v))
	}
	var challenge evidence.Challenge
	if err := errors.Join(send(evidence.FrameHello, evidence.Hello{}), receive(&challenge)); err != nil {
		return err
	}
	change(&challenge)
	var a evidence.Activate
	if err := errors.Join(send(evidence.FrameEvidence, m.Answer(challenge)), receive(&a)); err != nil {
		return err
	}
	secret, err := m.TPM.Activate(a.CredentialBlob, a.Secret)
	return errors.Join(err, send(evidence.FrameActivated, evidence.Activated{CertInfo: secret}))
}

// contextWithTimeout ends soon.
func contextWithTimeout(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), 100*time.Millisecond)
}
