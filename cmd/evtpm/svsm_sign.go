package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/svsmimg"
)

func svsmSignCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name: "sign", Usage: "add an ID block to an image: the AMD-SP then starts it as it was measured, or not at all",
		ArgsUsage: "FILE",
		Description: "With private keys at once:\n\n" +
			"   evtpm svsm sign --id-key id.pem --out signed.igvm image.igvm\n\n" +
			"or in two steps for keys that live elsewhere. --block writes the 96 bytes to sign; the signature, or what evtpm idblock\n" +
			"sign made of it, comes back:\n\n" +
			"   evtpm svsm sign --block block.bin image.igvm\n" +
			"   openssl dgst -sha384 -sign id.pem -out id.sig block.bin\n" +
			"   evtpm svsm sign --id-pub id.pub --id-signature id.sig --out signed.igvm image.igvm\n\n" +
			"The ID block names the launch digest, so it is for one host profile, and for one number of vCPUs where they are measured.",
		Flags: append(append(svsmLaunchFlags(), idblockKeys()...),
			&cli.StringFlag{Name: "id-pub", Usage: "ID key's public half in `PEM`, with --id-signature"},
			&cli.StringFlag{Name: "id-signature", Usage: "signature by the ID key over the block, DER in `FILE`"},
			&cli.StringFlag{Name: "author-pub", Usage: "author key's public half in `PEM`, with --author-signature"},
			&cli.StringFlag{Name: "author-signature", Usage: "signature by the author key over the ID key, DER in `FILE`"},
			&cli.StringFlag{Name: "auth", Usage: "ID authentication information in `FILE`, made by evtpm idblock sign"},
			&cli.StringFlag{Name: "family-id", Usage: "16 bytes in `HEX`, or up to 16 characters after \"text:\""},
			&cli.StringFlag{Name: "image-id", Usage: "16 bytes in `HEX`, or up to 16 characters after \"text:\""},
			&cli.StringFlag{Name: "svn", Value: "0", Usage: "guest SVN, in decimal"},
			&cli.StringFlag{Name: "block", Usage: "write the bytes to sign to `FILE`"},
			&cli.BoolFlag{Name: "replace", Usage: "replace the ID block that the image has"},
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "write the signed image to `FILE`"}),
		Action: func(c *cli.Context) error { return u.svsmSign(c) },
	}
}

func (u *ui) svsmSign(c *cli.Context) error {
	name, f, err := u.imageArg(c)
	if err != nil {
		return err
	}
	if f.IDBlock() != nil && !c.Bool("replace") {
		return fmt.Errorf("%s: found an ID block already; give --replace to sign anew", name)
	}
	var o svsmimg.IDBlockOptions
	if o.Launch, err = svsmLaunch(c, f); err != nil {
		return err
	}
	if o.Launch.Profile == svsmimg.ProfileFile {
		u.warn("host profile file is no host's: the AMD-SP takes the ID block where the host measures as the file says")
	}
	if err := errors.Join(readID("family-id", c.String("family-id"), &o.FamilyID), readID("image-id", c.String("image-id"), &o.ImageID)); err != nil {
		return err
	}
	if o.GuestSVN, err = guestSVN(c); err != nil {
		return err
	}
	block, err := f.NewIDBlock(o)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	u.say("host profile: %s", o.Launch.Profile)
	if err := writeBytes(c.String("block"), block.Encode()); err != nil {
		return err
	}
	auth, err := u.svsmAuth(c, block)
	switch {
	case err != nil:
		return err
	case auth == nil && c.String("block") != "" && c.String("out") == "":
		return nil // the first of two steps
	case auth == nil:
		return errors.New("svsm sign: expected --id-key, or --id-pub and --id-signature, or --auth; or --block alone to sign elsewhere")
	case c.String("out") == "":
		return errors.New("--out: expected the name of the signed image")
	}
	signed, err := f.WithIDBlock(block, auth, o.Launch)
	if err != nil {
		return withClass(attest.ClassSignature, fmt.Errorf("%s: %w", name, err))
	}
	data, err := signed.Encode()
	if err != nil {
		return err
	}
	return writeOut(c, data)
}

