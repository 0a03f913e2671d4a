package attest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
)

// vlek is a good machine whose report a VLEK signed.
func vlek() *attesttest.Machine {
	m := genoa()
	m.Leaf = &attesttest.Leaf{VLEK: true, Levels: m.Processor.Levels}
	m.EditReport = func(r attesttest.Report) {
		r.PutU32(attesttest.OffSignerInfo, 1<<2)
		r.Put(attesttest.OffChipID, make([]byte, 64))
	}
	return m
}

func TestS29_SignerKind(t *testing.T) {
	want(t, judge(t, vlek()))
	notAllowed := is(attest.CheckPolicySigner, attest.ReasonSignerNotAllowed)
	want(t, judgeWith(t, vlek(), func(p *attest.Policy) { p.Signers = []string{"vcek"} }), notAllowed)
	want(t, judgeWith(t, genoa(), func(p *attest.Policy) { p.Signers = []string{"vlek"} }), notAllowed)

	kind := is(attest.CheckSignerKind, attest.ReasonSignerKind)
	// The report names a VLEK, the certificate is a VCEK's.
	m := withReport(func(r attesttest.Report) { r.PutU32(attesttest.OffSignerInfo, 1<<2) })
	want(t, judge(t, m), kind)
	// And the reverse.
	m = vlek()
	m.EditReport = nil
	want(t, judge(t, m), kind)
}

func TestS31_LeafUnderTheOtherIntermediate(t *testing.T) {
	role := is(attest.CheckChain, attest.ReasonChainRole)
	m := genoa()
	m.Leaf = &attesttest.Leaf{ChipID: m.ChipID, Levels: m.Processor.Levels, WrongIntermediate: true}
	o := options(m)
	o.Certificates = []*x509.Certificate{m.Signer.ASVK}
	want(t, verify(t, m, o), role)

	m = vlek()
	m.Leaf.WrongIntermediate = true
	o = options(m)
	o.Certificates = []*x509.Certificate{m.Signer.ASK}
	want(t, verify(t, m, o), role)

	// A VCEK that calls itself otherwise.
	m = withLeaf(func(c *x509.Certificate) { c.Subject = attesttest.Name("VCEK") })
	want(t, judge(t, m), role)
}

func TestS32_WrongProduct(t *testing.T) {
	mismatch := is(attest.CheckProduct, attest.ReasonProductMismatch)
	// A Milan chain for a report that says Genoa.
	m := genoa()
	m.Signer = attesttest.NewSigner("Milan")
	v := judge(t, m)
	want(t, v, mismatch)
	if v.Product != "" {
		t.Errorf("product is %q although nothing agrees", v.Product)
	}
	if v = judge(t, genoa()); v.Product != "Genoa" || found(v, attest.CheckProduct) != "Genoa (19/11/01)" {
		t.Errorf("product is %q, found %q", v.Product, found(v, attest.CheckProduct))
	}
	if v = judge(t, withReport(version2)); v.Product != "Genoa" || found(v, attest.CheckProduct) != "Genoa" {
		t.Errorf("product is %q, found %q", v.Product, found(v, attest.CheckProduct))
	}
	// A leaf under Genoa's root that says Milan.
	m = genoa()
	m.Leaf = &attesttest.Leaf{ChipID: m.ChipID, Levels: m.Processor.Levels, Product: "Milan-B0"}
	want(t, judge(t, m), mismatch)
	// Before version 3, leaf and chain must still agree.
	m = genoa()
	m.Leaf = &attesttest.Leaf{ChipID: m.ChipID, Levels: m.Processor.Levels, Product: "Milan"}
	m.EditReport = version2
	o := options(m)
	o.Policy = attest.PermissivePolicy()
	want(t, verify(t, m, o), mismatch)
	// A processor that nobody knows, and one that the policy does not list.
	m = withReport(func(r attesttest.Report) { r.Put(attesttest.OffCPUID, []byte{0x17, 0x31, 0}) })
	want(t, judge(t, m), is(attest.CheckProduct, attest.ReasonProductUnknown))
	m = withLeaf(func(c *x509.Certificate) {
		attesttest.SetExtension(c, attesttest.OIDProductName, attesttest.IA5("Rome"))
	})
	m.EditReport = version2
	o.SimRoots = []*x509.Certificate{m.Signer.ARK}
	wantAny(t, verify(t, m, o), is(attest.CheckProduct, attest.ReasonProductUnknown))
	want(t, judgeWith(t, genoa(), func(p *attest.Policy) { p.Products = []string{"Milan", "Turin"} }),
		is(attest.CheckPolicyProduct, attest.ReasonProductNotAllowed))
	// Venice is known by name, and has neither roots nor floors.
	m = withReport(func(r attesttest.Report) { r.Put(attesttest.OffCPUID, []byte{0x1A, 0x50, 0}) })
	v = judge(t, m)
	wantAny(t, v, mismatch)
	wantAny(t, v, is(attest.CheckPolicyProduct, attest.ReasonProductNotAllowed))
	// A leaf with a stepping in its name is still of its line.
	m = genoa()
	m.Leaf = &attesttest.Leaf{ChipID: m.ChipID, Levels: m.Processor.Levels, Product: "Genoa-B1"}
	want(t, judge(t, m))
}

