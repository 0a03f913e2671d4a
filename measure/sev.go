package measure

import (
	"crypto/sha256"
	"errors"
	"fmt"
)

// sevGranule is the unit of LAUNCH_UPDATE_DATA (SEV API, AMD publication
// 55766): addresses and lengths are multiples of 16 bytes.
const sevGranule = 16

// SEVDigest is the launch digest of a SEV or SEV-ES sequence: the SHA-256 of
// all contents in order, the VMSAs last (SEV API 55766, LAUNCH_UPDATE_DATA,
// LAUNCH_UPDATE_VMSA). The measurement that such a VM's owner sees is an HMAC
// over this digest, the policy and a nonce; it is not this value.
func (s *Sequence) SEVDigest() ([sha256.Size]byte, error) {
	if err := s.validateSEV(); err != nil {
		return [sha256.Size]byte{}, err
	}
	h := sha256.New()
	for i := range s.Steps {
		h.Write(s.Steps[i].Data)
	}
	for i := range s.VMSAs {
		h.Write(s.VMSAs[i].Data)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

func (s *Sequence) validateSEV() error {
	if s.Mode != ModeSEV && s.Mode != ModeSEVES {
		return fmt.Errorf("launch sequence: found mode %q, expected sev or seves: this digest is SEV's", s.Mode)
	}
	var errs []error
	if !s.Start.IsZero() {
		errs = append(errs, errors.New("launch sequence: a precomputed digest is for snp: SHA-256 over the whole contents cannot be resumed"))
	}
	for i := range s.Steps {
		st := &s.Steps[i]
		switch {
		case st.Type != PageNormal:
			errs = append(errs, fmt.Errorf("launch step %d (%s): found page type %s, expected normal", i, st.Source, st.Type))
		case st.Size == 0 || st.Size%sevGranule != 0:
			errs = append(errs, fmt.Errorf("launch step %d (%s): found size %d, expected a multiple of %d", i, st.Source, st.Size, sevGranule))
		case uint64(len(st.Data)) != st.Size:
			errs = append(errs, fmt.Errorf("launch step %d (%s): found %d bytes of contents, expected %d", i, st.Source, len(st.Data), st.Size))
		}
	}
	if s.Mode == ModeSEV && len(s.VMSAs) != 0 {
		errs = append(errs, errors.New("launch sequence: found VMSAs, which SEV without ES does not measure"))
	}
	for i := range s.VMSAs {
		st := &s.VMSAs[i]
		if st.Type != PageVMSA || st.Size != PageSize || len(st.Data) != PageSize {
			errs = append(errs, fmt.Errorf("VMSA %d (%s): found %d bytes of type %s, expected one vmsa page", i, st.Source, len(st.Data), st.Type))
		}
	}
	if len(s.VMSAs) > MaxVCPUs {
		errs = append(errs, fmt.Errorf("launch sequence: found %d VMSAs, expected at most %d", len(s.VMSAs), MaxVCPUs))
	}
	return errors.Join(errs...)
}
