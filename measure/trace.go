package measure

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/evtpm/evtpm/strictjson"
)

// A TraceLine is one launch step in the JSON lines of a trace: a page of an SNP
// launch, or a run of bytes of a SEV or SEV-ES launch.
type TraceLine struct {
	N    int    `json:"n"`    // counts from 0
	Type string `json:"type"` // the ABI's page type
	GPA  string `json:"gpa"`  // hexadecimal, with 0x
	Size uint64 `json:"size"` // in bytes

	// Source says who brings the bytes.
	Source string `json:"source"`

	// Contents is the SHA-384 of the page; left out where contents are not
	// measured. For SEV and SEV-ES it is the SHA-256 of the bytes.
	Contents string `json:"contents,omitempty"`

	// Digest is the launch digest after this step. Left out for SEV and SEV-ES
	// until the last.
	Digest string `json:"digest,omitempty"`
}

// WriteTrace writes every launch step as a line of JSON.
func (s *Sequence) WriteTrace(w io.Writer) error {
	buf := bufio.NewWriter(w)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	var err error
	if s.Mode == ModeSEV || s.Mode == ModeSEVES {
		err = s.traceSEV(enc)
	} else {
		err = s.traceSNP(enc)
	}
	return errors.Join(err, buf.Flush())
}

func (s *Sequence) traceSNP(enc *json.Encoder) error {
	n := 0
	var failed error
	_, err := s.Walk(func(u Update) {
		if failed != nil {
			return
		}
		l := TraceLine{N: n, Type: u.Type.String(), GPA: hexGPA(u.GPA), Size: PageSize, Source: s.step(u).Source, Digest: u.After.String()}
		if u.Type.measured() {
			l.Contents = u.Contents.String()
		}
		failed = enc.Encode(l)
		n++
	})
	return errors.Join(err, failed)
}

func (s *Sequence) traceSEV(enc *json.Encoder) error {
	digest, err := s.SEVDigest()
	if err != nil {
		return err
	}
	total := len(s.Steps) + len(s.VMSAs)
	for n := range total {
		st := &s.Steps[min(n, len(s.Steps)-1)]
		if n >= len(s.Steps) {
			st = &s.VMSAs[n-len(s.Steps)]
		}
		sum := sha256.Sum256(st.Data)
		l := TraceLine{N: n, Type: st.Type.String(), GPA: hexGPA(st.GPA), Size: st.Size, Source: st.Source, Contents: HexBytes(sum[:]).String()}
		if n == total-1 {
			l.Digest = HexBytes(digest[:]).String()
		}
		if err := enc.Encode(l); err != nil {
			return err
		}
	}
	return nil
}

// step is the step that an update belongs to.
func (s *Sequence) step(u Update) *Step {
	if u.VMSA {
		return &s.VMSAs[u.Step]
	}
	return &s.Steps[u.Step]
}

// measured reports whether the contents of pages of the type are measured.
func (t PageType) measured() bool { return t == PageNormal || t == PageVMSA }

func hexGPA(gpa uint64) string { return "0x" + strconv.FormatUint(gpa, 16) }

// MaxTraceSize bounds a trace: a line for each of MaxPages pages would be far
// longer, but no image has a tenth of them.
const MaxTraceSize = 64 << 20

// ParseTrace reads the trace of an SNP launch and folds it again: a line whose
// digest does not follow from the lines before it is an error.
func ParseTrace(data []byte) ([]Page, error) {
	if len(data) > MaxTraceSize {
		return nil, fmt.Errorf("trace: found %d bytes, expected at most %d", len(data), MaxTraceSize)
	}
	var pages []Page
	var cur Digest
	for n := 0; len(data) > 0; n++ {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte("\n"))
		what := fmt.Sprintf("trace: line %d", n+1)
		var l TraceLine
		if err := strictjson.Unmarshal(line, &l, 4096, what); err != nil {
			return nil, err
		}
		p := Page{Source: l.Source}
		for t := PageNormal; t <= PageCPUID; t++ {
			if l.Type == t.String() {
				p.Type = t
			}
		}
		var err error
		if p.Type == 0 {
			return nil, fmt.Errorf("%s: type: found %q, expected a page type", what, clip(l.Type))
		}
		if p.GPA, err = strconv.ParseUint(l.GPA, 0, 64); err != nil {
			return nil, fmt.Errorf("%s: gpa: %w", what, err)
		}
		if l.N != n || l.Size != PageSize {
			return nil, fmt.Errorf("%s: found n %d and size %d, expected %d and %d", what, l.N, l.Size, n, PageSize)
		}
		if p.Type.measured() {
			if err := p.Contents.UnmarshalText([]byte(l.Contents)); err != nil {
				return nil, fmt.Errorf("%s: contents: %w", what, err)
			}
		} else if l.Contents != "" {
			return nil, fmt.Errorf("%s: contents: found some for a page of type %s", what, l.Type)
		}
		var after Digest
		if err := after.UnmarshalText([]byte(l.Digest)); err != nil {
			return nil, fmt.Errorf("%s: digest: %w", what, err)
		}
		if cur = Extend(cur, p.Type, p.GPA, p.Contents); cur != after {
			return nil, fmt.Errorf("%s: digest: found %s, but the lines up to here give %s", what, after, cur)
		}
		pages = append(pages, p)
	}
	if len(pages) == 0 {
		return nil, errors.New("trace: found no line")
	}
	return pages, nil
}
