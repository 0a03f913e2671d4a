package measure_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/measure"
)

// testdata returns the folder of inputs that are not part of the repository.
func testdata(t testing.TB) string {
	dir := os.Getenv("EVTPM_TESTDATA")
	if dir == "" {
		t.Skip("EVTPM_TESTDATA is not set: vectors are not at hand")
	}
	return dir
}

func readFile(t testing.TB, elem ...string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestIDBlockVectors compares with ID blocks made by sev-snp-measure's
// snp-create-id-block and, byte for byte with the signatures, by a script over
// python-cryptography with deterministic signing.
func TestIDBlockVectors(t *testing.T) {
	dir := testdata(t)
	var file struct {
		Vectors []struct {
			Name, Expected string
		}
		IDBlock []struct {
			Name        string
			Measurement measure.Digest
			FamilyID    measure.HexBytes `json:"family_id"`
			ImageID     measure.HexBytes `json:"image_id"`
			GuestSVN    uint32           `json:"guest_svn"`
			Policy      string
			IDKey       string `json:"id_key"`
			AuthorKey   string `json:"author_key"`
			SampleAuth  []byte `json:"sample_id_auth_base64"`
			Expected    struct {
				Block        measure.HexBytes `json:"id_block_hex"`
				Auth         []byte           `json:"id_auth_base64"`
				AuthSHA256   measure.HexBytes `json:"id_auth_sha256"`
				IDDigest     measure.Digest   `json:"id_key_digest"`
				AuthorDigest *measure.Digest  `json:"author_key_digest"`
			}
		}
	}
	if err := json.Unmarshal(readFile(t, dir, "vectors", "launch-digests.json"), &file); err != nil {
		t.Fatal(err)
	}
	if len(file.IDBlock) == 0 {
		t.Fatal("found no ID block vectors")
	}
	for _, v := range file.IDBlock {
		t.Run(v.Name, func(t *testing.T) {
			block := &measure.IDBlock{LaunchDigest: v.Measurement, GuestSVN: v.GuestSVN, Policy: 0x30000}
			copy(block.FamilyID[:], v.FamilyID)
			copy(block.ImageID[:], v.ImageID)
			if v.Policy != "" {
				var err error
				if block.Policy, err = strconv.ParseUint(v.Policy, 0, 64); err != nil {
					t.Fatal(err)
				}
			}
			key := func(name string) *ecdsa.PrivateKey {
				k, err := measure.ParsePrivateKeyPEM(readFile(t, dir, "fixtures", "keys", name))
				if err != nil {
					t.Fatal(err)
				}
				return k
			}
			if got := block.Encode(); !bytes.Equal(got, v.Expected.Block) {
				t.Errorf("found block %x, expected %x", got, v.Expected.Block)
			}
			o := measure.SignOptions{IDKey: key(v.IDKey)}
			if v.AuthorKey != "" {
				o.AuthorKey = key(v.AuthorKey)
			}
			auth, err := measure.SignIDBlock(block, o)
			if err != nil {
				t.Fatal(err)
			}
			g, err := auth.Golden(block)
			if err != nil {
				t.Fatal(err)
			}
			if g.IDKeyDigest != v.Expected.IDDigest {
				t.Errorf("found ID key digest %s, expected %s", g.IDKeyDigest, v.Expected.IDDigest)
			}
			// The vectors write the absence of an author key as the digest that
			// a report then has: zeros.
			var author measure.Digest
			if g.AuthorKeyDigest != nil {
				author = *g.AuthorKeyDigest
			}
			if v.Expected.AuthorDigest != nil && author != *v.Expected.AuthorDigest {
				t.Errorf("found author key digest %v, expected %s", author, v.Expected.AuthorDigest)
			}
			data, err := auth.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if v.Expected.Auth != nil && !bytes.Equal(data, v.Expected.Auth) {
				t.Errorf("found ID auth %x, expected %x", data, v.Expected.Auth)
			}
			if v.Expected.AuthSHA256 != nil {
				if sum := sha256.Sum256(data); !bytes.Equal(sum[:], v.Expected.AuthSHA256) {
					t.Errorf("found ID auth with SHA-256 %x, expected %x", sum, v.Expected.AuthSHA256)
				}
			}
			if v.SampleAuth != nil {
				peer, err := measure.ParseIDAuth(v.SampleAuth)
				if err != nil {
					t.Fatal(err)
				}
				if err := peer.Verify(block); err != nil {
					t.Error(err)
				}
			}
		})
	}
	if _, err := measure.ParsePrivateKeyPEM(readFile(t, dir, "fixtures", "keys", "wrong-curve-key.pem")); err == nil || !strings.Contains(err.Error(), "P-256, expected P-384") {
		t.Errorf("found error %v, expected one about the curve", err)
	}
}

func newKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func signedBlock(t testing.TB) (*measure.IDBlock, *measure.IDAuth) {
	block := &measure.IDBlock{LaunchDigest: measure.Digest{1, 2}, FamilyID: [16]byte{3}, ImageID: [16]byte{4}, GuestSVN: 5, Policy: 0x30000}
	auth, err := measure.SignIDBlock(block, measure.SignOptions{
		IDKey: newKey(t, elliptic.P384()), AuthorKey: newKey(t, elliptic.P384()), Rand: rand.Reader,
	})
	if err != nil {
		t.Fatal(err)
	}
	return block, auth
}

func TestIDBlockRoundTrip(t *testing.T) {
	block, auth := signedBlock(t)
	got, err := measure.ParseIDBlock(block.Encode())
	if err != nil || *got != *block {
		t.Errorf("found %+v and error %v, expected %+v", got, err, block)
	}
	data, err := auth.Encode()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := measure.ParseIDAuth(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := parsed.Verify(block); err != nil {
		t.Error(err)
	}
	again, err := parsed.Encode()
	if err != nil || !bytes.Equal(again, data) {
		t.Errorf("the second encoding differs from the first, error %v", err)
	}
}

// TestIDBlockTwoSteps signs with a key that this package never sees.
func TestIDBlockTwoSteps(t *testing.T) {
	key := newKey(t, elliptic.P384())
	block := &measure.IDBlock{LaunchDigest: measure.Digest{7}, Policy: 0x30000}
	sum := sha512.Sum384(block.Encode())
	der, err := key.Sign(rand.Reader, sum[:], crypto.SHA384)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := measure.ParseSignatureDER(der)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	public, err := measure.ParsePublicKeyPEM(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
	if err != nil {
		t.Fatal(err)
	}
	auth := &measure.IDAuth{IDKey: public, BlockSig: sig}
	if err := auth.Verify(block); err != nil {
		t.Error(err)
	}
	block.GuestSVN++
	if err := auth.Verify(block); err == nil || !strings.Contains(err.Error(), "BAD_SIGNATURE") {
		t.Errorf("found error %v, expected a wrong signature", err)
	}
	for name, bad := range map[string][]byte{"empty": nil, "trailing": append(bytes.Clone(der), 0), "not DER": []byte("x"), "zero R": {0x30, 6, 2, 1, 0, 2, 1, 1}, "negative S": {0x30, 6, 2, 1, 1, 2, 1, 0xff}} {
		if _, err := measure.ParseSignatureDER(bad); err == nil {
			t.Errorf("%s: found no error", name)
		}
	}
}

// TestIDBlockRefuses changes one thing each time.
func TestIDBlockRefuses(t *testing.T) {
	block, auth := signedBlock(t)
	data, err := auth.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		at   int
		want string
	}{
		"ID key algorithm":     {0x000, "ID key: found algorithm"},
		"author key algorithm": {0x005, "author key: found algorithm"},
		"reserved 8":           {0x008, "reserved bytes 0x8"},
		"reserved 3f":          {0x03f, "reserved bytes 0x8"},
		"R beyond 384 bits":    {0x040 + 48, "R: found more than 384 bits"},
		"S beyond 384 bits":    {0x040 + 72 + 71, "S: found more than 384 bits"},
		"after S":              {0x040 + 144, "after S"},
		"after S, last":        {0x23f, "after S"},
		"curve":                {0x240, "curve"},
		"key off the curve":    {0x244, "ID key: key"},
		"QX beyond 384 bits":   {0x244 + 71, "more than 384 bits"},
		"after QY":             {0x244 + 144, "after QY"},
		"reserved 644":         {0x644, "reserved bytes 0x644"},
		"reserved 67f":         {0x67f, "reserved bytes 0x644"},
		"author signature":     {0x680 + 71, "author key: signature: R"},
		"author curve":         {0x880, "author key: key: found curve"},
		"reserved c84":         {0xc84, "reserved bytes 0xc84"},
		"reserved fff":         {0xfff, "reserved bytes 0xc84"},
	} {
		bad := bytes.Clone(data)
		bad[c.at] ^= 0x40
		if _, err := measure.ParseIDAuth(bad); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: found error %v, expected one with %q", name, err, c.want)
		}
	}
	for name, at := range map[string]int{"ID key's signature": 0x40, "author key's signature": 0x680} {
		bad := bytes.Clone(data)
		bad[at] ^= 1
		a, err := measure.ParseIDAuth(bad)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Verify(block); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("found error %v, expected one about the %s", err, name)
		}
	}
	noAuthor := bytes.Clone(data)
	noAuthor[4] = 0
	if _, err := measure.ParseIDAuth(noAuthor); err == nil || !strings.Contains(err.Error(), "its algorithm is 0") {
		t.Errorf("author key with algorithm 0: found error %v", err)
	}
	for _, n := range []int{0, 4095, 4097} {
		if _, err := measure.ParseIDAuth(make([]byte, n)); err == nil {
			t.Errorf("ID auth of %d bytes: found no error", n)
		}
	}
	for _, n := range []int{0, 95, 97} {
		if _, err := measure.ParseIDBlock(make([]byte, n)); err == nil {
			t.Errorf("ID block of %d bytes: found no error", n)
		}
	}
	if _, err := measure.ParseIDBlock(make([]byte, 96)); err == nil || !strings.Contains(err.Error(), "version 0") {
		t.Errorf("ID block of zeros: found error %v, expected one about the version", err)
	}
	if _, err := (&measure.IDAuth{IDKey: auth.IDKey}).Encode(); err == nil {
		t.Error("ID auth without signature: found no error")
	}
	if _, err := (&measure.IDAuth{IDKey: auth.IDKey, BlockSig: auth.BlockSig, AuthorKey: auth.AuthorKey}).Encode(); err == nil {
		t.Error("author key without signature: found no error")
	}
	if _, err := measure.SignIDBlock(block, measure.SignOptions{IDKey: newKey(t, elliptic.P256())}); err == nil || !strings.Contains(err.Error(), "P-256") {
		t.Errorf("P-256 ID key: found error %v", err)
	}
	if _, err := measure.SignIDBlock(block, measure.SignOptions{IDKey: newKey(t, elliptic.P384()), AuthorKey: newKey(t, elliptic.P521())}); err == nil || !strings.Contains(err.Error(), "author key") {
		t.Errorf("P-521 author key: found error %v", err)
	}
}

