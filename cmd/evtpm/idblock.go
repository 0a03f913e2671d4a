package main

import (
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/measure"
)

func idblockCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:  "idblock",
		Usage: "make and check ID blocks: the AMD-SP then refuses to start anything but one launch",
		Subcommands: []*cli.Command{
			{
				Name: "create", Usage: "make an ID block, and sign it if there is a key",
				Description: "Writes the block's 96 bytes, which are also what the ID key signs. With --id-key it is signed at once; without,\n" +
					"sign the file with ECDSA P-384 and SHA-384 wherever the key lives, and take the signature to evtpm idblock sign:\n\n" +
					"   openssl dgst -sha384 -sign id.pem -out id.sig block.bin",
				Flags: append(idblockFields(), append(idblockKeys(),
					&cli.StringFlag{Name: "block", Usage: "write the block to `FILE`"},
					&cli.StringFlag{Name: "auth", Usage: "write the ID authentication information to `FILE`"},
					outputFlag())...),
				Action: func(c *cli.Context) error { return u.idblockCreate(c) },
			},
			{
				Name: "sign", Usage: "make the ID authentication information of a block",
				Description: "With private keys, or with public keys and signatures that were made elsewhere. The author key signs the 1028 bytes\n" +
					"of the ID key that evtpm idblock key writes.",
				ArgsUsage: "BLOCK",
				Flags: append(idblockKeys(),
					&cli.StringFlag{Name: "id-pub", Usage: "ID key's public half in `PEM`, with --id-signature"},
					&cli.StringFlag{Name: "id-signature", Usage: "signature by the ID key over the block, DER in `FILE`"},
					&cli.StringFlag{Name: "author-pub", Usage: "author key's public half in `PEM`, with --author-signature"},
					&cli.StringFlag{Name: "author-signature", Usage: "signature by the author key over the ID key, DER in `FILE`"},
					&cli.StringFlag{Name: "auth", Usage: "write the ID authentication information to `FILE`"},
					outputFlag()),
				Action: func(c *cli.Context) error { return u.idblockSign(c) },
			},
			{
				Name: "key", Usage: "write a key's 1028 bytes as reports know it, and print their digest",
				ArgsUsage: "PEM",
				Flags:     []cli.Flag{&cli.StringFlag{Name: "out", Usage: "write the bytes to `FILE`"}},
				Action:    func(c *cli.Context) error { return u.idblockKey(c) },
			},
			{
				Name: "show", Usage: "print the fields of an ID block, and of its ID authentication information",
				ArgsUsage: "BLOCK [AUTH]",
				Flags:     []cli.Flag{outputFlag()},
				Action:    func(c *cli.Context) error { return u.idblockShow(c) },
			},
			{
				Name: "verify", Usage: "check the signatures of an ID block, and that it is for the expected launch",
				ArgsUsage:   "BLOCK AUTH",
				Description: "Exit codes: 0 good, 2 a signature or a key is wrong, 5 the policy or another field, 6 the launch digest.",
				Flags: append(idblockFields(),
					&cli.StringFlag{Name: "id-pub", Usage: "expected ID key in `PEM`"},
					&cli.StringFlag{Name: "author-pub", Usage: "expected author key in `PEM`"}),
				Action: func(c *cli.Context) error { return u.idblockVerify(c) },
			},
		},
	}
}

// idblockFields are the fields of a block.
func idblockFields() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "digest", Aliases: []string{"measurement"}, Usage: "launch digest in `HEX` or base64"},
		&cli.StringFlag{Name: "golden", Usage: "take launch digest and policy from golden values in `FILE`"},
		&cli.StringFlag{Name: "family-id", Usage: "16 bytes in `HEX`, or up to 16 characters after \"text:\""},
		&cli.StringFlag{Name: "image-id", Usage: "16 bytes in `HEX`, or up to 16 characters after \"text:\""},
		&cli.StringFlag{Name: "svn", Value: "0", Usage: "guest SVN, in decimal"},
		&cli.StringFlag{Name: "policy", Value: "0x30000", Usage: "guest policy; must be the one that the VM is started with"},
	}
}