var arkUntrusted = is(attest.CheckChain, attest.ReasonARKUntrusted)

func TestS33_ForgedChainWithTheSameNames(t *testing.T) {
	// The whole chain is consistent and named like AMD's. Without simulated roots
	// only AMD's own bytes count.
	m := genoa()
	o := options(m)
	o.SimRoots = nil
	want(t, verify(t, m, o), arkUntrusted)

	// Another simulated root of the same name and key is not the pinned one.
	other := attesttest.NewImpostor("Genoa")
	o = options(m)
	o.SimRoots = []*x509.Certificate{other.ARK}
	if bytes.Equal(other.ARK.Raw, m.Signer.ARK.Raw) {
		t.Fatal("the two roots are the same")
	}
	o.Certificates = []*x509.Certificate{m.Signer.ARK}
	v := verify(t, m, o)
	wantAny(t, v, arkUntrusted)
	if v.Platform != "" {
		t.Errorf("platform is %q", v.Platform)
	}

	// AMD's roots are not trusted beside simulated ones, even if listed there.
	amd := attest.AMDCertificates()
	for _, c := range amd {
		if attest.IsAMDRoot(c) {
			o.SimRoots = append(o.SimRoots, c)
		}
	}
	wantAny(t, verify(t, m, o), arkUntrusted)
	for _, r := range realReports(t) {
		if len(r.certs) == 0 {
			continue
		}
		v, err := attest.VerifyReport(t.Context(), r.raw, nil, attest.Expect{}, attest.Options{
			Policy: attest.PermissivePolicy(), Now: r.at(), Certificates: r.certs, SimRoots: o.SimRoots,
		})
		if err != nil {
			t.Fatal(err)
		}
		wantAny(t, v, arkUntrusted)
	}
}

func TestS34_RootsArePinnedByBytes(t *testing.T) {
	// Look-alike roots carry AMD's names; none of them is one of AMD's roots.
	s := attesttest.NewSigner("Genoa")
	if attest.IsAMDRoot(s.ARK) {
		t.Error("a root of our own passes for AMD's")
	}
	found := 0
	for _, c := range attest.AMDCertificates() {
		if attest.IsAMDRoot(c) {
			found++
			forged := bytes.Clone(c.Raw)
			forged[len(forged)-1] ^= 1
			if f, err := x509.ParseCertificate(forged); err == nil && attest.IsAMDRoot(f) {
				t.Error("a root with another signature passes for AMD's")
			}
		}
	}
	if found != 3 {
		t.Errorf("found %d AMD roots, expected 3", found)
	}
}

func TestS34_PlatformOfGoldenValues(t *testing.T) {
	m := genoa()
	g := m.Golden()
	g.Platform = "snp"
	v, err := attest.Verify(t.Context(), m.Evidence(), g, options(m))
	if err != nil {
		t.Fatal(err)
	}
	want(t, v, is(attest.CheckPlatform, attest.ReasonPlatformMismatch))
}

func TestS35_CertificateOutOfDate(t *testing.T) {
	m := genoa()
	for _, c := range []struct {
		at     time.Time
		reason attest.Reason
	}{
		{attesttest.NotAfter.Add(time.Second), attest.ReasonCertificateExpired},
		{attesttest.NotBefore.Add(-time.Second), attest.ReasonCertificateNotYetValid},
	} {
		o := options(m)
		o.Now = c.at
		want(t, verify(t, m, o), is(attest.CheckCertificateTime, c.reason))
	}
	for _, at := range []time.Time{attesttest.NotBefore, attesttest.NotAfter} {
		o := options(m)
		o.Now = at
		want(t, verify(t, m, o))
	}
	// Each certificate of the chain counts, also a leaf that is shorter lived.
	m = withLeaf(func(c *x509.Certificate) { c.NotAfter = attesttest.Now.Add(-time.Hour) })
	want(t, judge(t, m), is(attest.CheckCertificateTime, attest.ReasonCertificateExpired))
}

func TestS36_ClockFarOff(t *testing.T) {
	m := genoa()
	for _, year := range []int{1970, 2100} {
		o := options(m)
		o.Now = time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
		want(t, verify(t, m, o), is(attest.CheckCertificateTime, attest.ReasonClockImplausible))
	}
}

