package agent

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/evtpm/evtpm/attest/evidence"
)

const (
	// ekHandle is where TCG's EK profile keeps a persistent RSA-2048 EK (TCG EK
	// Credential Profile 2.6, table 2); the ACSAC prototype's vTPM does.
	ekHandle = 0x81010001

	// pcrCount is the number of PCRs of a PC client TPM.
	pcrCount = 24

	// quoteTries bounds how often a quote is repeated because a PCR was
	// extended between the quote and the reading of the PCRs.
	quoteTries = 5
)

// akTemplate is a restricted ECC P-256 signing key: the TPM signs with it only
// what the TPM itself made. As a primary key it comes out of the hierarchy's
// seed, so an agent that starts again within a boot has the same AK.
var akTemplate = tpm2.TPMTPublic{
	Type:    tpm2.TPMAlgECC,
	NameAlg: tpm2.TPMAlgSHA256,
	ObjectAttributes: tpm2.TPMAObject{
		FixedTPM:            true,
		FixedParent:         true,
		SensitiveDataOrigin: true,
		UserWithAuth:        true,
		NoDA:                true,
		Restricted:          true,
		SignEncrypt:         true,
	},
	Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		Scheme: tpm2.TPMTECCScheme{
			Scheme:  tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
		},
		CurveID: tpm2.TPMECCNistP256,
	}),
}

// vtpm is the agent's view of the TPM: its two keys, made at first use.
type vtpm struct {
	tpm transport.TPM

	ek, ak *key
}

// key is a key in the TPM.
type key struct {
	handle     tpm2.TPMHandle
	name       tpm2.TPM2BName
	public     []byte // TPM2B_PUBLIC
	persistent bool
}

// keys makes the EK and the AK unless they are there.
func (t *vtpm) keys() error {
	if t.ek == nil {
		ek, err := t.findEK()
		if err != nil {
			return fmt.Errorf("EK: %w", err)
		}
		t.ek = ek
	}
	if t.ak == nil {
		ak, err := t.createPrimary(akTemplate, tpm2.TPMRHEndorsement)
		if err != nil {
			// A guest may have given the endorsement hierarchy a password.
			var owner error
			if ak, owner = t.createPrimary(akTemplate, tpm2.TPMRHOwner); owner != nil {
				return fmt.Errorf("AK: in the endorsement hierarchy: %w; in the owner hierarchy: %w", err, owner)
			}
		}
		t.ak = ak
	}
	return nil
}

// findEK returns the persistent EK, or makes the EK of TCG template L-1.
func (t *vtpm) findEK() (*key, error) {
	rsp, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(ekHandle)}.Execute(t.tpm)
	if err == nil {
		return &key{handle: ekHandle, name: rsp.Name, public: tpm2.Marshal(rsp.OutPublic), persistent: true}, nil
	}
	return t.createPrimary(tpm2.RSAEKTemplate, tpm2.TPMRHEndorsement)
}

func (t *vtpm) createPrimary(template tpm2.TPMTPublic, hierarchy tpm2.TPMHandle) (*key, error) {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(template),
	}.Execute(t.tpm)
	if err != nil {
		return nil, fmt.Errorf("TPM2_CreatePrimary: %w", err)
	}
	return &key{handle: rsp.ObjectHandle, name: rsp.Name, public: tpm2.Marshal(rsp.OutPublic)}, nil
}

// flush removes the keys from the TPM's memory and forgets them.
func (t *vtpm) flush() error {
	var errs []error
	for _, k := range []*key{t.ek, t.ak} {
		if k == nil || k.persistent {
			continue
		}
		if _, err := (tpm2.FlushContext{FlushHandle: k.handle}).Execute(t.tpm); err != nil {
			errs = append(errs, fmt.Errorf("TPM2_FlushContext: %w", err))
		}
	}
	t.ek, t.ak = nil, nil
	return errors.Join(errs...)
}