func guestSVN(c *cli.Context) (uint32, error) {
	n, err := decimal(c, "svn")
	if err == nil && (n < 0 || n > math.MaxUint32) {
		err = fmt.Errorf("--svn: found %d, expected a number of at most 32 bits", n)
	}
	return uint32(n), err
}

func idblockKeys() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "id-key", Aliases: []string{"idkey"}, Usage: "ID key, ECDSA P-384, in `PEM`"},
		&cli.StringFlag{Name: "author-key", Aliases: []string{"authorkey"}, Usage: "author key, ECDSA P-384, in `PEM`"},
	}
}

// idblockDocument is what -o json prints of a block.
type idblockDocument struct {
	Schema          string           `json:"schema"`
	LaunchDigest    measure.Digest   `json:"launch_digest"`
	FamilyID        measure.HexBytes `json:"family_id"`
	ImageID         measure.HexBytes `json:"image_id"`
	GuestSVN        uint32           `json:"guest_svn"`
	Policy          string           `json:"policy"`
	IDKeyDigest     *measure.Digest  `json:"id_key_digest,omitempty"`
	AuthorKeyDigest *measure.Digest  `json:"author_key_digest,omitempty"`
	IDBlock         []byte           `json:"id_block"` // base64, as QEMU takes it
	IDAuth          []byte           `json:"id_auth,omitempty"`
}

func newIDBlockDocument(block *measure.IDBlock, auth *measure.IDAuth) (*idblockDocument, error) {
	doc := &idblockDocument{
		Schema: "evtpm.id-block/v1", LaunchDigest: block.LaunchDigest, FamilyID: block.FamilyID[:], ImageID: block.ImageID[:],
		GuestSVN: block.GuestSVN, Policy: fmt.Sprintf("%#x", block.Policy), IDBlock: block.Encode(),
	}
	if auth == nil {
		return doc, nil
	}
	g, err := auth.Golden(block)
	if err != nil {
		return nil, err
	}
	doc.IDKeyDigest, doc.AuthorKeyDigest = &g.IDKeyDigest, g.AuthorKeyDigest
	doc.IDAuth, err = auth.Encode()
	return doc, err
}

// print writes the document; long adds the fields to the two values that QEMU
// takes.
func (d *idblockDocument) print(u *ui, asJSON, long bool) error {
	if asJSON {
		return u.json(d)
	}
	if long {
		u.data("launch digest     %s", d.LaunchDigest)
		u.data("family ID         %s", d.FamilyID)
		u.data("image ID          %s", d.ImageID)
		u.data("guest SVN         %d", d.GuestSVN)
		u.data("policy            %s", d.Policy)
		if d.IDKeyDigest != nil {
			u.data("ID key digest     %s", d.IDKeyDigest)
		}
		if d.AuthorKeyDigest != nil {
			u.data("author key digest %s", d.AuthorKeyDigest)
		}
		return nil
	}
	u.data("id-block=%s", base64.StdEncoding.EncodeToString(d.IDBlock))
	if d.IDAuth != nil {
		u.data("id-auth=%s", base64.StdEncoding.EncodeToString(d.IDAuth))
	}
	return nil
}

func (u *ui) idblockCreate(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	block := new(measure.IDBlock)
	if err := idblockFieldsInto(c, block); err != nil {
		return err
	}
	if block.LaunchDigest.IsZero() {
		return errors.New("idblock create: expected --digest or --golden")
	}
	if block.Policy>>17&1 == 0 {
		return fmt.Errorf("--policy: found %#x, expected bit 17 to be set: the AMD-SP starts nothing without it", block.Policy)
	}
	var auth *measure.IDAuth
	if c.IsSet("id-key") {
		if auth, err = signWithKeys(c, block); err != nil {
			return err
		}
	} else if c.String("author-key") != "" || c.String("auth") != "" {
		return errors.New("idblock create: expected --id-key beside --author-key and --auth; for keys elsewhere see evtpm idblock sign")
	}
	doc, err := newIDBlockDocument(block, auth)
	if err != nil {
		return err
	}
	if err := writeBytes(c.String("block"), doc.IDBlock); err != nil {
		return err
	}
	if err := writeBytes(c.String("auth"), doc.IDAuth); err != nil {
		return err
	}
	return doc.print(u, asJSON, false)
}