func TestS41_ChipIDMismatch(t *testing.T) {
	mismatch := is(attest.CheckChipBinding, attest.ReasonChipIDMismatch)
	for _, i := range []int{0, 8, 63} {
		m := withReport(func(r attesttest.Report) { r[attesttest.OffChipID+i] ^= 1 })
		want(t, judge(t, m), mismatch)
	}
	// Turin's id has 8 bytes; they all count.
	for _, i := range []int{0, 7} {
		m := attesttest.NewMachine(attesttest.Turin)
		m.EditReport = func(r attesttest.Report) { r[attesttest.OffChipID+i] ^= 1 }
		want(t, judge(t, m), mismatch)
	}
	// On Milan and Genoa 8 bytes are not enough.
	m := genoa()
	m.Leaf = &attesttest.Leaf{ChipID: m.ChipID, Levels: m.Processor.Levels, Edit: func(c *x509.Certificate) {
		attesttest.SetExtension(c, attesttest.OIDHWID, m.ChipID[:8])
	}}
	want(t, judge(t, m), mismatch)
}

func TestS42_ChipIDMasked(t *testing.T) {
	masked := withReport(func(r attesttest.Report) { r.Put(attesttest.OffChipID, make([]byte, 64)) })
	want(t, judge(t, masked), is(attest.CheckChipBinding, attest.ReasonChipIDMasked))
	want(t, judgeWith(t, masked, func(p *attest.Policy) { p.AllowMaskedChipID = true }))
}

func TestS43_CertificateTable(t *testing.T) {
	m := genoa()
	good := m.CertTable()
	le := binary.LittleEndian
	entry := func(i int) int { return i * 24 }
	broken := is(attest.CheckCertificates, attest.ReasonCertificateTable)
	for name, edit := range map[string]func([]byte) []byte{
		"offset plus length wraps": func(b []byte) []byte {
			le.PutUint32(b[entry(0)+16:], 0xFFFFFFF0)
			le.PutUint32(b[entry(0)+20:], 0x20)
			return b
		},
		"offset inside the header": func(b []byte) []byte { le.PutUint32(b[entry(0)+16:], 24); return b },
		"length beyond the end":    func(b []byte) []byte { le.PutUint32(b[entry(2)+20:], 0xFFFF); return b },
		"length of four gigabytes": func(b []byte) []byte { le.PutUint32(b[entry(2)+20:], 0xFFFFFFFF); return b },
		"length zero":              func(b []byte) []byte { le.PutUint32(b[entry(1)+20:], 0); return b },
		"overlapping entries":      func(b []byte) []byte { copy(b[entry(1)+16:entry(1)+20], b[entry(0)+16:]); return b },
		"guid twice":               func(b []byte) []byte { copy(b[entry(1):entry(1)+16], b[entry(0):]); return b },
		"no terminating entry":     func(b []byte) []byte { return b[:entry(3)+23] },
		"no terminating entry, whole": func(b []byte) []byte {
			return b[:entry(3)]
		},
		"a certificate cut short": func(b []byte) []byte {
			le.PutUint32(b[entry(0)+20:], le.Uint32(b[entry(0)+20:])-1)
			return b
		},
		"garbage": func([]byte) []byte { return bytes.Repeat([]byte{0xA5}, 96) },
		"4000 entries": func([]byte) []byte {
			var list []attesttest.TableEntry
			for i := range 4000 {
				list = append(list, attesttest.TableEntry{GUID: [16]byte{byte(i), byte(i >> 8), 1}, Data: []byte{1}})
			}
			return attesttest.CertTable(list...)
		},
		"a million bytes": func([]byte) []byte { return make([]byte, 1<<20) },
	} {
		t.Run(name, func(t *testing.T) {
			table := edit(bytes.Clone(good))
			v, err := attest.VerifyReport(t.Context(), m.SignedReport([64]byte{1}), table, attest.Expect{}, options(m))
			if err != nil {
				t.Fatal(err)
			}
			wantAny(t, v, broken)
			if v.Class() != attest.ClassCertificates {
				t.Errorf("class is %d", v.Class())
			}
		})
	}
	// 96 bytes that make a parser with 32-bit sums panic.
	hostile := make([]byte, 96)
	copy(hostile, attest.GUIDVCEK[:])
	le.PutUint32(hostile[16:], 0xFFFFFFF0)
	le.PutUint32(hostile[20:], 0x20)
	if _, err := attest.ParseCertTable(hostile); err == nil {
		t.Error("the hostile table was accepted")
	}
}

