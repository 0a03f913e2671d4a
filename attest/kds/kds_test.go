package kds_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
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
	timeout time.Duration // what the last request was given
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
	if req.Host != "" && req.Host != req.URL.Host {
		return nil, fmt.Errorf("asked %s for %s", req.URL.Host, req.Host)
	}
	if deadline, ok := req.Context().Deadline(); ok {
		s.timeout = time.Until(deadline)
	}
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
		"a byte above 1 MiB":       {chainURL, []answer{ok(padded(1<<20 + 1))}, 1},
		"half a chain":             {chainURL, []answer{halfChain(), halfChain(), halfChain(), halfChain(), halfChain()}, 5},
		"DER for a chain":          {chainURL, []answer{ok(leaf()), ok(leaf()), ok(leaf()), ok(leaf()), ok(leaf())}, 5},
		"chain and more":           {chainURL, []answer{ok(chainAnd("x")), ok(chainAnd("x")), ok(chainAnd("x")), ok(chainAnd("x")), ok(chainAnd("x"))}, 5},
		"redirect to http":         {vcekURL, []answer{redirect("http://" + attest.KDSHost + "/x")}, -1},
		"redirect to another host": {vcekURL, []answer{redirect("https://evil.example/x")}, -1},
		"redirect with a user":     {vcekURL, []answer{redirect("https://u@" + attest.KDSHost + "/x")}, -1},
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

// halfChain is an answer that breaks off after one of two certificates: what came
// is good PEM.
func halfChain() answer {
	return answer{status: 200, body: io.MultiReader(bytes.NewReader(chain()[:bytes.LastIndex(chain(), []byte("-----BEGIN"))]), errReader{})}
}

func chainAnd(tail string) []byte { return append(chain(), tail...) }

// padded is a certificate chain of n bytes.
func padded(n int) []byte { return chainAnd(strings.Repeat("\n", n-len(chain()))) }

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
	// Without jitter all verifiers that failed together would come back together.
	if p := *pauses; p[0] == time.Second && p[1] == 7*time.Second && p[2] == 4*time.Second && p[3] == 30*time.Second {
		t.Errorf("paused %v, without any jitter", p)
	}
	for name, c := range map[string]struct {
		first answer
		least time.Duration
	}{
		"request time-out": {status(408), time.Second},
		"no pause":         {answer{status: 429, header: http.Header{"Retry-After": {"0"}}, body: strings.NewReader("")}, time.Second},
		"a pause of -9":    {answer{status: 429, header: http.Header{"Retry-After": {"-9"}}, body: strings.NewReader("")}, time.Second},
		"a pause for ever": {answer{status: 429, header: http.Header{"Retry-After": {"99999999999999999999"}}, body: strings.NewReader("")}, 30 * time.Second},
	} {
		g, _, pauses := client(c.first, ok(leaf()))
		if _, err := g.Get(t.Context(), vcekURL); err != nil || len(*pauses) != 1 {
			t.Errorf("%s: %v, paused %v", name, err, *pauses)
			continue
		}
		if p := (*pauses)[0]; p < c.least || p > c.least+c.least/4 {
			t.Errorf("%s: paused %v, expected %v and up to a quarter more", name, p, c.least)
		}
	}
}

