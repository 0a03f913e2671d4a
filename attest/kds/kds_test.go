package kds_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
	"github.com/evtpm/evtpm/attest/kds"
)

const vcekURL = "https://" + attest.KDSHost + "/vcek/v1/Genoa/00?blSPL=10"

var (
	crlURL   = attest.CRLURL("vcek", "Genoa")
	chainURL = attest.CertChainURL("vcek", "Genoa")
)

func leaf() []byte {
	m := attesttest.NewMachine(attesttest.Genoa)
	return m.LeafCertificate().Raw
}

func crl() []byte { return attesttest.NewSigner("Genoa").CRL(nil, nil) }

func chain() []byte {
	s := attesttest.NewSigner("Genoa")
	var out []byte
	for _, der := range [][]byte{s.ASK.Raw, s.ARK.Raw} {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

// A service is a round tripper that answers from a list, one a request.
type service struct {
	answers []answer
	asked   []string
}

type answer struct {
	status int
	header http.Header
	body   io.Reader
	err    error
}

func ok(body []byte) answer { return answer{status: 200, body: bytes.NewReader(body)} }

func status(code int) answer { return answer{status: code, body: strings.NewReader("")} }

func (s *service) RoundTrip(req *http.Request) (*http.Response, error) {
	s.asked = append(s.asked, req.URL.String())
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	if len(s.answers) == 0 {
		return nil, errors.New("asked once too often")
	}
	a := s.answers[0]
	s.answers = s.answers[1:]
	if a.err != nil {
		return nil, a.err
	}
	if a.header == nil {
		a.header = http.Header{}
	}
	return &http.Response{StatusCode: a.status, Status: http.StatusText(a.status), Header: a.header, Body: io.NopCloser(a.body), Request: req}, nil
}

// client makes a client of a service that does not sleep, and notes its pauses.
func client(answers ...answer) (*kds.Client, *service, *[]time.Duration) {
	s := &service{answers: answers}
	pauses := new([]time.Duration)
	return kds.New(kds.Options{Transport: s, Sleep: func(ctx context.Context, d time.Duration) error {
		*pauses = append(*pauses, d)
		return ctx.Err()
	}}), s, pauses
}

func TestGet(t *testing.T) {
	for url, body := range map[string][]byte{vcekURL: leaf(), crlURL: crl(), chainURL: chain()} {
		c, s, _ := client(ok(body))
		got, err := c.Get(t.Context(), url)
		if err != nil || !bytes.Equal(got, body) || s.asked[0] != url {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestS40_FaultsEndInUnavailable(t *testing.T) {
	redirect := func(to string) answer {
		return answer{status: 302, header: http.Header{"Location": {to}}, body: strings.NewReader("")}
	}
	html := ok([]byte("<html>Log in to the airport's network</html>"))
	for name, c := range map[string]struct {
		url     string
		answers []answer
		asked   int
	}{
		"not found":                {vcekURL, []answer{status(404)}, 1},
		"bad request":              {vcekURL, []answer{status(400)}, 1},
		"too many requests":        {vcekURL, []answer{status(429), status(429), status(429), status(429), status(429)}, 5},
		"server error":             {vcekURL, []answer{status(500), status(502), status(503), status(504), status(500)}, 5},
		"no connection":            {vcekURL, []answer{{err: io.EOF}, {err: io.EOF}, {err: io.EOF}, {err: io.EOF}, {err: io.EOF}}, 5},
		"HTML for a certificate":   {vcekURL, []answer{html, html, html, html, html}, 5},
		"HTML for a chain":         {chainURL, []answer{ok([]byte("<html>")), ok(nil), ok([]byte("x")), ok([]byte("y")), ok([]byte("z"))}, 5},
		"HTML for a CRL":           {crlURL, []answer{html, html, html, html, html}, 5},
		"cut short":                {vcekURL, []answer{ok(leaf()[:100]), ok(leaf()[:100]), ok(leaf()[:100]), ok(leaf()[:100]), ok(leaf()[:100])}, 5},
		"breaks off":               {vcekURL, []answer{breaks(), breaks(), breaks(), breaks(), breaks()}, 5},
		"CRL for a certificate":    {vcekURL, []answer{ok(crl()), ok(crl()), ok(crl()), ok(crl()), ok(crl())}, 5},
		"certificate for a CRL":    {crlURL, []answer{ok(leaf()), ok(leaf()), ok(leaf()), ok(leaf()), ok(leaf())}, 5},
		"two megabytes":            {vcekURL, []answer{ok(make([]byte, 2<<20))}, 1},
		"redirect to http":         {vcekURL, []answer{redirect("http://" + attest.KDSHost + "/x")}, -1},
		"redirect to another host": {vcekURL, []answer{redirect("https://evil.example/x")}, -1},
		"redirect with a user":     {vcekURL, []answer{redirect("https://u@" + attest.KDSHost + "/x")}, -1},
		"redirects without end":    {vcekURL, []answer{redirect(vcekURL), redirect(vcekURL), redirect(vcekURL), redirect(vcekURL), redirect(vcekURL)}, -1},
		"http":                     {"http://" + attest.KDSHost + "/vcek", nil, 0},
		"another host":             {"https://evil.example/vcek", nil, 0},
		"another port":             {"https://" + attest.KDSHost + ":8443/vcek", nil, 0},
		"a file":                   {"file:///etc/passwd", nil, 0},
		"no URL":                   {"https://%zz", nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			g, s, _ := client(c.answers...)
			data, err := g.Get(t.Context(), c.url)
			if !errors.Is(err, kds.ErrUnavailable) || data != nil {
				t.Errorf("%v, %d bytes", err, len(data))
			}
			if c.asked >= 0 && len(s.asked) != c.asked {
				t.Errorf("asked %d times, expected %d", len(s.asked), c.asked)
			}
			for _, u := range s.asked {
				if !strings.HasPrefix(u, "https://"+attest.KDSHost+"/") {
					t.Errorf("asked %s", u)
				}
			}
		})
	}
}

// breaks is an answer that breaks off.
func breaks() answer {
	return answer{status: 200, body: io.MultiReader(bytes.NewReader(leaf()[:50]), errReader{})}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestRetry(t *testing.T) {
	after := answer{status: 429, header: http.Header{"Retry-After": {"7"}}, body: strings.NewReader("")}
	long := answer{status: 429, header: http.Header{"Retry-After": {"3000"}}, body: strings.NewReader("")}
	odd := answer{status: 429, header: http.Header{"Retry-After": {"Tue, 24 Nov 2026 12:00:00 GMT"}}, body: strings.NewReader("")}
	c, s, pauses := client(status(503), after, odd, long, ok(leaf()))
	if _, err := c.Get(t.Context(), vcekURL); err != nil {
		t.Fatal(err)
	}
	if len(s.asked) != 5 || len(*pauses) != 4 {
		t.Fatalf("asked %d times, paused %v", len(s.asked), *pauses)
	}
	// The pauses double, heed the service up to half a minute, and have up to a
	// quarter of jitter.
	for i, least := range []time.Duration{time.Second, 7 * time.Second, 4 * time.Second, 30 * time.Second} {
		if p := (*pauses)[i]; p < least || p > least+least/4 {
			t.Errorf("pause %d is %v, expected %v and up to a quarter more", i+1, p, least)
		}
	}
	// A redirect within the host is followed.
	c, s, _ = client(answer{status: 302, header: http.Header{"Location": {"/elsewhere"}}, body: strings.NewReader("")}, ok(leaf()))
	if _, err := c.Get(t.Context(), vcekURL); err != nil || len(s.asked) != 2 {
		t.Errorf("%v, asked %v", err, s.asked)
	}
}

func TestGetEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c, s, _ := client(ok(leaf()))
	if _, err := c.Get(ctx, vcekURL); !errors.Is(err, kds.ErrUnavailable) || len(s.asked) > 1 {
		t.Errorf("%v, asked %v", err, s.asked)
	}
	// In the middle of a pause.
	ctx, cancel = context.WithCancel(t.Context())
	g := kds.New(kds.Options{Transport: &service{answers: []answer{status(503)}}, Backoff: time.Hour, Longest: time.Hour})
	time.AfterFunc(20*time.Millisecond, cancel)
	start := time.Now()
	if _, err := g.Get(ctx, vcekURL); !errors.Is(err, kds.ErrUnavailable) || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

func TestMirror(t *testing.T) {
	s := &service{answers: []answer{ok(leaf())}}
	c := kds.New(kds.Options{Transport: s, Host: "mirror.example"})
	if _, err := c.Get(t.Context(), vcekURL); err != nil || !strings.HasPrefix(s.asked[0], "https://mirror.example/vcek/v1/Genoa/") {
		t.Errorf("%v, asked %v", err, s.asked)
	}
}

// counting counts what is asked of another getter.
type counting struct {
	next  attest.Getter
	asked int
}

func (c *counting) Get(ctx context.Context, url string) ([]byte, error) {
	c.asked++
	return c.next.Get(ctx, url)
}

// table answers from a map.
type table map[string][]byte

func (m table) Get(_ context.Context, url string) ([]byte, error) {
	if b, ok := m[url]; ok {
		return b, nil
	}
	return nil, kds.ErrUnavailable
}

func TestCache(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	answers := table{vcekURL: leaf(), crlURL: crl(), chainURL: chain()}
	next := &counting{next: answers}
	now := time.Now()
	c := &kds.Cache{Dir: dir, Next: next, Now: func() time.Time { return now }}
	get := func(url string, asks int) []byte {
		t.Helper()
		before := next.asked
		b, err := c.Get(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		if next.asked-before != asks {
			t.Errorf("%s: asked %d times, expected %d", url, next.asked-before, asks)
		}
		return b
	}
	for _, url := range []string{vcekURL, chainURL, crlURL} {
		get(url, 1)
		if b := get(url, 0); !bytes.Equal(b, answers[url]) {
			t.Errorf("%s: something else came back", url)
		}
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	// After a day a CRL is asked for again, a certificate is not; and a CRL that
	// cannot be had is still the kept one.
	now = now.Add(25 * time.Hour)
	get(vcekURL, 0)
	get(crlURL, 1)
	delete(answers, crlURL)
	get(crlURL, 1)
	// A clock that ran backwards makes nothing fresh for ever.
	now = now.Add(-100 * time.Hour)
	get(crlURL, 1)
	// Damaged files count as absent.
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 3 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f.Name()), []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	get(vcekURL, 1)
	if _, err := c.Get(t.Context(), crlURL); !errors.Is(err, kds.ErrUnavailable) {
		t.Errorf("a damaged CRL: %v", err)
	}
	// Without a network the kept ones serve, however old.
	offline := &kds.Cache{Dir: dir}
	if b, err := offline.Get(t.Context(), vcekURL); err != nil || !bytes.Equal(b, leaf()) {
		t.Error(err)
	}
	if _, err := offline.Get(t.Context(), "https://"+attest.KDSHost+"/vcek/v1/Milan/01"); !errors.Is(err, kds.ErrUnavailable) {
		t.Error(err)
	}
	// What is not what it should be is not kept.
	if err := offline.Put(crlURL, leaf()); err == nil {
		t.Error("a certificate was kept as a CRL")
	}
	if err := offline.Put(crlURL, crl()); err != nil {
		t.Error(err)
	}
	if _, err := offline.Get(t.Context(), crlURL); err != nil {
		t.Error(err)
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), ".") {
			t.Errorf("left behind: %s", f.Name())
		}
	}
}

func TestCacheThatCannotBeWritten(t *testing.T) {
	// A file where the folder should be.
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := &kds.Cache{Dir: path, Next: table{vcekURL: leaf()}}
	if b, err := c.Get(t.Context(), vcekURL); err != nil || !bytes.Equal(b, leaf()) {
		t.Errorf("a cache that cannot be written: %v", err)
	}
	if err := c.Put(vcekURL, leaf()); err == nil {
		t.Error("no error from Put")
	}
	// A link or a folder under the name of a file is not followed.
	dir := t.TempDir()
	c = &kds.Cache{Dir: dir}
	if err := c.Put(vcekURL, leaf()); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	name := filepath.Join(dir, files[0].Name())
	if err := os.Rename(name, name+"x"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(name+"x", name); err != nil {
		t.Skip("no symbolic links here")
	}
	if _, err := c.Get(t.Context(), vcekURL); !errors.Is(err, kds.ErrUnavailable) {
		t.Errorf("a symbolic link in the cache: %v", err)
	}
}