// svsmAuth signs a block, or puts together what was signed elsewhere; nil when
// neither was given.
func (u *ui) svsmAuth(c *cli.Context, block *measure.IDBlock) (*measure.IDAuth, error) {
	local, remote, ready := c.String("id-key") != "", c.String("id-pub") != "" || c.String("id-signature") != "", c.String("auth") != ""
	ways := 0
	for _, given := range []bool{local, remote, ready} {
		if given {
			ways++
		}
	}
	switch {
	case ways > 1:
		return nil, errors.New("svsm sign: expected one of --id-key, --id-pub with --id-signature, and --auth")
	case local:
		return signWithKeys(c, block)
	case remote:
		return signatures(c)
	case ready:
		return u.readIDAuth(c.String("auth"))
	}
	return nil, nil
}

func svsmVerifyCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name: "verify", Usage: "check an image's ID block: signatures, and whether it is that of the launch; or the image against its manifest",
		ArgsUsage:   "FILE",
		Description: "Exit codes: 0 good, 2 a signature or a key is wrong, or there is none, 6 the ID block or the manifest is another image's.",
		Flags: append(svsmLaunchFlags(), outputFlag(),
			&cli.StringFlag{Name: "id-pub", Usage: "expected ID key in `PEM`"},
			&cli.StringFlag{Name: "author-pub", Usage: "expected author key in `PEM`"},
			&cli.StringFlag{Name: "manifest", Usage: "hold the image against its manifest in `FILE` instead of its ID block"}),
		Action: func(c *cli.Context) error { return u.svsmVerify(c) },
	}
}

// svsmVerifyDocument is what -o json prints.
type svsmVerifyDocument struct {
	Schema      string                 `json:"schema"`
	HostProfile svsmimg.Profile        `json:"host_profile"`
	IDBlock     *measure.GoldenIDBlock `json:"id_block"`
}

func (u *ui) svsmVerify(c *cli.Context) error {
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	name, err := oneArg(c, "an IGVM file")
	if err != nil {
		return err
	}
	data, err := u.readInput(name, inputfile.MaxImage)
	if err != nil {
		return err
	}
	if m := c.String("manifest"); m != "" {
		return u.svsmCheckManifest(name, data, m)
	}
	f, err := svsmimg.Parse(data)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	o, err := svsmLaunch(c, f)
	if err != nil {
		return err
	}
	golden, err := f.VerifyIDBlock(o)
	var other *svsmimg.DigestError
	switch {
	case errors.As(err, &other):
		return withClass(attest.ClassMeasurement, fmt.Errorf("%s: host profile %s: %w", name, o.Profile, err))
	case err != nil:
		return withClass(attest.ClassSignature, fmt.Errorf("%s: %w", name, err))
	}
	if err := svsmCheckKeys(c, golden); err != nil {
		return withClass(attest.ClassSignature, err)
	}
	u.say("%s: ID block is good for host profile %s", name, o.Profile)
	if asJSON {
		return u.json(svsmVerifyDocument{"evtpm.svsm-verify/v1", o.Profile, golden})
	}
	u.data("ID key digest     %s", golden.IDKeyDigest)
	if golden.AuthorKeyDigest != nil {
		u.data("author key digest %s", golden.AuthorKeyDigest)
	}
	return nil
}

// svsmCheckKeys holds the keys of an ID block against expected ones.
func svsmCheckKeys(c *cli.Context, g *measure.GoldenIDBlock) error {
	var errs []error
	for _, k := range []struct {
		flag  string
		found *measure.Digest
	}{{"id-pub", &g.IDKeyDigest}, {"author-pub", g.AuthorKeyDigest}} {
		name := c.String(k.flag)
		if name == "" {
			continue
		}
		key, err := readPublicKey(name)
		if err != nil {
			return err
		}
		expected, err := measure.IDKeyDigest(key)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if k.found == nil || *k.found != expected {
			errs = append(errs, fmt.Errorf("--%s: the key is not that of %s", k.flag, name))
		}
	}
	return errors.Join(errs...)
}

func (u *ui) svsmCheckManifest(name string, data []byte, manifest string) error {
	text, err := inputfile.Read(manifest, inputfile.MaxDocument)
	if err != nil {
		return err
	}
	m, err := svsmimg.ParseManifest(text)
	if err != nil {
		return fmt.Errorf("%s: %w", manifest, err)
	}
	if err := m.Check(data); err != nil {
		return withClass(attest.ClassMeasurement, err)
	}
	u.say("%s: is the image of %s, %d launch digests checked", name, manifest, len(m.LaunchDigests))
	return nil
}
