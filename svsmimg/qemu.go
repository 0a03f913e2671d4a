package svsmimg

import (
	"fmt"
	"strconv"
	"strings"
)

// A QEMUVersion is a release of QEMU, or COCONUT-SVSM's own branch of it.
type QEMUVersion struct {
	Major, Minor int
	Coconut      bool // the branch svsm-v7.2, which is based on 11.1
}

// LatestQEMU is the newest release whose IGVM loader is known here.
var LatestQEMU = QEMUVersion{Major: 11, Minor: 1}

// ParseQEMUVersion reads a version such as 11.1 or 10.1.2, or "coconut".
func ParseQEMUVersion(text string) (QEMUVersion, error) {
	if text == "coconut" {
		return QEMUVersion{Major: 11, Minor: 1, Coconut: true}, nil
	}
	parts := strings.Split(text, ".")
	var v QEMUVersion
	if len(parts) < 2 || len(parts) > 3 {
		return v, fmt.Errorf("QEMU version %q: expected one such as 11.1, or coconut", clip(text))
	}
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return v, fmt.Errorf("QEMU version %q: expected one such as 11.1, or coconut", clip(text))
		}
		switch i {
		case 0:
			v.Major = int(n)
		case 1:
			v.Minor = int(n)
		}
	}
	return v, nil
}

// String returns the version as it is parsed.
func (v QEMUVersion) String() string {
	if v.Coconut {
		return "coconut"
	}
	return fmt.Sprintf("%d.%d", v.Major, v.Minor)
}

// Profile is the host profile that a file was made for, as far as it shows, where
// this QEMU loads it: COCONUT's branch runs on COCONUT's kernels, which measure
// the boot vCPU's VMSA alone.
func (v QEMUVersion) Profile(f *File) Profile {
	p := f.InferProfile()
	if v.Coconut && p == ProfileKVM {
		return ProfileKVMBSP
	}
	return p
}

func (v QEMUVersion) atLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// loadsIGVM reports whether the release has an IGVM loader at all.
func (v QEMUVersion) loadsIGVM() bool { return v.atLeast(10, 1) }

// loadsNative reports whether it takes a NATIVE file for a VM that is not
// confidential.
func (v QEMUVersion) loadsNative() bool { return v.atLeast(11, 0) }

// takes reports whether the loader knows a header (QEMU backends/igvm.c,
// handlers). Any other one ends the launch, optional or not.
func (v QEMUVersion) takes(t HeaderType) bool {
	switch t {
	case TypeSupportedPlatform, TypeGuestPolicy, TypePageData, TypeVPContext, TypeParameterArea, TypeParameterInsert,
		TypeMemoryMap, TypeVPCount, TypeEnvironmentInfo, TypeRequiredMemory, TypeSNPIDBlock:
		return v.loadsIGVM()
	case TypeMADT:
		return v.atLeast(11, 0)
	case TypeDeviceTree, TypeCommandLine:
		return v.Coconut
	}
	return false
}
