package attest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// GUIDs of the SVSM's services (AMD 58019, chapters 7 and 8).
var (
	// GUIDServiceVTPM is the vTPM service.
	GUIDServiceVTPM = mustGUID("c476f1eb-0123-45a5-9641-b4e7dde5bfe3")
	// GUIDServicesManifest heads the manifest of all services.
	GUIDServicesManifest = mustGUID("63849ebb-3d92-4670-a1ff-58f9c94b87bb")
)

// Bounds of manifests.
const (
	servicesHeaderSize = 24 // GUID, total length u32, count u32
	servicesEntrySize  = 24 // GUID, offset u32, length u32
	maxServices        = 64
	maxManifest        = 64 << 10
	maxManifestKeys    = 16
)

// ErrManifest is wrapped by every error about a malformed manifest.
var ErrManifest = errors.New("malformed manifest")

// errNoVTPM says that a services manifest lists no vTPM.
var errNoVTPM = fmt.Errorf("%w: no vTPM service in it", ErrManifest)

// A Service is one entry of a services manifest.
type Service struct {
	GUID     GUID
	Manifest []byte
}

// ParseServices reads the manifest of all services (AMD 58019,
// SVSM_ATTEST_SERVICES): a header of GUID, total length and count, entries of
// GUID, offset and length (little-endian, offsets from the start of the header),
// then the data. The entries' data must lie behind the entries, without overlap,
// and fill the rest.
func ParseServices(b []byte) ([]Service, error) {
	bad := func(format string, args ...any) ([]Service, error) {
		return nil, fmt.Errorf("%w: %s", ErrManifest, fmt.Sprintf(format, args...))
	}
	if len(b) < servicesHeaderSize || len(b) > maxManifest {
		return bad("found %d bytes, expected %d to %d", len(b), servicesHeaderSize, maxManifest)
	}
	le := binary.LittleEndian
	if g := GUID(b[:16]).swapped(); g != GUIDServicesManifest {
		return bad("header is %s, expected %s", g, GUIDServicesManifest)
	}
	if n := le.Uint32(b[16:]); uint64(n) != uint64(len(b)) {
		return bad("length is %d, found %d bytes", n, len(b))
	}
	count := le.Uint32(b[20:])
	if count > maxServices {
		return bad("%d services, expected at most %d", count, maxServices)
	}
	end := uint64(servicesHeaderSize) + uint64(count)*servicesEntrySize
	if end > uint64(len(b)) {
		return bad("%d services do not fit %d bytes", count, len(b))
	}
	var out []Service
	for i := range int(count) {
		e := b[servicesHeaderSize+i*servicesEntrySize:]
		s := Service{GUID: GUID(e[:16]).swapped()}
		from, n := uint64(le.Uint32(e[16:])), uint64(le.Uint32(e[20:]))
		switch {
		case slices.ContainsFunc(out, func(o Service) bool { return o.GUID == s.GUID }):
			return bad("service %s is repeated", s.GUID)
		case from != end:
			return bad("service %s starts at %d, expected %d: no gap and no overlap", s.GUID, from, end)
		case from+n > uint64(len(b)):
			return bad("service %s ends at %d of %d bytes", s.GUID, from+n, len(b))
		}
		s.Manifest = b[from : from+n]
		end = from + n
		out = append(out, s)
	}
	if end != uint64(len(b)) {
		return bad("%d bytes behind the last service", uint64(len(b))-end)
	}
	return out, nil
}

// EncodeServices writes the manifest of all services. [ParseServices] reads it
// back.
func EncodeServices(services []Service) []byte {
	le := binary.LittleEndian
	offset := servicesHeaderSize + len(services)*servicesEntrySize
	of := GUIDServicesManifest.swapped()
	head := of[:]
	head = le.AppendUint32(head, 0)
	head = le.AppendUint32(head, uint32(len(services)))
	var data []byte
	for _, s := range services {
		of := s.GUID.swapped()
		head = append(head, of[:]...)
		head = le.AppendUint32(head, uint32(offset+len(data)))
		head = le.AppendUint32(head, uint32(len(s.Manifest)))
		data = append(data, s.Manifest...)
	}
	out := append(head, data...)
	le.PutUint32(out[16:], uint32(len(out)))
	return out
}

// parseVTPMManifest reads the vTPM's own manifest. Version 0 is the EK's
// TPMT_PUBLIC; version 1 is a version, a count (both big-endian) and as many
// TPM2B_PUBLIC, EKs and AKs.
func parseVTPMManifest(b []byte, version uint32) ([]*tpmPublic, error) {
	if len(b) > maxManifest {
		return nil, fmt.Errorf("%w: found %d bytes, expected at most %d", ErrManifest, len(b), maxManifest)
	}
	if version == 0 {
		p, err := parsePublic(b)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrManifest, err)
		}
		return []*tpmPublic{p}, nil
	}
	r := &tpmReader{b: b}
	if v := r.u32(); v != version {
		r.fault("the manifest says version %d, the evidence %d", v, version)
	}
	n := r.u32()
	if n == 0 || n > maxManifestKeys {
		r.fault("%d keys, expected 1 to %d", n, maxManifestKeys)
	}
	var keys []*tpmPublic
	for range n {
		p, err := parsePublic(r.sized())
		if err != nil {
			r.fault("key %d: %w", len(keys), err)
			break
		}
		keys = append(keys, p)
	}
	if err := r.end(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	return keys, nil
}

// vtpmManifest finds the vTPM's own manifest in what the binding delivers.
func vtpmManifest(manifest []byte, services bool) ([]byte, error) {
	if !services {
		return manifest, nil
	}
	list, err := ParseServices(manifest)
	if err != nil {
		return nil, err
	}
	for _, s := range list {
		if s.GUID == GUIDServiceVTPM {
			return s.Manifest, nil
		}
	}
	return nil, errNoVTPM
}