// TestDownForAWhile: after a request that no try was answered to, others fail at
// once for half a minute, and say why; then the service is asked again.
func TestDownForAWhile(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	s := new(service)
	c := kds.New(kds.Options{Transport: s, Attempts: 2, Now: func() time.Time { return now }, Sleep: func(context.Context, time.Duration) error { return nil }})
	get := func(ctx context.Context, url string, answers ...answer) (asked int, err error) {
		s.asked, s.answers = nil, answers
		_, err = c.Get(ctx, url)
		return len(s.asked), err
	}
	// What another try would not mend says nothing about the service, nor does a
	// caller that does not wait.
	if n, err := get(t.Context(), vcekURL, status(404)); n != 1 || err == nil {
		t.Fatalf("asked %d times: %v", n, err)
	}
	if n, err := get(t.Context(), vcekURL, status(503), status(404)); n != 2 || err == nil {
		t.Fatalf("asked %d times: %v", n, err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := get(gone, vcekURL, status(503), status(503)); err == nil {
		t.Fatal("no error")
	}
	if n, err := get(t.Context(), vcekURL, status(503), status(503)); n != 2 || !errors.Is(err, kds.ErrUnavailable) {
		t.Fatalf("asked %d times: %v", n, err)
	}
	for _, url := range []string{vcekURL, crlURL} {
		n, err := get(t.Context(), url, ok(leaf()))
		if n != 0 || !errors.Is(err, kds.ErrUnavailable) || !strings.Contains(err.Error(), "not asked: no answer a short time ago: status Service Unavailable") {
			t.Errorf("asked %d times: %v", n, err)
		}
	}
	now = now.Add(30 * time.Second)
	if n, err := get(t.Context(), vcekURL, ok(leaf())); n != 1 || err != nil {
		t.Errorf("asked %d times: %v", n, err)
	}
}

// Redirects within the host are followed, three of them, at one try.
func TestRedirects(t *testing.T) {
	for n, good := range map[int]bool{1: true, 3: true, 4: false} {
		var answers []answer
		for range n {
			answers = append(answers, answer{status: 302, header: http.Header{"Location": {"/elsewhere"}}, body: strings.NewReader("")})
		}
		s := &service{answers: append(answers, ok(leaf()))}
		_, err := kds.New(kds.Options{Transport: s, Attempts: 1}).Get(t.Context(), vcekURL)
		if (err == nil) != good || len(s.asked) != min(n, 3)+1 {
			t.Errorf("%d redirects: %v, asked %v", n, err, s.asked)
		}
	}
}

// What the options say goes, not what they mean when they say nothing.
func TestOptions(t *testing.T) {
	s := &service{answers: []answer{status(503), status(503), status(503)}}
	var pauses []time.Duration
	c := kds.New(kds.Options{Transport: s, Attempts: 3, Timeout: time.Hour, Backoff: 40 * time.Second, Longest: time.Minute,
		Sleep: func(_ context.Context, d time.Duration) error { pauses = append(pauses, d); return nil }})
	if _, err := c.Get(t.Context(), vcekURL); !errors.Is(err, kds.ErrUnavailable) {
		t.Error(err)
	}
	if len(s.asked) != 3 || len(pauses) != 2 || pauses[0] < 40*time.Second || pauses[0] > 50*time.Second || pauses[1] < time.Minute {
		t.Errorf("asked %d times, paused %v", len(s.asked), pauses)
	}
	if s.timeout < 30*time.Minute || s.timeout > time.Hour {
		t.Errorf("a try was given %v", s.timeout)
	}
	// However many tries: the pauses stay the longest, and less than one try is one.
	for attempts, asked := range map[int]int{-1: 1, 1: 1, 100: 100} {
		var answers []answer
		for range 101 {
			answers = append(answers, status(503))
		}
		s := &service{answers: answers}
		last := time.Minute
		c := kds.New(kds.Options{Transport: s, Attempts: attempts, Longest: time.Minute, Sleep: func(_ context.Context, d time.Duration) error { last = d; return nil }})
		if _, err := c.Get(t.Context(), vcekURL); !errors.Is(err, kds.ErrUnavailable) || len(s.asked) != asked || last < time.Minute {
			t.Errorf("%d attempts: %v, asked %d times, last after %v", attempts, err, len(s.asked), last)
		}
	}
	// A try is bounded when nothing is said, too.
	g, s, _ := client(ok(leaf()))
	if _, err := g.Get(t.Context(), vcekURL); err != nil || s.timeout <= 0 || s.timeout > 15*time.Second {
		t.Errorf("%v, a try was given %v", err, s.timeout)
	}
	// A pause that cannot be kept is the end.
	s = &service{answers: []answer{status(503), ok(leaf())}}
	wake := errors.New("woken")
	c = kds.New(kds.Options{Transport: s, Sleep: func(context.Context, time.Duration) error { return wake }})
	if _, err := c.Get(t.Context(), vcekURL); !errors.Is(err, kds.ErrUnavailable) || !errors.Is(err, wake) || len(s.asked) != 1 {
		t.Errorf("%v, asked %v", err, s.asked)
	}
}

// An answer as large as one may be.
func TestLargestAnswer(t *testing.T) {
	c, _, _ := client(ok(padded(1 << 20)))
	if b, err := c.Get(t.Context(), chainURL); err != nil || len(b) != 1<<20 {
		t.Errorf("%d bytes, %v", len(b), err)
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

// What is imported serves, but is no answer of the service.
func TestCacheImport(t *testing.T) {
	dated := func(days int) []byte {
		return attesttest.NewSigner("Genoa").CRL(nil, func(l *x509.RevocationList) {
			l.ThisUpdate = l.ThisUpdate.AddDate(0, 0, days)
			l.NextUpdate = l.NextUpdate.AddDate(0, 0, days)
		})
	}
	first, later, last := dated(0), dated(1), dated(2)
	answers := table{}
	next := &counting{next: answers}
	c := &kds.Cache{Dir: filepath.Join(t.TempDir(), "a"), Next: next}
	gets := func(url string, want []byte, asks int) {
		t.Helper()
		next.asked = 0
		if b, err := c.Get(t.Context(), url); err != nil || !bytes.Equal(b, want) || next.asked != asks {
			t.Errorf("%s: asked %d times, expected %d; the right one: %t (%v)", url, next.asked, asks, bytes.Equal(b, want), err)
		}
	}
	imports := func(url string, data []byte, want error) {
		t.Helper()
		if err := c.Import(url, data); !errors.Is(err, want) {
			t.Errorf("error is %v, expected %v", err, want)
		}
	}
	imports(crlURL, later, nil)
	gets(crlURL, later, 1) // which does not answer
	imports(crlURL, first, kds.ErrNewer)
	gets(crlURL, later, 1)
	imports(crlURL, later, nil)
	answers[crlURL] = last
	gets(crlURL, last, 1)
	gets(crlURL, last, 0)
	imports(crlURL, later, kds.ErrNewer)
	gets(crlURL, last, 0)
	// Certificates do not change.
	imports(vcekURL, leaf(), nil)
	gets(vcekURL, leaf(), 0)
	// What is not what its URL asks for is refused, whatever is kept.
	for url, data := range map[string][]byte{crlURL: leaf(), vcekURL: crl(), chainURL: []byte("<html>")} {
		if err := c.Import(url, data); err == nil {
			t.Errorf("%s: accepted", url)
		}
	}
	// A damaged file gives way.
	files, err := os.ReadDir(c.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(c.Dir, f.Name()), []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	imports(crlURL, first, nil)
}

// How old a kept CRL may be before it is asked for again.
func TestCacheAge(t *testing.T) {
	next := &counting{next: table{crlURL: crl(), chainURL: chain()}}
	written := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	now := written
	c := &kds.Cache{Dir: t.TempDir(), Next: next, Now: func() time.Time { return now }}
	for name, x := range map[string]struct {
		url  string
		age  time.Duration
		asks int
	}{
		"just there":                 {crlURL, 0, 0},
		"a day but a second":         {crlURL, 24*time.Hour - time.Second, 0},
		"a day":                      {crlURL, 24 * time.Hour, 1},
		"a clock that is a bit slow": {crlURL, -59 * time.Second, 0},
		"from the future":            {crlURL, -time.Minute, 1},
		"certificates, ten years":    {chainURL, 10 * 365 * 24 * time.Hour, 0},
	} {
		if err := c.Put(x.url, next.next.(table)[x.url]); err != nil {
			t.Fatal(err)
		}
		for _, f := range keptFiles(t, c.Dir) {
			if err := os.Chtimes(f, written, written); err != nil {
				t.Fatal(err)
			}
		}
		now, next.asked = written.Add(x.age), 0
		if _, err := c.Get(t.Context(), x.url); err != nil || next.asked != x.asks {
			t.Errorf("%s: %v, asked %d times, expected %d", name, err, next.asked, x.asks)
		}
	}
	// Without a network an old one serves: package attest says whether it may.
	now = written.Add(400 * 24 * time.Hour)
	offline := &kds.Cache{Dir: c.Dir, Now: c.Now}
	if b, err := offline.Get(t.Context(), crlURL); err != nil || !bytes.Equal(b, next.next.(table)[crlURL]) {
		t.Error(err)
	}
}

// keptFiles are the paths of what a cache has.
func keptFiles(t *testing.T, dir string) (paths []string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		paths = append(paths, filepath.Join(dir, f.Name()))
	}
	return paths
}

// A file's name is ours: no part of a URL, which may come out of a certificate,
// is in it. Two URLs never share one.
func TestCacheNames(t *testing.T) {
	dir := t.TempDir()
	c := &kds.Cache{Dir: dir}
	query := vcekURL + "&x=/crl" // a certificate: what it is says the path
	for url, b := range map[string][]byte{
		vcekURL: leaf(), query: leaf(), "https://" + attest.KDSHost + "/../../etc/passwd": leaf(), "https://" + attest.KDSHost: leaf(),
		crlURL: crl(), crlURL + "?x=1": crl(), chainURL: chain(),
	} {
		if err := c.Put(url, b); err != nil {
			t.Errorf("%s: %v", url, err)
		}
		if got, err := c.Get(t.Context(), url); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s: %v", url, err)
		}
	}
	kinds := map[string]int{}
	for _, f := range keptFiles(t, dir) {
		kind, hash, _ := strings.Cut(filepath.Base(f), "-")
		if len(hash) != 32 || strings.Trim(hash, "0123456789abcdef") != "" {
			t.Errorf("found %s", f)
		}
		kinds[kind]++
	}
	if len(kinds) != 3 || kinds["cert"] != 4 || kinds["crl"] != 2 || kinds["cert_chain"] != 1 {
		t.Errorf("found %v", kinds)
	}
}

// What an answer may not be, a kept file may not be either.
func TestCacheBounds(t *testing.T) {
	dir := t.TempDir()
	c := &kds.Cache{Dir: dir}
	for n, good := range map[int]bool{1 << 20: true, 1<<20 + 1: false} {
		if err := c.Put(chainURL, chain()); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(keptFiles(t, dir)[0], padded(n), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Get(t.Context(), chainURL); (err == nil) != good {
			t.Errorf("a kept file of %d bytes: %v", n, err)
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
		t.Skipf("needs a file system with symbolic links: %v", err)
	}
	if _, err := c.Get(t.Context(), vcekURL); !errors.Is(err, kds.ErrUnavailable) {
		t.Errorf("a symbolic link in the cache: %v", err)
	}
}