// fill adds what the TPM has to say to the evidence: keys, quote, PCRs.
func (t *vtpm) fill(ev *evidence.Evidence, c *evidence.Challenge) error {
	err := t.tryFill(ev, c)
	if err != nil && errors.As(err, new(tpm2.TPMRC)) {
		// The TPM may have lost the keys (a reset, a suspended guest): the next
		// try makes them anew. Flushing keys that are gone fails, rightly.
		_ = t.flush()
		err = t.tryFill(ev, c)
	}
	return err
}

func (t *vtpm) tryFill(ev *evidence.Evidence, c *evidence.Challenge) error {
	if err := t.keys(); err != nil {
		return err
	}
	ev.EKPublic, ev.AKPublic = t.ek.public, t.ak.public
	var err error
	ev.PCRs, ev.Quote, ev.QuoteSignature, err = t.quote(c)
	return err
}

// quote signs the chosen PCRs with the AK, and reads them. The values returned
// are those that were signed.
func (t *vtpm) quote(c *evidence.Challenge) (pcrs []evidence.PCR, quote, signature []byte, err error) {
	alg, err := bankAlg(c.PCRBank)
	if err != nil {
		return nil, nil, nil, err
	}
	extra := sha256.Sum256(c.Nonce)
	for range quoteTries {
		rsp, err := tpm2.Quote{
			SignHandle:     tpm2.AuthHandle{Handle: t.ak.handle, Name: t.ak.name, Auth: tpm2.PasswordAuth(nil)},
			QualifyingData: tpm2.TPM2BData{Buffer: extra[:]},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			PCRSelect:      selection(alg, c.PCRs),
		}.Execute(t.tpm)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("TPM2_Quote: %w", err)
		}
		attest, err := rsp.Quoted.Contents()
		if err != nil {
			return nil, nil, nil, fmt.Errorf("TPM2_Quote: %w", err)
		}
		info, err := attest.Attested.Quote()
		if err != nil {
			return nil, nil, nil, fmt.Errorf("TPM2_Quote: %w", err)
		}
		if pcrs, err = t.readPCRs(c.PCRBank, alg, c.PCRs); err != nil {
			return nil, nil, nil, err
		}
		if bytes.Equal(info.PCRDigest.Buffer, digestOf(pcrs)) {
			return pcrs, rsp.Quoted.Bytes(), tpm2.Marshal(rsp.Signature), nil
		}
	}
	return nil, nil, nil, fmt.Errorf("the PCRs changed during each of %d quotes", quoteTries)
}

// digestOf is what a quote by the AK says of these PCRs: SHA-256, the AK's
// scheme, over the values in the order of PCR numbers.
func digestOf(pcrs []evidence.PCR) []byte {
	h := sha256.New()
	for _, p := range pcrs {
		h.Write(p.Value)
	}
	return h.Sum(nil)
}

// readPCRs reads the PCRs named, which are in ascending order; the TPM returns
// at most eight at a time.
func (t *vtpm) readPCRs(bank string, alg tpm2.TPMAlgID, want []int) ([]evidence.PCR, error) {
	out := make([]evidence.PCR, 0, len(want))
	for len(want) > 0 {
		rsp, err := tpm2.PCRRead{PCRSelectionIn: selection(alg, want)}.Execute(t.tpm)
		if err != nil {
			return nil, fmt.Errorf("TPM2_PCR_Read: %w", err)
		}
		got := selected(rsp.PCRSelectionOut, alg)
		values := rsp.PCRValues.Digests
		if len(got) == 0 || len(values) == 0 {
			return nil, fmt.Errorf("PCR bank %s is not active in this TPM", bank)
		}
		if len(got) != len(values) || len(got) > len(want) {
			return nil, fmt.Errorf("TPM2_PCR_Read: found %d values for %d PCRs", len(values), len(got))
		}
		for i, pcr := range got {
			if pcr != want[i] {
				return nil, fmt.Errorf("TPM2_PCR_Read: found PCR %d, expected PCR %d", pcr, want[i])
			}
			out = append(out, evidence.PCR{PCR: pcr, Value: values[i].Buffer})
		}
		want = want[len(got):]
	}
	return out, nil
}