func TestS44_LeafExtensions(t *testing.T) {
	malformed := is(attest.CheckLeaf, attest.ReasonLeafMalformed)
	set := attesttest.SetExtension
	octets := func(b []byte) []byte {
		der, err := asn1.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	chip := genoa().ChipID
	for name, edit := range map[string]func(*x509.Certificate){
		"structVersion missing":  func(c *x509.Certificate) { set(c, attesttest.OIDStructVersion, nil) },
		"productName missing":    func(c *x509.Certificate) { set(c, attesttest.OIDProductName, nil) },
		"blSPL missing":          func(c *x509.Certificate) { set(c, attesttest.OIDBootloader, nil) },
		"teeSPL missing":         func(c *x509.Certificate) { set(c, attesttest.OIDTEE, nil) },
		"snpSPL missing":         func(c *x509.Certificate) { set(c, attesttest.OIDSNP, nil) },
		"ucodeSPL missing":       func(c *x509.Certificate) { set(c, attesttest.OIDMicrocode, nil) },
		"hwID missing":           func(c *x509.Certificate) { set(c, attesttest.OIDHWID, nil) },
		"structVersion 2":        func(c *x509.Certificate) { set(c, attesttest.OIDStructVersion, attesttest.Int(2)) },
		"structVersion 1 no fmc": func(c *x509.Certificate) { set(c, attesttest.OIDStructVersion, attesttest.Int(1)) },
		"fmc in structVersion 0": func(c *x509.Certificate) { set(c, attesttest.OIDFMC, attesttest.Int(0)) },
		"snpSPL 256":             func(c *x509.Certificate) { set(c, attesttest.OIDSNP, attesttest.Int(256)) },
		"snpSPL negative":        func(c *x509.Certificate) { set(c, attesttest.OIDSNP, attesttest.Int(-1)) },
		"snpSPL a string":        func(c *x509.Certificate) { set(c, attesttest.OIDSNP, attesttest.IA5("27")) },
		"snpSPL trailing bytes":  func(c *x509.Certificate) { set(c, attesttest.OIDSNP, append(attesttest.Int(27), 0)) },
		"productName an integer": func(c *x509.Certificate) { set(c, attesttest.OIDProductName, attesttest.Int(1)) },
		"productName empty":      func(c *x509.Certificate) { set(c, attesttest.OIDProductName, attesttest.IA5("")) },
		"productName trailing":   func(c *x509.Certificate) { set(c, attesttest.OIDProductName, append(attesttest.IA5("Genoa"), 0)) },
		"productName of 300": func(c *x509.Certificate) {
			set(c, attesttest.OIDProductName, attesttest.IA5(string(bytes.Repeat([]byte("G"), 300))))
		},
		"reserved level set":    func(c *x509.Certificate) { set(c, attesttest.OIDSPL5, attesttest.Int(1)) },
		"hwID of 63 bytes":      func(c *x509.Certificate) { set(c, attesttest.OIDHWID, chip[:63]) },
		"hwID of 66 odd bytes":  func(c *x509.Certificate) { set(c, attesttest.OIDHWID, append(chip[:64:64], 0, 0)) },
		"hwID octets, one less": func(c *x509.Certificate) { set(c, attesttest.OIDHWID, append(octets(chip[:63]), 0)) },
		"hwID and cspID":        func(c *x509.Certificate) { set(c, attesttest.OIDCSPID, attesttest.IA5("CN=x")) },
		"unknown critical": func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}})
		},
		"cspID an integer, alone": func(c *x509.Certificate) {
			set(c, attesttest.OIDHWID, nil)
			set(c, attesttest.OIDCSPID, attesttest.Int(1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := judge(t, withLeaf(edit))
			wantAny(t, v, malformed)
			// The chain is judged all the same.
			if c := check(t, v, attest.CheckChain); c.Status != attest.Passed || v.Platform != attest.PlatformSim {
				t.Errorf("%+v", c)
			}
		})
	}
	for _, id := range []asn1.ObjectIdentifier{attesttest.OIDSPL4, attesttest.OIDSPL5, attesttest.OIDSPL6, attesttest.OIDSPL7} {
		wantAny(t, judge(t, withLeaf(func(c *x509.Certificate) { set(c, id, attesttest.Int(1)) })), malformed)
	}
	turin := attesttest.NewMachine(attesttest.Turin)
	turin.Leaf = &attesttest.Leaf{ChipID: turin.ChipID, Levels: turin.Processor.Levels, Edit: func(c *x509.Certificate) {
		set(c, attesttest.OIDStructVersion, attesttest.Int(2))
	}}
	wantAny(t, judge(t, turin), malformed)
	// What is wrong is said of each.
	for want, edit := range map[string]func(*x509.Certificate){
		"snpSPL: the extension is missing":      func(c *x509.Certificate) { set(c, attesttest.OIDSNP, nil) },
		"snpSPL: not an INTEGER":                func(c *x509.Certificate) { set(c, attesttest.OIDSNP, attesttest.IA5("27")) },
		"productName: the extension is missing": func(c *x509.Certificate) { set(c, attesttest.OIDProductName, nil) },
		"productName: not an IA5String":         func(c *x509.Certificate) { set(c, attesttest.OIDProductName, attesttest.Int(1)) },
		"neither hwID nor cspID is present":     func(c *x509.Certificate) { set(c, attesttest.OIDHWID, nil) },
		"found 300 characters, expected 1 to":   func(c *x509.Certificate) { set(c, attesttest.OIDProductName, attesttest.IA5(strings.Repeat("G", 300))) },
	} {
		if _, err := attest.ParseLeaf(withLeaf(edit).LeafCertificate()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, expected %q", err, want)
		}
	}
	// The bounds themselves.
	most, err := attest.ParseLeaf(withLeaf(func(c *x509.Certificate) {
		set(c, attesttest.OIDSNP, attesttest.Int(255))
		set(c, attesttest.OIDProductName, attesttest.IA5(strings.Repeat("G", 256)))
	}).LeafCertificate())
	if err != nil || most.TCB.SNP != 255 || len(most.ProductName) != 256 {
		t.Errorf("%+v, %v", most, err)
	}
	if l, err := attest.ParseLeaf(vlek().LeafCertificate()); err != nil || l.CSPID != "CN=cloud.example" || l.Kind != "vlek" {
		t.Errorf("%+v, %v", l, err)
	}
	// Keys of other kinds.
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m := genoa()
	for name, key := range map[string]any{"P-256": &p256.PublicKey, "RSA": &attesttest.RSAKey(6).PublicKey} {
		leaf := *m.LeafCertificate()
		leaf.ExtraExtensions = slices.Clone(leaf.Extensions)
		if _, err := attest.ParseLeaf(withKey(t, &leaf, key)); err == nil || err.Error() != "the key is not ECDSA P-384" {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What package x509 would not let through.
	if _, err := attest.ParseLeaf(m.Signer.ASK); err == nil || !strings.Contains(err.Error(), "it is a CA certificate") {
		t.Errorf("a CA certificate: %v", err)
	}
	twice := *m.LeafCertificate()
	twice.Extensions = append(slices.Clone(twice.Extensions), twice.Extensions[len(twice.Extensions)-1])
	if _, err := attest.ParseLeaf(&twice); err == nil || !strings.Contains(err.Error(), "is repeated") {
		t.Errorf("an extension twice: %v", err)
	}
	// Extensions that are no fault: known ones that are critical, unknown ones
	// that are not, AMD's either way.
	want(t, judge(t, withLeaf(func(c *x509.Certificate) {
		c.KeyUsage = x509.KeyUsageDigitalSignature
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: []byte{5, 0}})
		for i := range c.ExtraExtensions {
			if c.ExtraExtensions[i].Id.Equal(attesttest.OIDSNP) {
				c.ExtraExtensions[i].Critical = true
			}
		}
	})))
	// Only a chip's certificate of a known product has a URL.
	for name, machine := range map[string]*attesttest.Machine{
		"VLEK":            vlek(),
		"unknown product": withLeaf(func(c *x509.Certificate) { set(c, attesttest.OIDProductName, attesttest.IA5("Rome")) }),
	} {
		l, err := attest.ParseLeaf(machine.LeafCertificate())
		if err != nil || l.URL() != "" {
			t.Errorf("%s: %q, %v", name, l.URL(), err)
		}
	}
	// Both ways in which AMD writes a chip's id are good.
	want(t, judge(t, withLeaf(func(c *x509.Certificate) { set(c, attesttest.OIDHWID, octets(chip[:])) })))
}

