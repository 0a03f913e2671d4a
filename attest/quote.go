package attest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/measure"
)

// checkQuoteForm reads the quote. The quote is nil if it cannot be judged
// further.
func checkQuoteForm(ev *evidence.Evidence) (*tpmQuote, Check) {
	q, err := parseQuote(ev.Quote)
	switch {
	case errors.Is(err, errNotQuote) && q.magic != tpmGeneratedValue:
		return nil, fail(CheckQuoteForm, ReasonQuoteMagic, fmt.Sprintf("magic %#08x", uint32(tpmGeneratedValue)), fmt.Sprintf("%#08x", q.magic))
	case errors.Is(err, errNotQuote):
		return nil, fail(CheckQuoteForm, ReasonQuoteType, fmt.Sprintf("type %#04x (quote)", stAttestQuote), fmt.Sprintf("%#04x", q.kind))
	case err != nil:
		return nil, fail(CheckQuoteForm, ReasonQuoteMalformed, "one TPMS_ATTEST", oneLine(err))
	}
	return q, pass(CheckQuoteForm, "")
}

// checkQuoteSignature verifies the quote by the AK.
func checkQuoteSignature(ev *evidence.Evidence, ak *tpmPublic) (*tpmSignature, Check) {
	sig, err := parseSignature(ev.QuoteSignature)
	if err != nil {
		return nil, fail(CheckQuoteSignature, ReasonQuoteAlgorithm, "one TPMT_SIGNATURE", oneLine(err))
	}
	if sig.scheme != ak.scheme || sig.hash != ak.schemeHash {
		return nil, fail(CheckQuoteSignature, ReasonQuoteAlgorithm,
			fmt.Sprintf("the AK's scheme %#04x, hash %#04x", ak.scheme, ak.schemeHash), fmt.Sprintf("scheme %#04x, hash %#04x", sig.scheme, sig.hash))
	}
	key, err := ak.key()
	if err == nil {
		err = sig.verify(key, ev.Quote)
	}
	if err != nil {
		return nil, fail(CheckQuoteSignature, ReasonQuoteSignature, "a signature by the AK", oneLine(err))
	}
	if ak.raw == nil { // of Azure's runtime data, which has no TPMT_PUBLIC
		return sig, pass(CheckQuoteSignature, "the runtime data's AK")
	}
	return sig, pass(CheckQuoteSignature, fmt.Sprintf("AK %x", ak.name()))
}

// checkQuoteNonce compares extraData with SHA-256 of the nonce; Azure's own
// evidence has the nonce itself there.
func checkQuoteNonce(q *tpmQuote, ev *evidence.Evidence) Check {
	if ev.Binding == BindingAzureHCL {
		return equalField(CheckQuoteNonce, ReasonQuoteNonce, ev.Nonce, q.extraData)
	}
	want := sha256.Sum256(ev.Nonce)
	return equalField(CheckQuoteNonce, ReasonQuoteNonce, want[:], q.extraData)
}

// checkPCRSelection compares bank and PCRs of quote, evidence and challenge.
func checkPCRSelection(q *tpmQuote, ev *evidence.Evidence, live *Session) Check {
	alg, _, size, ok := bankHash(ev.PCRBank)
	if !ok {
		return fail(CheckPCRSelection, ReasonPCRBank, "sha256 or sha384", fmt.Sprintf("%q", ev.PCRBank))
	}
	if live != nil && ev.PCRBank != live.bank {
		return fail(CheckPCRSelection, ReasonPCRBank, live.bank, ev.PCRBank)
	}
	var listed []int
	for i, p := range ev.PCRs {
		if p.PCR < 0 || p.PCR > 23 || i > 0 && p.PCR <= ev.PCRs[i-1].PCR {
			return fail(CheckPCRSelection, ReasonPCRForm, "PCRs 0 to 23 in ascending order", fmt.Sprintf("PCR %d at place %d", p.PCR, i))
		}
		if len(p.Value) != size {
			return fail(CheckPCRSelection, ReasonPCRForm, fmt.Sprintf("values of %d bytes", size), fmt.Sprintf("PCR %d has %d bytes", p.PCR, len(p.Value)))
		}
		listed = append(listed, p.PCR)
	}
	if live != nil && !slices.Equal(listed, live.pcrs) {
		return fail(CheckPCRSelection, ReasonPCRSelection, "PCRs "+intList(live.pcrs), intList(listed))
	}
	if len(q.selections) != 1 {
		return fail(CheckPCRSelection, ReasonPCRSelection, "one bank in the quote", fmt.Sprintf("%d", len(q.selections)))
	}
	sel := q.selections[0]
	if sel.alg != alg {
		return fail(CheckPCRSelection, ReasonPCRBank, fmt.Sprintf("algorithm %#04x (%s)", alg, ev.PCRBank), fmt.Sprintf("%#04x in the quote", sel.alg))
	}
	if len(listed) == 0 || !slices.Equal(sel.pcrs, listed) {
		return fail(CheckPCRSelection, ReasonPCRSelection, "PCRs "+intList(sel.pcrs)+" (quoted)", intList(listed))
	}
	return pass(CheckPCRSelection, ev.PCRBank+": "+intList(listed))
}

