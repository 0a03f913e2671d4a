package launch

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"fmt"
	"io"

	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/measure"
)

// makeIDBlock signs an ID block for the launch, or reads the ready-made one and
// holds it against the launch: the AMD-SP would refuse one that differs, without
// a word why. It returns what reports will say of the block, nil without one.
func (p *Plan) makeIDBlock(digest measure.Digest, rand io.Reader) (*measure.GoldenIDBlock, error) {
	b := p.Spec.IDBlock
	bad := &problems{src: p.Spec.src}
	if p.SVSMImage != nil && p.SVSMImage.IDBlock() != nil {
		return p.imageIDBlock(digest, bad)
	}
	if b == nil {
		return nil, nil
	}
	var block *measure.IDBlock
	var auth *measure.IDAuth
	if b.Block == "" {
		block = &measure.IDBlock{LaunchDigest: digest, GuestSVN: b.SVN, Policy: uint64(p.Spec.Policy)}
		copy(block.FamilyID[:], b.FamilyID)
		copy(block.ImageID[:], b.ImageID)
		auth = p.signIDBlock(block, rand, bad)
	} else {
		block, auth = p.readIDBlock(digest, bad)
	}
	if err := bad.err(); err != nil {
		return nil, err
	}
	encoded, err := auth.Encode()
	if err != nil {
		return nil, err
	}
	p.IDBlock, p.IDAuth, p.AuthorKey = block.Encode(), encoded, auth.AuthorKey != nil
	return auth.Golden(block)
}

// imageIDBlock judges the ID block in an SVSM image. It is not made part of the
// plan: QEMU takes it from the image by itself.
func (p *Plan) imageIDBlock(digest measure.Digest, bad *problems) (*measure.GoldenIDBlock, error) {
	header := p.SVSMImage.IDBlock()
	fail := func(field, format string, args ...any) (*measure.GoldenIDBlock, error) {
		bad.add(field, format, args...)
		return nil, bad.err()
	}
	if p.Spec.IDBlock != nil {
		return fail("id_block", "found beside the ID block in %s, expected one of them", p.SVSM.Path)
	}
	// The policy is the spec's too: see deriveSVSM.
	block := header.Block(uint64(p.Spec.Policy))
	if block.LaunchDigest != digest {
		if p.Extracted != nil && !p.Extracted.SVSM {
			return fail("svsm.image", "%s: found an ID block in an image without an SVSM: platform sim adds the simulated one to its launch, which has another digest", p.SVSM.Path)
		}
		return fail("svsm.image", "%s: found launch digest %s in its ID block, expected %s on host profile %s: the AMD-SP would refuse the launch", p.SVSM.Path, block.LaunchDigest, digest, p.HostProfile)
	}
	auth, err := header.Auth()
	if err != nil {
		return fail("svsm.image", "%s: %w", p.SVSM.Path, err)
	}
	if err := auth.Verify(block); err != nil {
		return fail("svsm.image", "%s: %w", p.SVSM.Path, err)
	}
	return auth.Golden(block)
}

// LaunchIDBlock returns the ID block that the launch ends with, the spec's or the
// image's; nil without one.
func (p *Plan) LaunchIDBlock() (block, auth []byte, authorKey bool, err error) {
	if p.SVSMImage == nil || p.SVSMImage.IDBlock() == nil {
		return p.IDBlock, p.IDAuth, p.AuthorKey, nil
	}
	header := p.SVSMImage.IDBlock()
	a, err := header.Auth()
	if err != nil {
		return nil, nil, false, err
	}
	auth, err = a.Encode()
	return header.Block(uint64(p.Spec.Policy)).Encode(), auth, a.AuthorKey != nil, err
}

func (p *Plan) signIDBlock(block *measure.IDBlock, rand io.Reader, bad *problems) *measure.IDAuth {
	o := measure.SignOptions{Rand: rand}
	for _, k := range []struct {
		field, path string
		signer      *crypto.Signer
	}{{"id_block.id_key", p.Spec.IDBlock.IDKey, &o.IDKey}, {"id_block.author_key", p.Spec.IDBlock.AuthorKey, &o.AuthorKey}} {
		if k.path == "" {
			continue
		}
		pem, err := inputfile.Read(k.path, inputfile.MaxDocument)
		if err != nil {
			bad.add(k.field, "%w", err)
			continue
		}
		key, err := measure.ParsePrivateKeyPEM(pem)
		if err != nil {
			bad.add(k.field, "%s: %w", k.path, err)
			continue
		}
		*k.signer = key
	}
	if bad.err() != nil {
		return nil
	}
	auth, err := measure.SignIDBlock(block, o)
	if err != nil {
		bad.add("id_block", "%w", err)
	}
	return auth
}

func (p *Plan) readIDBlock(digest measure.Digest, bad *problems) (*measure.IDBlock, *measure.IDAuth) {
	read := func(field, path string, size int) []byte {
		data, err := inputfile.Read(path, inputfile.MaxDocument)
		if err != nil {
			bad.add(field, "%w", err)
			return nil
		}
		if data, err = rawOrBase64(data, size); err != nil {
			bad.add(field, "%s: %w", path, err)
		}
		return data
	}
	rawBlock := read("id_block.block", p.Spec.IDBlock.Block, measure.IDBlockSize)
	rawAuth := read("id_block.auth", p.Spec.IDBlock.Auth, measure.IDAuthSize)
	if bad.err() != nil {
		return nil, nil
	}
	block, err := measure.ParseIDBlock(rawBlock)
	if err != nil {
		bad.add("id_block.block", "%w", err)
	}
	auth, err := measure.ParseIDAuth(rawAuth)
	if err != nil {
		bad.add("id_block.auth", "%w", err)
	}
	if bad.err() != nil {
		return nil, nil
	}
	if block.LaunchDigest != digest {
		bad.add("id_block.block", "found launch digest %s, expected %s: the block was made for another launch", block.LaunchDigest, digest)
	}
	if block.Policy != uint64(p.Spec.Policy) {
		bad.add("id_block.block", "found policy %s, expected %s as in policy", Policy(block.Policy), p.Spec.Policy)
	}
	if err := auth.Verify(block); err != nil {
		bad.add("id_block.auth", "%w", err)
	}
	return block, auth
}

// rawOrBase64 takes bytes as they are when they have the size, else as base64 on
// any number of lines.
func rawOrBase64(data []byte, size int) ([]byte, error) {
	if len(data) == size {
		return data, nil
	}
	out := make([]byte, base64.StdEncoding.DecodedLen(len(data)))
	n, err := base64.StdEncoding.Strict().Decode(out, bytes.TrimSpace(data))
	if err != nil || n != size {
		return nil, fmt.Errorf("found %d bytes, expected %d, or their base64", len(data), size)
	}
	return out[:n], nil
}
