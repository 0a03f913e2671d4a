package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/evidence"
)

func evidenceCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:  "evidence",
		Usage: "read and write evidence of other programs",
		Subcommands: []*cli.Command{
			{
				Name: "convert", Usage: "turn evidence from one form into another; nothing is judged",
				Description: "Forms: evtpm (this program's JSON), gotpm (go-tpm-tools' SevSnpSvsmAttestation, in its\n" +
					"binary form), azure (Trustee's az-snp-vtpm JSON; read only). The nonce is not part of the\n" +
					"other forms: --nonce says what the verifier had asked for. gotpm's quote must have been\n" +
					"made over the SHA-256 of its 64 bytes.",
				ArgsUsage: "FILE",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "from", Value: "evtpm", Usage: "`FORM` of the input: evtpm, gotpm or azure"},
					&cli.StringFlag{Name: "to", Value: "evtpm", Usage: "`FORM` of the output: evtpm or gotpm"},
					&cli.StringFlag{Name: "nonce", Usage: "the verifier's nonce in `HEX`, for gotpm and azure"},
					&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE` instead of standard output"},
				},
				Action: func(c *cli.Context) error { return evidenceConvert(u, c) },
			},
		},
	}
}

func evidenceConvert(u *ui, c *cli.Context) error {
	name, err := oneArg(c, "FILE")
	if err != nil {
		return err
	}
	data, err := u.readInput(name, evidence.MaxEvidence)
	if err != nil {
		return err
	}
	ev, err := readEvidence(data, c.String("from"), c.String("nonce"))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	var out []byte
	switch to := c.String("to"); to {
	case "evtpm":
		if out, err = json.MarshalIndent(ev, "", "  "); err == nil {
			out = append(out, '\n')
		}
	case "gotpm":
		out, err = attest.EncodeGoTPM(ev)
	default:
		err = fmt.Errorf("--to: found %q, expected evtpm or gotpm", to)
	}
	if err != nil {
		return err
	}
	write := func(w io.Writer) error {
		_, err := w.Write(out)
		return err
	}
	if file := c.String("output"); file != "" {
		return writeWhole(file, write)
	}
	return write(u.out)
}

// readEvidence reads evidence in one of the forms.
func readEvidence(data []byte, form, nonceText string) (*evidence.Evidence, error) {
	read := attest.ParseGoTPM
	switch form {
	case "evtpm":
		if nonceText != "" {
			return nil, fmt.Errorf("--nonce: evidence of the form evtpm has its own")
		}
		return evidence.Parse(data)
	case "gotpm":
	case "azure":
		read = attest.ParseAzure
	default:
		return nil, fmt.Errorf("--from: found %q, expected evtpm, gotpm or azure", form)
	}
	nonce, err := hex.DecodeString(nonceText)
	if err != nil || len(nonce) == 0 || len(nonce) > attest.NonceSize {
		return nil, fmt.Errorf("--nonce: found %q, expected 1 to %d bytes in hexadecimal", nonceText, attest.NonceSize)
	}
	return read(data, nonce)
}