// intList writes numbers as ranges: "0-7, 14".
func intList(n []int) string {
	if len(n) == 0 {
		return "none"
	}
	var out []string
	for i := 0; i < len(n); {
		j := i
		for j+1 < len(n) && n[j+1] == n[j]+1 {
			j++
		}
		if j > i {
			out = append(out, fmt.Sprintf("%d-%d", n[i], n[j]))
		} else {
			out = append(out, fmt.Sprint(n[i]))
		}
		i = j + 1
	}
	return strings.Join(out, ", ")
}

// checkPCRDigest recomputes the quote's digest over the PCR values. A TPM makes
// it with the hash of the signing scheme, whatever the bank.
func checkPCRDigest(q *tpmQuote, ev *evidence.Evidence, sig *tpmSignature) Check {
	h, ok := tpmHash(sig.hash)
	if !ok {
		return fail(CheckPCRDigest, ReasonPCRDigest, "SHA-256 or more", fmt.Sprintf("%#04x", sig.hash))
	}
	w := h.New()
	for _, p := range ev.PCRs {
		w.Write(p.Value)
	}
	return equalField(CheckPCRDigest, ReasonPCRDigest, q.pcrDigest, w.Sum(nil))
}

// pcrLines lists PCRs, one a line; those that nothing was extended into share one.
func pcrLines(pcrs []evidence.PCR) string {
	var lines []string
	var zeros, ones []int
	for _, p := range pcrs {
		switch {
		case allZero(p.Value):
			zeros = append(zeros, p.PCR)
		case bytes.Count(p.Value, []byte{0xFF}) == len(p.Value):
			ones = append(ones, p.PCR)
		default:
			lines = append(lines, fmt.Sprintf("%d: %x", p.PCR, p.Value))
		}
	}
	if len(zeros) > 0 {
		lines = append(lines, intList(zeros)+": zeros")
	}
	if len(ones) > 0 {
		lines = append(lines, intList(ones)+": ones")
	}
	return strings.Join(lines, "\n")
}

// checkPCRGolden compares PCRs with golden values, and lists those that have
// none.
func checkPCRGolden(ev *evidence.Evidence, g *measure.Golden) []Check {
	values := map[int][]byte{}
	var unjudged []evidence.PCR
	golden := map[int]bool{}
	if g.PCRs != nil {
		for _, p := range g.PCRs.Values {
			golden[p.PCR] = true
		}
	}
	for _, p := range ev.PCRs {
		values[p.PCR] = p.Value
		if !golden[p.PCR] {
			unjudged = append(unjudged, p)
		}
	}
	rest := skip(CheckPCRUnjudged, "shown, not judged: no golden values").found(pcrLines(unjudged))
	if len(unjudged) == 0 {
		rest = skip(CheckPCRUnjudged, "every quoted PCR has golden values")
	}
	if len(golden) == 0 {
		return []Check{skip(CheckPCRGolden, "the golden values list no PCRs"), rest}
	}
	if g.PCRs.Bank != ev.PCRBank {
		return []Check{fail(CheckPCRGolden, ReasonPCRMissing, "bank "+g.PCRs.Bank, ev.PCRBank), rest}
	}
	var judged []int
	var wants, finds []string
	reason := ReasonPCRGolden
	for _, p := range g.PCRs.Values {
		got, quoted := values[p.PCR]
		if slices.ContainsFunc(p.AnyOf, func(v measure.GoldenPCRValue) bool { return bytes.Equal(v.Value, got) }) {
			judged = append(judged, p.PCR)
			continue
		}
		var want []string
		for _, v := range p.AnyOf {
			want = append(want, v.Value.String())
		}
		wants = append(wants, fmt.Sprintf("%d: %s", p.PCR, strings.Join(want, " or ")))
		if quoted {
			finds = append(finds, fmt.Sprintf("%d: %x", p.PCR, got))
		} else {
			reason = ReasonPCRMissing
			finds = append(finds, fmt.Sprintf("%d: not quoted", p.PCR))
		}
	}
	if len(finds) > 0 {
		return []Check{fail(CheckPCRGolden, reason, strings.Join(wants, "\n"), strings.Join(finds, "\n")), rest}
	}
	return []Check{pass(CheckPCRGolden, ev.PCRBank+": "+intList(judged)), rest}
}
