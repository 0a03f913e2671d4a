package snpsim

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/evtpm/evtpm/inputfile"
)

// thisMachine is the name under which the chip "" lies.
const thisMachine = "this-machine"

// A chip's directory holds its id in hex, and a VCEK for each TCB it ran with:
// key and certificate in one file, since neither is of use without the other.
const fileChipID = "chip_id"

// A Chip is one simulated processor.
type Chip struct {
	// ID is CHIP_ID: 64 bytes, of which Turin has 8 that are not zero.
	ID [64]byte

	product  product
	vcek     *x509.Certificate
	key      *ecdsa.PrivateKey
	ask, ark []byte // DER
}

// Chip returns a chip by name: letters, digits and hyphens, at most 32. The
// empty name is this machine's chip. A chip that is not there yet is made.
func (r *Root) Chip(name string) (*Chip, error) {
	if name == "" {
		name = thisMachine
	}
	if !chipName(name) {
		return nil, fmt.Errorf("simulated chip: found name %q, expected lower-case letters, digits and hyphens, at most 32", name)
	}
	dir := filepath.Join(r.dir, dirChips, name)
	c, err := r.loadChip(dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = r.locked(func() error {
			var err error
			if c, err = r.loadChip(dir); errors.Is(err, fs.ErrNotExist) {
				c, err = r.createChip(dir)
			}
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("simulated chip %s: %w", name, err)
	}
	return c, nil
}

func chipName(s string) bool {
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-') {
			return false
		}
	}
	return len(s) <= 32
}

// vcekPath is where the VCEK for the chip's present TCB lies: another TCB is
// another VCEK, as in the silicon.
func (r *Root) vcekPath(dir string) string {
	return filepath.Join(dir, fmt.Sprintf("vcek-%016x.pem", r.product.version()))
}

func (r *Root) loadChip(dir string) (*Chip, error) {
	c := &Chip{product: r.product, ask: r.ask.Raw, ark: r.ark.Raw}
	var err error
	if c.ID, err = readChipID(filepath.Join(dir, fileChipID)); err != nil {
		return nil, err
	}
	path := r.vcekPath(dir)
	certs, err := readCertificates(path)
	if err != nil {
		return nil, err
	}
	c.vcek = certs[0]
	key, err := readKey(path)
	if err != nil {
		return nil, err
	}
	var ok bool
	if c.key, ok = key.(*ecdsa.PrivateKey); !ok || !c.key.PublicKey.Equal(c.vcek.PublicKey) {
		return nil, fmt.Errorf("%s: key and certificate do not belong together", path)
	}
	if err := c.vcek.CheckSignatureFrom(r.ask); err != nil {
		return nil, fmt.Errorf("%s: not signed by this root's ASK: %w", path, err)
	}
	return c, nil
}

func readChipID(path string) (id [64]byte, err error) {
	text, err := inputfile.Read(path, 256)
	if err != nil {
		return id, err
	}
	b, err := hex.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("%s: found %q, expected %d bytes in hex", path, text, len(id))
	}
	return [64]byte(b), nil
}

// createChip makes what is missing of a chip.
func (r *Root) createChip(dir string) (*Chip, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	idPath := filepath.Join(dir, fileChipID)
	id, err := readChipID(idPath)
	if errors.Is(err, fs.ErrNotExist) {
		rand.Read(id[:r.product.hwid])
		err = writeFile(idPath, fmt.Appendf(nil, "%x\n", id))
	}
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := r.certificate("SEV-VCEK", leafYears)
	if template.ExtraExtensions, err = r.product.extensions(id[:r.product.hwid]); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, r.ask, &key.PublicKey, r.askKey)
	if err != nil {
		return nil, err
	}
	var file []byte
	for _, part := range []func() ([]byte, error){certificatePEM(der), keyPEM(key)} {
		data, err := part()
		if err != nil {
			return nil, err
		}
		file = append(file, data...)
	}
	if err := writeFile(r.vcekPath(dir), file); err != nil {
		return nil, err
	}
	return r.loadChip(dir)
}

// Extensions of a VCEK certificate, below 1.3.6.1.4.1.3704.1 (AMD 57230, VCEK
// Certificate and KDS Interface Specification, table of extensions).
var (
	extStructVersion = []int{1}
	extProductName   = []int{2}
	extBootloader    = []int{3, 1}
	extTEE           = []int{3, 2}
	extSNP           = []int{3, 3}
	extSPL4          = []int{3, 4} // reserved; none in Turin's certificates
	extReserved      = [][]int{{3, 5}, {3, 6}, {3, 7}}
	extMicrocode     = []int{3, 8}
	extFMC           = []int{3, 9}
	extHWID          = []int{4}
)

// extensions returns a VCEK's extensions, with the encodings that AMD's own
// certificates have: INTEGER, IA5String, and the chip's id as bare bytes.
func (p *product) extensions(hwid []byte) ([]pkix.Extension, error) {
	var out []pkix.Extension
	var errs []error
	add := func(id []int, value any, params string) {
		der, err := asn1.MarshalWithParams(value, params)
		errs = append(errs, err)
		out = append(out, pkix.Extension{Id: amdOID(id), Value: der})
	}
	level := func(id []int, v uint8) { add(id, int(v), "") }

	structVersion := 0
	if p.fmc {
		structVersion = 1
	}
	add(extStructVersion, structVersion, "")
	add(extProductName, p.productName, "ia5")
	if p.fmc {
		level(extFMC, p.tcb.fmc)
	}
	level(extBootloader, p.tcb.bootloader)
	level(extTEE, p.tcb.tee)
	level(extSNP, p.tcb.snp)
	if !p.fmc {
		level(extSPL4, 0)
	}
	for _, id := range extReserved {
		level(id, 0)
	}
	level(extMicrocode, p.tcb.microcode)
	out = append(out, pkix.Extension{Id: amdOID(extHWID), Value: hwid})
	return out, errors.Join(errs...)
}

func amdOID(tail []int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, tail...)
}

// VCEK returns the certificate of the key that signs this chip's reports.
func (c *Chip) VCEK() *x509.Certificate { return c.vcek }

// GUIDs of a certificate table (GHCB 56421, SNP Extended Guest Request), their
// bytes in the order of the text, as real hosts write them.
const (
	guidVCEK = "63da758d-e664-4564-adc5-f4b93be8accd"
	guidASK  = "4ab7b379-bbac-4fe4-a02f-05aef327c782"
	guidARK  = "c0b406a4-a803-4952-9743-3fb6014cd0ae"
)

// Entries of a certificate table: GUID, then offset from the start of the table
// and length, u32 little-endian. An entry of zeros ends them; the data follows.
const (
	certEntryOffset = 16
	certEntryLength = 20
	certEntrySize   = 24
)

// CertTable returns the certificate table that a host serves for this chip:
// VCEK, ASK and ARK in DER.
func (c *Chip) CertTable() []byte {
	entries := []struct {
		guid string
		data []byte
	}{{guidVCEK, c.vcek.Raw}, {guidASK, c.ask}, {guidARK, c.ark}}
	out := make([]byte, (len(entries)+1)*certEntrySize)
	for i, e := range entries {
		h := out[i*certEntrySize:]
		// 16 bytes in hexadecimal, but for the dashes: it cannot fail.
		g, _ := hex.DecodeString(strings.ReplaceAll(e.guid, "-", ""))
		copy(h, g)
		binary.LittleEndian.PutUint32(h[certEntryOffset:], uint32(len(out)))
		binary.LittleEndian.PutUint32(h[certEntryLength:], uint32(len(e.data)))
		out = append(out, e.data...)
	}
	return out
}