// activate returns the secret of a credential made for the agent's EK and AK.
// The TPM gives it out only if the credential names this AK.
func (t *vtpm) activate(blob, secret []byte) ([]byte, error) {
	idObject, err := unwrap2B("credential_blob", blob)
	if err != nil {
		return nil, err
	}
	seed, err := unwrap2B("secret", secret)
	if err != nil {
		return nil, err
	}
	if err := t.keys(); err != nil {
		return nil, err
	}
	rsp, err := tpm2.ActivateCredential{
		ActivateHandle: tpm2.AuthHandle{Handle: t.ak.handle, Name: t.ak.name, Auth: tpm2.PasswordAuth(nil)},
		KeyHandle: tpm2.AuthHandle{
			Handle: t.ek.handle, Name: t.ek.name,
			Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16, ekPolicy),
		},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: idObject},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: seed},
	}.Execute(t.tpm)
	if err != nil {
		return nil, fmt.Errorf("TPM2_ActivateCredential: %w", err)
	}
	return rsp.CertInfo.Buffer, nil
}

// ekPolicy satisfies the EK's policy A: TPM2_PolicySecret(TPM_RH_ENDORSEMENT).
func ekPolicy(t transport.TPM, session tpm2.TPMISHPolicy, nonceTPM tpm2.TPM2BNonce) error {
	_, err := tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: session,
		NonceTPM:      nonceTPM,
	}.Execute(t)
	if err != nil {
		return fmt.Errorf("TPM2_PolicySecret: %w", err)
	}
	return nil
}

// unwrap2B returns the contents of a TPM2B structure: a big-endian u16 size,
// and exactly that many bytes.
func unwrap2B(name string, b []byte) ([]byte, error) {
	if len(b) < 2 {
		return nil, fmt.Errorf("%s: found %d bytes, expected a TPM2B structure", name, len(b))
	}
	if n := int(binary.BigEndian.Uint16(b)); n != len(b)-2 {
		return nil, fmt.Errorf("%s: size field is %d, but %d bytes follow", name, n, len(b)-2)
	}
	return b[2:], nil
}

// bankAlg returns the TPM's identifier of a PCR bank.
func bankAlg(bank string) (tpm2.TPMAlgID, error) {
	switch bank {
	case "sha256":
		return tpm2.TPMAlgSHA256, nil
	case "sha384":
		return tpm2.TPMAlgSHA384, nil
	}
	return 0, fmt.Errorf("pcr_bank: found %q, expected %q or %q", bank, "sha256", "sha384")
}

// checkPCRs accepts 1 to 24 PCR numbers in ascending order.
func checkPCRs(pcrs []int) error {
	if len(pcrs) == 0 {
		return errors.New("pcrs: found none, expected at least one")
	}
	last := -1
	for _, p := range pcrs {
		if p <= last || p >= pcrCount {
			return fmt.Errorf("pcrs: found %d after %d, expected ascending numbers below %d", p, last, pcrCount)
		}
		last = p
	}
	return nil
}

// selection makes a TPML_PCR_SELECTION of one bank: bit p%8 of byte p/8.
func selection(alg tpm2.TPMAlgID, pcrs []int) tpm2.TPMLPCRSelection {
	mask := make([]byte, pcrCount/8)
	for _, p := range pcrs {
		mask[p/8] |= 1 << (p % 8)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: alg, PCRSelect: mask}}}
}

// selected lists the PCRs of one bank in a selection, ascending.
func selected(s tpm2.TPMLPCRSelection, alg tpm2.TPMAlgID) []int {
	var out []int
	for _, sel := range s.PCRSelections {
		if sel.Hash != alg {
			continue
		}
		for i := range len(sel.PCRSelect) * 8 {
			if sel.PCRSelect[i/8]&(1<<(i%8)) != 0 {
				out = append(out, i)
			}
		}
	}
	return out
}