// idblockFieldsInto reads the fields that are given.
func idblockFieldsInto(c *cli.Context, block *measure.IDBlock) error {
	policy := c.String("policy")
	if name := c.String("golden"); name != "" {
		if c.IsSet("digest") {
			return errors.New("--golden: found beside --digest, expected one of them")
		}
		g, err := readGolden(name)
		if err != nil {
			return err
		}
		if n := len(g.LaunchDigests); n != 1 {
			return fmt.Errorf("%s: found %d launch digests, expected one: an ID block names one launch", name, n)
		}
		block.LaunchDigest = g.LaunchDigests[0]
		if !c.IsSet("policy") {
			policy = fmt.Sprintf("%#x", g.Policy)
		} else if p, err := parseNumber("policy", policy, 64); err == nil && p != g.Policy {
			return fmt.Errorf("--policy: found %#x, expected the %#x of %s", p, g.Policy, name)
		}
	}
	if text := strings.TrimSpace(c.String("digest")); text != "" {
		digest, err := hex.DecodeString(text)
		if err != nil || len(digest) != measure.DigestSize {
			digest, err = base64.StdEncoding.DecodeString(text)
		}
		if err != nil || len(digest) != measure.DigestSize {
			return fmt.Errorf("--digest: found %q, expected 48 bytes in hexadecimal or base64", text)
		}
		block.LaunchDigest = measure.Digest(digest)
	}
	for _, f := range []struct {
		flag string
		into *[16]byte
	}{{"family-id", &block.FamilyID}, {"image-id", &block.ImageID}} {
		if err := readID(f.flag, c.String(f.flag), f.into); err != nil {
			return err
		}
	}
	var err error
	if block.GuestSVN, err = guestSVN(c); err != nil {
		return err
	}
	block.Policy, err = parseNumber("policy", policy, 64)
	return err
}

// readID reads a family or image ID.
func readID(flag, text string, into *[16]byte) error {
	if chars, ok := strings.CutPrefix(text, "text:"); ok {
		if len(chars) > len(into) {
			return fmt.Errorf("--%s: found %d bytes of text, expected at most %d", flag, len(chars), len(into))
		}
		copy(into[:], chars)
		return nil
	}
	if text == "" {
		return nil
	}
	id, err := hex.DecodeString(text)
	if err != nil || len(id) != len(into) {
		return fmt.Errorf("--%s: found %q, expected 32 hexadecimal digits, or \"text:\" and up to 16 characters", flag, text)
	}
	copy(into[:], id)
	return nil
}

// writeBytes writes a file if one is wanted.
func writeBytes(name string, data []byte) error {
	if name == "" {
		return nil
	}
	return os.WriteFile(name, data, 0o644)
}

// signWithKeys signs a block with private keys.
func signWithKeys(c *cli.Context, block *measure.IDBlock) (*measure.IDAuth, error) {
	id, err := readPrivateKey(c.String("id-key"))
	if err != nil {
		return nil, err
	}
	o := measure.SignOptions{IDKey: id}
	if c.IsSet("author-key") {
		author, err := readPrivateKey(c.String("author-key"))
		if err != nil {
			return nil, err
		}
		o.AuthorKey = author
	}
	return measure.SignIDBlock(block, o)
}