func TestS45_LeafIsForAnotherTCB(t *testing.T) {
	binding := is(attest.CheckTCBBinding, attest.ReasonTCBBinding)
	for name, p := range map[string]attesttest.Processor{"Genoa": attesttest.Genoa, "Turin": attesttest.Turin} {
		for i := range 5 {
			if i == 0 && p.Line != "Turin" {
				continue
			}
			m := attesttest.NewMachine(p)
			levels := p.Levels
			levels[i]++
			m.Leaf = &attesttest.Leaf{ChipID: m.ChipID, Levels: levels}
			t.Run(name, func(t *testing.T) { want(t, judge(t, m), binding) })
		}
	}
}

func TestS46_TurinTCBLayout(t *testing.T) {
	// Read in Milan's layout, FMC would pass for the boot loader and SNP be lost.
	raw := attest.RawTCB(0x52_000000_04_03_02_01)
	tcb, err := attest.TCBLayoutTurin.Split(raw)
	if err != nil || *tcb.FMC != 1 || tcb.Bootloader != 2 || tcb.TEE != 3 || tcb.SNP != 4 || tcb.Microcode != 0x52 {
		t.Errorf("Turin: %s (%v)", tcb, err)
	}
	if attest.TCBLayoutTurin.Join(tcb) != raw {
		t.Errorf("Turin: joined to %#x", attest.TCBLayoutTurin.Join(tcb))
	}
	raw = 0x56_1B_00000000_07_0A
	tcb, err = attest.TCBLayoutMilan.Split(raw)
	if err != nil || tcb.FMC != nil || tcb.Bootloader != 10 || tcb.TEE != 7 || tcb.SNP != 27 || tcb.Microcode != 86 {
		t.Errorf("Milan: %s (%v)", tcb, err)
	}
	if attest.TCBLayoutMilan.Join(tcb) != raw {
		t.Errorf("Milan: joined to %#x", attest.TCBLayoutMilan.Join(tcb))
	}
	// A Turin leaf of the old structure, and a Genoa leaf of the new one.
	m := attesttest.NewMachine(attesttest.Turin)
	m.Leaf = &attesttest.Leaf{ChipID: m.ChipID, Levels: m.Processor.Levels, Edit: func(c *x509.Certificate) {
		attesttest.SetExtension(c, attesttest.OIDStructVersion, attesttest.Int(0))
		attesttest.SetExtension(c, attesttest.OIDFMC, nil)
	}}
	want(t, judge(t, m), is(attest.CheckTCBBinding, attest.ReasonTCBBinding))
	m = withLeaf(func(c *x509.Certificate) {
		attesttest.SetExtension(c, attesttest.OIDStructVersion, attesttest.Int(1))
		attesttest.SetExtension(c, attesttest.OIDFMC, attesttest.Int(0))
	})
	want(t, judge(t, m), is(attest.CheckTCBBinding, attest.ReasonTCBBinding))
	// Reserved bytes of either layout.
	for p, bytesOf := range map[string][]int{"Genoa": {2, 3, 4, 5}, "Turin": {4, 5, 6}} {
		processor := map[string]attesttest.Processor{"Genoa": attesttest.Genoa, "Turin": attesttest.Turin}[p]
		for _, i := range bytesOf {
			for _, off := range []int{attesttest.OffCurrentTCB, attesttest.OffReportedTCB, attesttest.OffCommittedTCB, attesttest.OffLaunchTCB} {
				m := attesttest.NewMachine(processor)
				m.EditReport = func(r attesttest.Report) { r[off+i] = 1 }
				wantAny(t, judge(t, m), is(attest.CheckTCBForm, attest.ReasonTCBReserved))
			}
		}
	}
}