func TestIDKeyPEM(t *testing.T) {
	key := newKey(t, elliptic.P384())
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	parameters := pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 5, 0x2b, 0x81, 4, 0, 0x22}})
	for name, data := range map[string][]byte{
		"SEC 1":                 pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}),
		"SEC 1 with parameters": append(parameters, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})...),
		"PKCS #8":               pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
	} {
		got, err := measure.ParsePrivateKeyPEM(data)
		if err != nil || !got.Equal(key) {
			t.Errorf("%s: found %v and error %v", name, got, err)
		}
		public, err := measure.ParsePublicKeyPEM(data)
		if err != nil || !public.Equal(&key.PublicKey) {
			t.Errorf("%s: found %v and error %v", name, public, err)
		}
	}
	for name, data := range map[string]string{
		"empty":     "",
		"no key":    string(parameters),
		"encrypted": "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
		"DEK":       "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END EC PRIVATE KEY-----\n",
		"garbage":   "-----BEGIN EC PRIVATE KEY-----\n" + base64.StdEncoding.EncodeToString([]byte("garbage")) + "\n-----END EC PRIVATE KEY-----\n",
	} {
		if _, err := measure.ParsePrivateKeyPEM([]byte(data)); err == nil {
			t.Errorf("%s: found no error", name)
		}
	}
}

func FuzzParseIDAuth(f *testing.F) {
	// The same keys each time, so that what is found stays found.
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P384(), bytes.Repeat([]byte{1}, 48))
	if err != nil {
		f.Fatal(err)
	}
	block := &measure.IDBlock{LaunchDigest: measure.Digest{1, 2}, Policy: 0x30000}
	auth, err := measure.SignIDBlock(block, measure.SignOptions{IDKey: key, AuthorKey: key})
	if err != nil {
		f.Fatal(err)
	}
	data, err := auth.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(block.Encode(), data)
	f.Fuzz(func(t *testing.T, b, a []byte) {
		if block, err := measure.ParseIDBlock(b); err == nil && !bytes.Equal(block.Encode(), b) {
			t.Fatalf("found block %x, expected %x", block.Encode(), b)
		}
		auth, err := measure.ParseIDAuth(a)
		if err != nil {
			return
		}
		again, err := auth.Encode()
		if err != nil || !bytes.Equal(again, a) {
			t.Fatalf("the encoding differs from what was read, error %v", err)
		}
	})
}
