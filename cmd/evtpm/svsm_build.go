package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/svsmimg"
)

func svsmBuildCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name: "build", Usage: "build an image from a recipe, with a manifest beside it",
		ArgsUsage: " ",
		Description: "A recipe (YAML) wraps an OVMF image alone, puts COCONUT-SVSM's parts together, or replaces the firmware of an image.\n" +
			"The same recipe and the same files give the same bytes, wherever they lie. The manifest is written to the image's name\n" +
			"with .json added: what the image was built from, and its launch digest on each kind of host.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "recipe `FILE`"},
			outFlag("write the image to `FILE`"),
		},
		Action: func(c *cli.Context) error { return u.svsmBuild(c) },
	}
}

func (u *ui) svsmBuild(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	name, err := needed(c, "file", "a recipe")
	if err != nil {
		return err
	}
	out, err := needed(c, "out", "where the image goes")
	if err != nil {
		return err
	}
	text, err := inputfile.Read(name, inputfile.MaxDocument)
	if err != nil {
		return err
	}
	recipe, err := svsmimg.ParseRecipe(text, name)
	if err != nil {
		return err
	}
	built, err := recipe.Build(func(input string) ([]byte, error) {
		if !filepath.IsAbs(input) {
			input = filepath.Join(filepath.Dir(name), filepath.FromSlash(input))
		}
		return inputfile.Read(input, inputfile.MaxImage)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	manifest, err := built.Manifest.Encode()
	if err != nil {
		return err
	}
	if built.Manifest.IDBlockRemoved {
		u.warn("the image had an ID block, which is that of another launch now: it was left out; see evtpm svsm sign")
	}
	if err := errors.Join(writeOut(c, built.Image), writeBytes(out+".json", manifest)); err != nil {
		return err
	}
	u.say("%s: %d bytes, sha256 %s; manifest in %s.json", out, len(built.Image), built.Manifest.Image.SHA256, out)
	for _, d := range built.Manifest.LaunchDigests {
		u.say("launch digest, host profile %s, vCPUs %d: %s", d.HostProfile, d.VCPUs, d.LaunchDigest)
	}
	return nil
}