// lowered is a machine whose leaf and whole platform have other levels.
func lowered(p attesttest.Processor, levels [5]uint8) *attesttest.Machine {
	m := attesttest.NewMachine(p)
	m.Leaf = &attesttest.Leaf{ChipID: m.ChipID, Levels: levels}
	m.EditReport = func(r attesttest.Report) { r.PutTCBs(p.RawTCB(levels)) }
	return m
}

var allFloors = []string{
	is(attest.CheckFloorReported, attest.ReasonTCBBelowFloor), is(attest.CheckFloorCommitted, attest.ReasonTCBBelowFloor),
	is(attest.CheckFloorCurrent, attest.ReasonTCBBelowFloor), is(attest.CheckFloorLaunch, attest.ReasonTCBBelowFloor),
}

func TestS47_TCBBelowFloor(t *testing.T) {
	for name, p := range map[string]attesttest.Processor{"Milan": attesttest.Milan, "Genoa": attesttest.Genoa, "Turin": attesttest.Turin} {
		for i := range 5 {
			if p.Levels[i] == 0 {
				continue
			}
			levels := p.Levels
			levels[i]--
			t.Run(name, func(t *testing.T) { want(t, judge(t, lowered(p, levels)), allFloors...) })
		}
	}
	// Only what the host reports: a rollback by SNP_CONFIG.
	p := attesttest.Genoa
	old := p.Levels
	old[3]--
	m := attesttest.NewMachine(p)
	m.Leaf = &attesttest.Leaf{ChipID: m.ChipID, Levels: old}
	m.EditReport = func(r attesttest.Report) { r.PutU64(attesttest.OffReportedTCB, p.RawTCB(old)) }
	want(t, judge(t, m), is(attest.CheckFloorReported, attest.ReasonTCBBelowFloor))
	// A processor without floors.
	m = withReport(func(r attesttest.Report) { r.Put(attesttest.OffCPUID, []byte{0x19, 0x11, 0x00}) })
	want(t, judge(t, m), is(attest.CheckFloorReported, attest.ReasonNoFloor), is(attest.CheckFloorCommitted, attest.ReasonNoFloor),
		is(attest.CheckFloorCurrent, attest.ReasonNoFloor), is(attest.CheckFloorLaunch, attest.ReasonNoFloor))
}