func readPrivateKey(name string) (*ecdsa.PrivateKey, error) {
	if name == "" {
		return nil, errors.New("a key's file: found an empty name") // as of a variable that is not set
	}
	data, err := inputfile.Read(name, inputfile.MaxDocument)
	if err != nil {
		return nil, err
	}
	key, err := measure.ParsePrivateKeyPEM(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return key, nil
}

func readPublicKey(name string) (*ecdsa.PublicKey, error) {
	data, err := inputfile.Read(name, inputfile.MaxDocument)
	if err != nil {
		return nil, err
	}
	key, err := measure.ParsePublicKeyPEM(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return key, nil
}

// readSignature reads a key's public half and a signature by it.
func readSignature(key, signature string) (*ecdsa.PublicKey, *measure.Signature, error) {
	public, err := readPublicKey(key)
	if err != nil {
		return nil, nil, err
	}
	der, err := inputfile.Read(signature, inputfile.MaxDocument)
	if err != nil {
		return nil, nil, err
	}
	sig, err := measure.ParseSignatureDER(der)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", signature, err)
	}
	return public, sig, nil
}

func (u *ui) idblockSign(c *cli.Context) error {
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	name, err := oneArg(c, "an ID block")
	if err != nil {
		return err
	}
	block, err := u.readIDBlock(name)
	if err != nil {
		return err
	}
	var auth *measure.IDAuth
	switch local, remote := c.String("id-key") != "", c.String("id-pub") != "" || c.String("id-signature") != ""; {
	case local == remote:
		return errors.New("idblock sign: expected --id-key, or --id-pub and --id-signature")
	case local:
		if c.String("author-pub") != "" || c.String("author-signature") != "" {
			return errors.New("idblock sign: found a signature by the author key made elsewhere, expected one by the ID key too")
		}
		if auth, err = signWithKeys(c, block); err != nil {
			return err
		}
	default:
		if auth, err = signatures(c); err != nil {
			return err
		}
		if err := auth.Verify(block); err != nil {
			return withClass(attest.ClassSignature, err)
		}
	}
	doc, err := newIDBlockDocument(block, auth)
	if err != nil {
		return err
	}
	if err := writeBytes(c.String("auth"), doc.IDAuth); err != nil {
		return err
	}
	return doc.print(u, asJSON, false)
}

// signatures puts signatures together that were made elsewhere. The author's may
// also be made here.
func signatures(c *cli.Context) (*measure.IDAuth, error) {
	auth := new(measure.IDAuth)
	var err error
	if c.String("id-pub") == "" || c.String("id-signature") == "" {
		return nil, errors.New("idblock sign: expected both --id-pub and --id-signature")
	}
	if auth.IDKey, auth.BlockSig, err = readSignature(c.String("id-pub"), c.String("id-signature")); err != nil {
		return nil, err
	}
	public, signature, private := c.String("author-pub"), c.String("author-signature"), c.String("author-key")
	switch {
	case private != "" && (public != "" || signature != ""):
		return nil, errors.New("idblock sign: expected --author-key, or --author-pub and --author-signature")
	case private != "":
		key, err := readPrivateKey(private)
		if err != nil {
			return nil, err
		}
		return auth, auth.SignKey(key, nil)
	case (public == "") != (signature == ""):
		return nil, errors.New("idblock sign: expected both --author-pub and --author-signature")
	case public != "":
		auth.AuthorKey, auth.IDKeySig, err = readSignature(public, signature)
		return auth, err
	}
	return auth, nil
}

func (u *ui) idblockKey(c *cli.Context) error {
	name, err := oneArg(c, "a key in PEM")
	if err != nil {
		return err
	}
	key, err := readPublicKey(name)
	if err != nil {
		return err
	}
	data, err := measure.EncodeIDKey(key)
	if err != nil {
		return err
	}
	digest, err := measure.IDKeyDigest(key)
	if err != nil {
		return err
	}
	if err := writeBytes(c.String("out"), data); err != nil {
		return err
	}
	u.data("%s", digest)
	return nil
}

// readBinary reads a structure of size bytes, raw or in base64.
func (u *ui) readBinary(name string, size int) ([]byte, error) {
	data, err := u.readInput(name, inputfile.MaxDocument)
	if err != nil || len(data) == size {
		return data, err
	}
	decoded, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(data)))
	if err != nil || len(decoded) != size {
		return nil, fmt.Errorf("%s: found %d bytes, expected %d, or the same in base64", name, len(data), size)
	}
	return decoded, nil
}

