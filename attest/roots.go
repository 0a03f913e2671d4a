package attest

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"embed"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"path"
	"sync"
)

// amdBundles are the certificate chains that AMD's key distribution service
// publishes for each product line (.../vcek/v1/Milan/cert_chain and
// .../vlek/v1/Milan/cert_chain). Tests hold them against go-sev-guest's.
//
//go:embed amd/*.pem
var amdBundles embed.FS

// pinnedARKs are the SHA-256 digests of AMD's root certificates in DER, by
// product line. A root counts as AMD's when its bytes have one of them, whatever
// its name.
var pinnedARKs = map[string]string{
	"Milan": "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
	"Genoa": "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
	"Turin": "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
}

// amdCertificates parses AMD's CA certificates (ARK, ASK, ASVK of each product
// line), once.
var amdCertificates = sync.OnceValue(func() []*x509.Certificate {
	var out []*x509.Certificate
	seen := map[[32]byte]bool{}
	files, err := amdBundles.ReadDir("amd")
	if err != nil {
		panic(fmt.Sprintf("embedded AMD certificates: %v", err))
	}
	for _, f := range files {
		bundle, err := amdBundles.ReadFile(path.Join("amd", f.Name()))
		if err != nil {
			panic(fmt.Sprintf("embedded AMD certificates: %v", err))
		}
		for rest := bundle; ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			sum := sha256.Sum256(block.Bytes)
			if seen[sum] {
				continue
			}
			seen[sum] = true
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				panic(fmt.Sprintf("embedded AMD certificate: %v", err))
			}
			out = append(out, c)
		}
	}
	return out
})

// AMDCertificates returns AMD's CA certificates for all product lines: roots
// (ARK) and intermediates (ASK for VCEK, ASVK for VLEK).
func AMDCertificates() []*x509.Certificate {
	return append([]*x509.Certificate(nil), amdCertificates()...)
}

// IsAMDRoot reports whether a certificate is one of AMD's roots, byte for byte.
func IsAMDRoot(c *x509.Certificate) bool {
	sum := sha256.Sum256(c.Raw)
	got := hex.EncodeToString(sum[:])
	for _, pin := range pinnedARKs {
		if got == pin {
			return true
		}
	}
	return false
}

// A rootSet decides which roots are trusted: AMD's, or simulated ones, never
// both.
type rootSet struct {
	sim []*x509.Certificate // nil: AMD's
}

// platform is the kind of root in the set: "snp" or "sim".
func (s rootSet) platform() string {
	if s.sim != nil {
		return PlatformSim
	}
	return PlatformSNP
}

// pinned reports whether the root is in the set, byte for byte.
func (s rootSet) pinned(c *x509.Certificate) bool {
	if s.sim == nil {
		return IsAMDRoot(c)
	}
	// A simulated root with AMD's bytes would make the two kinds one.
	if IsAMDRoot(c) {
		return false
	}
	for _, r := range s.sim {
		if bytes.Equal(r.Raw, c.Raw) {
			return true
		}
	}
	return false
}

// certificates are those that a chain may be completed with.
func (s rootSet) certificates() []*x509.Certificate {
	if s.sim != nil {
		return s.sim
	}
	return amdCertificates()
}

// Platforms, by the kind of root that signed a report.
const (
	PlatformSNP = "snp"
	PlatformSim = "sim"
)
