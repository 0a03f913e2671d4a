package measure

import (
	"errors"
	"fmt"
	"slices"
)

// MaxPages bounds a sequence: 4 GiB of pages, far above any image, and what a
// second of folding can do.
const MaxPages = 1 << 20

// MaxVCPUs is the largest vCPU count that is measured.
const MaxVCPUs = 512

// Validate checks everything that the AMD-SP or KVM would refuse: alignment,
// sizes, types, contents where there must be some, and pages given twice. All
// faults are reported at once.
func (s *Sequence) Validate() error {
	switch s.Mode {
	case ModeSNP, "":
		return s.validateSNP()
	case ModeSEV, ModeSEVES:
		return s.validateSEV()
	}
	return fmt.Errorf("launch sequence: found mode %q, expected snp, seves or sev", s.Mode)
}

func (s *Sequence) validateSNP() error {
	if s.Mode != ModeSNP && s.Mode != "" {
		return fmt.Errorf("launch sequence: found mode %q, expected snp: this digest is SNP's", s.Mode)
	}
	var errs []error
	var pages uint64
	for i := range s.Steps {
		st := &s.Steps[i]
		if err := st.validate(); err != nil {
			errs = append(errs, fmt.Errorf("launch step %d (%s): %w", i, st.Source, err))
			continue
		}
		if st.Type == PageVMSA && st.Size != PageSize {
			errs = append(errs, fmt.Errorf("launch step %d (%s): found a VMSA of %d bytes, expected one page", i, st.Source, st.Size))
		}
		pages += st.Size / PageSize
		if pages > MaxPages {
			return fmt.Errorf("launch sequence: found more than %d pages", MaxPages)
		}
	}
	for i := range s.VMSAs {
		st := &s.VMSAs[i]
		if err := st.validate(); err != nil {
			errs = append(errs, fmt.Errorf("VMSA %d (%s): %w", i, st.Source, err))
		} else if st.Type != PageVMSA || st.Size != PageSize {
			errs = append(errs, fmt.Errorf("VMSA %d (%s): found %d bytes of type %s, expected one vmsa page", i, st.Source, st.Size, st.Type))
		}
	}
	if len(s.VMSAs) > MaxVCPUs {
		errs = append(errs, fmt.Errorf("launch sequence: found %d VMSAs, expected at most %d", len(s.VMSAs), MaxVCPUs))
	}
	if len(errs) == 0 {
		errs = append(errs, s.checkOverlap())
	}
	return errors.Join(errs...)
}

// validate checks one SNP step by itself.
func (st *Step) validate() error {
	switch {
	case st.Type.String() == "invalid":
		return fmt.Errorf("found page type %d, expected 1 to 6", st.Type)
	case st.GPA%PageSize != 0:
		return fmt.Errorf("address 0x%x is not a multiple of 4096", st.GPA)
	case st.Size == 0:
		return errors.New("found size 0: the AMD-SP is given whole pages (QEMU: SNP_LAUNCH_UPDATE called with invalid address/length)")
	case st.Size%PageSize != 0:
		return fmt.Errorf("size 0x%x is not a multiple of 4096", st.Size)
	case st.GPA+st.Size-1 < st.GPA:
		return fmt.Errorf("0x%x bytes at 0x%x run over the end of the address space", st.Size, st.GPA)
	case st.Data == nil:
		return nil
	case st.Type != PageNormal && st.Type != PageVMSA:
		return fmt.Errorf("found contents for a page of type %s, whose contents are not measured", st.Type)
	case uint64(len(st.Data)) != st.Size:
		return fmt.Errorf("found %d bytes of contents, expected %d", len(st.Data), st.Size)
	}
	return nil
}

// checkOverlap refuses a page that is given twice: the RMP would refuse it, and
// a digest over it would describe no VM. VMSAs share an address by design, but
// with nothing else.
func (s *Sequence) checkOverlap() error {
	order := make([]*Step, 0, len(s.Steps)+len(s.VMSAs))
	for i := range s.Steps {
		order = append(order, &s.Steps[i])
	}
	for i := range s.VMSAs {
		if i == 0 || s.VMSAs[i].GPA != s.VMSAs[i-1].GPA {
			order = append(order, &s.VMSAs[i])
		}
	}
	slices.SortFunc(order, func(a, b *Step) int {
		switch {
		case a.GPA < b.GPA:
			return -1
		case a.GPA > b.GPA:
			return 1
		}
		return 0
	})
	for i := 1; i < len(order); i++ {
		a, b := order[i-1], order[i]
		if a.Type == PageVMSA && b.Type == PageVMSA && a.GPA == b.GPA {
			continue
		}
		if b.GPA <= a.GPA+a.Size-1 {
			return &OverlapError{A: *a, B: *b}
		}
	}
	return nil
}

// An OverlapError says that a page would be given to the AMD-SP twice.
type OverlapError struct{ A, B Step }

func (e *OverlapError) Error() string {
	return fmt.Sprintf("%s at 0x%x+0x%x overlaps %s at 0x%x+0x%x",
		e.A.Source, e.A.GPA, e.A.Size, e.B.Source, e.B.GPA, e.B.Size)
}
