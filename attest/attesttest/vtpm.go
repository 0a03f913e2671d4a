package attesttest

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"sync"

	"github.com/google/go-tpm/tpm2"
)

// A VTPM is a TPM of which only what attestation needs exists: an EK, an AK, a
// clock and PCRs. Its public areas and quotes are made with go-tpm's structures.
type VTPM struct {
	ek    *rsa.PrivateKey
	ak    crypto.Signer
	EK    tpm2.TPMTPublic
	AK    tpm2.TPMTPublic
	Clock tpm2.TPMSClockInfo
	PCRs  [24][]byte // SHA-256 bank
}

// ECKey is the P-256 key of every ECC AK made here.
var ECKey = sync.OnceValue(func() *ecdsa.PrivateKey {
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
})

// NewVTPM makes a vTPM whose EK is one of the keys of [RSAKey], and whose AK is
// RSA (RSASSA with SHA-256) or ECC (ECDSA P-256).
func NewVTPM(ek int, ecc bool) *VTPM {
	v := &VTPM{ek: RSAKey(ek), Clock: tpm2.TPMSClockInfo{Clock: 5000, ResetCount: 1, Safe: true}}
	v.EK = tpm2.RSAEKTemplate
	v.EK.Unique = rsaUnique(v.ek)
	for i := range v.PCRs {
		v.PCRs[i] = make([]byte, sha256.Size)
	}
	attributes := tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true}
	if ecc {
		key := ECKey()
		v.ak = key
		point := must(key.PublicKey.Bytes())
		v.AK = tpm2.TPMTPublic{
			Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes,
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
				Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
				Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA,
					Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
				CurveID: tpm2.TPMECCNistP256,
				KDF:     tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
			}),
			Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
			}),
		}
		return v
	}
	key := RSAKey(2)
	v.ak = key
	v.AK = tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
			Scheme: tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})},
			KeyBits: 2048,
		}),
		Unique: rsaUnique(key),
	}
	return v
}

func rsaUnique(key *rsa.PrivateKey) tpm2.TPMUPublicID {
	return tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.FillBytes(make([]byte, 256))})
}

// EKPublic and AKPublic are TPM2B_PUBLIC.
func (v *VTPM) EKPublic() []byte { return tpm2.Marshal(tpm2.New2B(v.EK)) }

// AKPublic is a TPM2B_PUBLIC.
func (v *VTPM) AKPublic() []byte { return tpm2.Marshal(tpm2.New2B(v.AK)) }

// Quote makes a TPMS_ATTEST over PCRs of the SHA-256 bank. Edit changes it before
// it is marshalled.
func (v *VTPM) Quote(extraData []byte, pcrs []int, edit func(*tpm2.TPMSAttest)) []byte {
	h := sha256.New()
	sel := make([]byte, 3)
	for _, p := range pcrs {
		h.Write(v.PCRs[p])
		sel[p/8] |= 1 << (p % 8)
	}
	name := must(tpm2.ObjectName(&v.AK))
	a := tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestQuote,
		QualifiedSigner: *name, ExtraData: tpm2.TPM2BData{Buffer: extraData}, ClockInfo: v.Clock,
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
			PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: sel}}},
			PCRDigest: tpm2.TPM2BDigest{Buffer: h.Sum(nil)},
		}),
	}
	if edit != nil {
		edit(&a)
	}
	return tpm2.Marshal(a)
}

// Sign makes the TPMT_SIGNATURE of a quote by the AK.
func (v *VTPM) Sign(quote []byte) []byte {
	digest := sha256.Sum256(quote)
	if key, ok := v.ak.(*ecdsa.PrivateKey); ok {
		r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			panic(err)
		}
		return tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: r.FillBytes(make([]byte, 32))},
			SignatureS: tpm2.TPM2BECCParameter{Buffer: s.FillBytes(make([]byte, 32))},
		})})
	}
	sig := must(rsa.SignPKCS1v15(rand.Reader, v.ak.(*rsa.PrivateKey), crypto.SHA256, digest[:]))
	return tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgRSASSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA, &tpm2.TPMSSignatureRSA{
		Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: sig},
	})})
}

// Activate is TPM2_ActivateCredential (TPM 2.0 Library, Part 1, 24): it opens a
// credential made for the EK and the Name of the AK.
func (v *VTPM) Activate(blob, secret []byte) ([]byte, error) {
	blob, err := unsized(blob)
	if err != nil {
		return nil, err
	}
	secret, err = unsized(secret)
	if err != nil {
		return nil, err
	}
	seed, err := rsa.DecryptOAEP(sha256.New(), nil, v.ek, secret, []byte("IDENTITY\x00"))
	if err != nil {
		return nil, err
	}
	if len(blob) < 2+sha256.Size {
		return nil, errors.New("credential is too short")
	}
	mac, encrypted := blob[2:2+sha256.Size], blob[2+sha256.Size:]
	name := must(tpm2.ObjectName(&v.AK)).Buffer
	hmacKey := tpm2.KDFa(crypto.SHA256, seed, "INTEGRITY", nil, nil, 256)
	h := hmac.New(sha256.New, hmacKey)
	h.Write(encrypted)
	h.Write(name)
	if !bytes.Equal(h.Sum(nil), mac) {
		return nil, errors.New("credential is for another object")
	}
	key := tpm2.KDFa(crypto.SHA256, seed, "STORAGE", name, nil, 128)
	plain := make([]byte, len(encrypted))
	cipher.NewCFBDecrypter(must(aes.NewCipher(key)), make([]byte, aes.BlockSize)).XORKeyStream(plain, encrypted)
	return unsized(plain)
}

func unsized(b []byte) ([]byte, error) {
	if len(b) < 2 || int(binary.BigEndian.Uint16(b)) != len(b)-2 {
		return nil, errors.New("size does not fit")
	}
	return b[2:], nil
}