func TestS48_FirmwareProvisional(t *testing.T) {
	provisional := is(attest.CheckProvisional, attest.ReasonProvisional)
	p := attesttest.Genoa
	newer := p.Levels
	newer[3]++
	tcb := withReport(func(r attesttest.Report) { r.PutU64(attesttest.OffCurrentTCB, p.RawTCB(newer)) })
	want(t, judge(t, tcb), provisional)
	for i := range 3 {
		version := withReport(func(r attesttest.Report) { r[attesttest.OffCurrentVersion+i]++ })
		want(t, judge(t, version), provisional)
	}
	want(t, judgeWith(t, tcb, func(p *attest.Policy) { p.TCB.AllowProvisional = true }))
	// Floors on versions of the firmware.
	for lowest, ok := range map[string]bool{"1.55.49": true, "1.55.50": false, "1.56.0": false, "2.0.0": false, "1.54.99": true} {
		v := judgeWith(t, genoa(), func(p *attest.Policy) { p.Platform.MinFirmware = lowest })
		if ok {
			want(t, v)
		} else {
			want(t, v, is(attest.CheckFirmware, attest.ReasonFirmwareBelow))
		}
	}
	// Both versions count.
	older := withReport(func(r attesttest.Report) { r[attesttest.OffCommittedVersion]-- })
	v := judgeWith(t, older, func(p *attest.Policy) { p.Platform.MinFirmware, p.TCB.AllowProvisional = "1.55.49", true })
	want(t, v, is(attest.CheckFirmware, attest.ReasonFirmwareBelow))
}

func TestS49_ImpossibleOrder(t *testing.T) {
	p := attesttest.Genoa
	newer := p.Levels
	newer[4]++
	order := is(attest.CheckTCBOrder, attest.ReasonTCBOrder)
	// Above the current TCB: committed, launch, and reported.
	m := withReport(func(r attesttest.Report) { r.PutU64(attesttest.OffCommittedTCB, p.RawTCB(newer)) })
	v := judgeWith(t, m, func(p *attest.Policy) { p.TCB.AllowProvisional = true })
	want(t, v, order)
	m = withReport(func(r attesttest.Report) { r.PutU64(attesttest.OffLaunchTCB, p.RawTCB(newer)) })
	want(t, judge(t, m), order)
	// The host went back to what it had committed, which the policy may allow.
	want(t, judgeWith(t, m, func(p *attest.Policy) { p.TCB.AllowProvisional = true }))
	m = withReport(func(r attesttest.Report) { r.PutU64(attesttest.OffReportedTCB, p.RawTCB(newer)) })
	m.Leaf = &attesttest.Leaf{ChipID: m.ChipID, Levels: newer}
	want(t, judge(t, m), order)
}

func TestS50_LaunchedOnOldFirmware(t *testing.T) {
	p := attesttest.Genoa
	old := p.Levels
	old[4]--
	m := withReport(func(r attesttest.Report) { r.PutU64(attesttest.OffLaunchTCB, p.RawTCB(old)) })
	v := judge(t, m)
	want(t, v, is(attest.CheckFloorLaunch, attest.ReasonTCBBelowFloor))
	for _, c := range v.Failures() {
		if !bytes.Contains([]byte(c.Note), []byte("start the machine again")) {
			t.Errorf("note does not say what to do: %q", c.Note)
		}
	}
}

// version5 makes a report one of version 5 with mitigation vectors.
func version5(launch, current uint64) func(attesttest.Report) {
	return func(r attesttest.Report) {
		r.PutU32(attesttest.OffVersion, 5)
		r.PutU64(attesttest.OffLaunchMit, launch)
		r.PutU64(attesttest.OffCurrentMit, current)
	}
}

func TestS51_MitigationMissing(t *testing.T) {
	missing := is(attest.CheckMitigations, attest.ReasonMitigationMissing)
	both := func(p *attest.Policy) { p.Mitigations = attest.MitigationRules{Launch: 2, Current: 6} }
	want(t, judgeWith(t, withReport(version5(3, 7)), both))
	want(t, judgeWith(t, withReport(version5(1, 7)), both), missing) // at launch
	want(t, judgeWith(t, withReport(version5(3, 3)), both), missing) // now
}