func (u *ui) readIDBlock(name string) (*measure.IDBlock, error) {
	data, err := u.readBinary(name, measure.IDBlockSize)
	if err != nil {
		return nil, err
	}
	block, err := measure.ParseIDBlock(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return block, nil
}

func (u *ui) readIDAuth(name string) (*measure.IDAuth, error) {
	data, err := u.readBinary(name, measure.IDAuthSize)
	if err != nil {
		return nil, err
	}
	auth, err := measure.ParseIDAuth(data)
	if err != nil {
		return nil, withClass(attest.ClassSignature, fmt.Errorf("%s: %w", name, err))
	}
	return auth, nil
}

func (u *ui) idblockShow(c *cli.Context) error {
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	if n := c.NArg(); n != 1 && n != 2 {
		return fmt.Errorf("idblock show: found %s, expected BLOCK [AUTH]", arguments(n))
	}
	block, err := u.readIDBlock(c.Args().Get(0))
	if err != nil {
		return err
	}
	var auth *measure.IDAuth
	if c.NArg() == 2 {
		if auth, err = u.readIDAuth(c.Args().Get(1)); err != nil {
			return err
		}
	}
	doc, err := newIDBlockDocument(block, auth)
	if err != nil {
		return err
	}
	if err := doc.print(u, asJSON, true); err != nil {
		return err
	}
	if auth != nil {
		if err := auth.Verify(block); err != nil {
			return withClass(attest.ClassSignature, err)
		}
	}
	return nil
}

func (u *ui) idblockVerify(c *cli.Context) error {
	if n := c.NArg(); n != 2 {
		return fmt.Errorf("idblock verify: found %s, expected BLOCK AUTH", arguments(n))
	}
	block, err := u.readIDBlock(c.Args().Get(0))
	if err != nil {
		return err
	}
	auth, err := u.readIDAuth(c.Args().Get(1))
	if err != nil {
		return err
	}
	want := *block
	if err := idblockFieldsInto(c, &want); err != nil {
		return err
	}
	if !c.IsSet("policy") && c.String("golden") == "" {
		want.Policy = block.Policy
	}
	if !c.IsSet("svn") {
		want.GuestSVN = block.GuestSVN
	}
	var errs []error
	fail := func(class attest.Class, format string, args ...any) {
		errs = append(errs, withClass(class, fmt.Errorf(format, args...)))
	}
	if err := auth.Verify(block); err != nil {
		errs = append(errs, withClass(attest.ClassSignature, err))
	}
	for _, k := range []struct {
		flag  string
		found *ecdsa.PublicKey
	}{{"id-pub", auth.IDKey}, {"author-pub", auth.AuthorKey}} {
		name := c.String(k.flag)
		if name == "" {
			continue
		}
		expected, err := readPublicKey(name)
		if err != nil {
			return err
		}
		if k.found == nil || !k.found.Equal(expected) {
			fail(attest.ClassSignature, "--%s: the key is not that of %s", k.flag, name)
		}
	}
	if block.Policy != want.Policy {
		fail(attest.ClassPolicy, "policy: found %#x, expected %#x", block.Policy, want.Policy)
	}
	if block.FamilyID != want.FamilyID {
		fail(attest.ClassPolicy, "family ID: found %x, expected %x", block.FamilyID, want.FamilyID)
	}
	if block.ImageID != want.ImageID {
		fail(attest.ClassPolicy, "image ID: found %x, expected %x", block.ImageID, want.ImageID)
	}
	if block.GuestSVN != want.GuestSVN {
		fail(attest.ClassPolicy, "guest SVN: found %d, expected %d", block.GuestSVN, want.GuestSVN)
	}
	if block.LaunchDigest != want.LaunchDigest {
		fail(attest.ClassMeasurement, "launch digest: found %s, expected %s", block.LaunchDigest, want.LaunchDigest)
	}
	if len(errs) == 0 {
		u.say("ID block is good: signed, for launch digest %s", block.LaunchDigest)
	}
	return errors.Join(errs...)
}
