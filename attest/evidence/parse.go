package evidence

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/evtpm/evtpm/strictjson"
)

// MaxEvidence bounds the JSON form of evidence in bytes, maxValues its values:
// some 15 fields and 24 PCRs. A large document of small values takes long to read.
const (
	MaxEvidence = MaxPayload
	maxValues   = 1000
)

// Parse reads evidence. Unknown and repeated fields, trailing data, another
// schema, and base64 that is not in its one canonical form are errors. The
// contents are left to package attest.
func Parse(data []byte) (*Evidence, error) {
	if n := bytes.Count(data, []byte(",")) + bytes.Count(data, []byte("[")) + bytes.Count(data, []byte("{")); n > maxValues {
		return nil, fmt.Errorf("evidence: found more than %d values", maxValues)
	}
	ev := new(Evidence)
	if err := strictjson.Unmarshal(data, ev, MaxEvidence, "evidence"); err != nil {
		return nil, err
	}
	if ev.Schema != Schema {
		return nil, fmt.Errorf("evidence: schema is %q, expected %q", ev.Schema, Schema)
	}
	if err := canonicalBase64(data, ev); err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	return ev, nil
}

// canonicalBase64 refuses base64 that Go's decoder forgives: line breaks and
// stray bits at the end.
func canonicalBase64(data []byte, ev *Evidence) error {
	var text struct {
		Nonce          string `json:"nonce"`
		Report         string `json:"report"`
		Manifest       string `json:"manifest"`
		Certificates   string `json:"certificates"`
		EKPublic       string `json:"ek_public"`
		AKPublic       string `json:"ak_public"`
		Quote          string `json:"quote"`
		QuoteSignature string `json:"quote_signature"`
		EventLog       string `json:"event_log"`
		PCRs           []struct {
			Value string `json:"value"`
		} `json:"pcrs"`
	}
	if err := json.Unmarshal(data, &text); err != nil {
		return err
	}
	type field struct {
		name, text string
		bytes      []byte
	}
	fields := []field{
		{"nonce", text.Nonce, ev.Nonce},
		{"report", text.Report, ev.Report},
		{"manifest", text.Manifest, ev.Manifest},
		{"certificates", text.Certificates, ev.Certificates},
		{"ek_public", text.EKPublic, ev.EKPublic},
		{"ak_public", text.AKPublic, ev.AKPublic},
		{"quote", text.Quote, ev.Quote},
		{"quote_signature", text.QuoteSignature, ev.QuoteSignature},
		{"event_log", text.EventLog, ev.EventLog},
	}
	for i, p := range text.PCRs {
		fields = append(fields, field{fmt.Sprintf("pcrs[%d].value", i), p.Value, ev.PCRs[i].Value})
	}
	for _, f := range fields {
		if base64.StdEncoding.EncodeToString(f.bytes) != f.text {
			return fmt.Errorf("field %q: not canonical base64", f.name)
		}
	}
	return nil
}