func TestS52_MitigationNotProvable(t *testing.T) {
	v := judgeWith(t, genoa(), func(p *attest.Policy) { p.Mitigations.Current = 2 })
	want(t, v, is(attest.CheckMitigations, attest.ReasonMitigationUnprovable))
	v = judgeWith(t, genoa(), func(p *attest.Policy) { p.Mitigations.Launch = 2 })
	want(t, v, is(attest.CheckMitigations, attest.ReasonMitigationUnprovable))
}

func TestS61_RelayedFromAnotherMachine(t *testing.T) {
	m := genoa()
	o := options(m)
	o.ChipID = bytes.Clone(m.ChipID[:])
	want(t, verify(t, m, o))
	o.ChipID[63] ^= 1
	want(t, verify(t, m, o), is(attest.CheckChip, attest.ReasonChipRelayed))
	// A report that names no chip cannot show where it is from.
	v := vlek()
	o = options(v)
	o.ChipID = m.ChipID[:]
	want(t, verify(t, v, o), is(attest.CheckChip, attest.ReasonChipUnprovable))
	masked := withReport(func(r attesttest.Report) { r.Put(attesttest.OffChipID, make([]byte, 64)) })
	o = options(masked)
	o.ChipID, o.Policy = m.ChipID[:], attest.DefaultPolicy()
	o.Policy.AllowMaskedChipID = true
	want(t, verify(t, masked, o), is(attest.CheckChip, attest.ReasonChipUnprovable))
	// A list of chips in the policy.
	want(t, judgeWith(t, m, func(p *attest.Policy) { p.ChipIDs = hexList(bytes.Repeat([]byte{1}, 64), m.ChipID[:]) }))
	want(t, judgeWith(t, m, func(p *attest.Policy) { p.ChipIDs = hexList(bytes.Repeat([]byte{1}, 64)) }),
		is(attest.CheckChip, attest.ReasonChipNotAllowed))
	// Pins that pin nothing are misuse.
	for _, id := range [][]byte{make([]byte, 64), make([]byte, 8)} {
		o := options(m)
		o.ChipID = id
		if _, err := attest.Verify(t.Context(), m.Evidence(), m.Golden(), o); err == nil {
			t.Errorf("no error for a pinned chip id of %d bytes", len(id))
		}
	}
}

func TestChainThatDoesNotHold(t *testing.T) {
	broken := is(attest.CheckChain, attest.ReasonChainBroken)
	m := genoa()
	raw := m.SignedReport([64]byte{1})
	judgeChain := func(leaf, mid, root *x509.Certificate) *attest.Verdict {
		v, err := attest.VerifyReport(t.Context(), raw, nil, attest.Expect{}, attest.Options{
			Now: attesttest.Now, SimRoots: []*x509.Certificate{root}, Certificates: []*x509.Certificate{leaf, mid, root},
		})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	s := m.Signer
	want(t, judgeChain(m.LeafCertificate(), s.ASK, s.ARK))
	// Names fit, keys do not: the intermediate is not the root's, or the leaf not
	// the intermediate's.
	impostor := attesttest.NewImpostor("Genoa")
	forged := impostor.Leaf(attesttest.Leaf{ChipID: m.ChipID, Levels: m.Processor.Levels})
	want(t, judgeChain(forged, impostor.ASK, s.ARK), broken)
	want(t, judgeChain(forged, s.ASK, s.ARK), broken)
	template := func() *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(9), Subject: attesttest.Name("SEV-Genoa"), NotBefore: attesttest.NotBefore, NotAfter: attesttest.NotAfter,
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SignatureAlgorithm: x509.SHA384WithRSAPSS,
		}
	}
	for name, edit := range map[string]func(*x509.Certificate){
		"may not sign certificates": func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature },
		"signed in another way":     func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA256WithRSA },
		"unknown critical extension": func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := template()
			edit(c)
			want(t, judgeChain(m.LeafCertificate(), s.CertifyByRoot(c), s.ARK), broken)
		})
	}
	want(t, judgeChain(m.LeafCertificate(), s.CertifyByRoot(template()), s.ARK))
	// Right by signature, but with a cache that saw another chain.
	cache := new(attest.ChainCache)
	for _, c := range []struct {
		leaf *x509.Certificate
		ok   bool
	}{{m.LeafCertificate(), true}, {forged, false}, {forged, false}} {
		v, err := attest.VerifyReport(t.Context(), raw, nil, attest.Expect{}, attest.Options{
			Now: attesttest.Now, SimRoots: []*x509.Certificate{s.ARK}, Certificates: []*x509.Certificate{c.leaf, s.ASK, s.ARK}, Cache: cache,
		})
		if err != nil || v.Trusted() != c.ok {
			t.Errorf("with a cache: %v, %v", v.Result, err)
		}
	}
}
