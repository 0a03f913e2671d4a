// Package kds fetches certificates and CRLs from AMD's Key Distribution Service
// (AMD 57230) and keeps them on disk. Its getters fit package attest's Options.
//
// Nothing that comes back is trusted: package attest judges it. What this
// package sees to is that a fault of the service, or of the network between, ends
// in [ErrUnavailable] and in nothing else, within bounded time and memory.
package kds

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/evtpm/evtpm/attest"
)

// ErrUnavailable is wrapped by every error of a getter: the certificate or CRL
// could not be had.
var ErrUnavailable = errors.New("key distribution service: unavailable")

// maxAnswer bounds an answer in bytes. A certificate chain has under 5 KiB.
const maxAnswer = 1 << 20

// Options say how to fetch. The zero value is ready for AMD's service.
type Options struct {
	// Host is the only host that is asked, and redirected to; empty means
	// attest.KDSHost. URLs of attest.KDSHost are sent there: a mirror.
	Host string
	// Transport; nil means http.DefaultTransport: TLS 1.2 or later, and the proxy
	// settings of the environment.
	Transport http.RoundTripper
	// Attempts is how often a request is tried; zero means 5, less means once.
	Attempts int
	// Timeout bounds each try; zero means 15 seconds.
	Timeout time.Duration
	// Backoff is the pause before the second try, which doubles with each one;
	// zero means a second. Longest bounds a pause, also one that the service
	// asks for; zero means 30 seconds.
	Backoff, Longest time.Duration
	// Sleep waits, or returns the context's error; nil means by the clock.
	Sleep func(ctx context.Context, d time.Duration) error
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// A Client fetches over HTTPS from one host. When the host has not answered to the
// last try of a request, others fail at once for as long as the longest pause: of
// a thousand reports, each need not find out anew that the network is down.
type Client struct {
	o    Options
	http *http.Client

	mu    sync.Mutex
	down  error // why the last request failed, until the time
	until time.Time
}

// New returns a client.
func New(o Options) *Client {
	set := func(d *time.Duration, zero time.Duration) {
		if *d == 0 {
			*d = zero
		}
	}
	set(&o.Timeout, 15*time.Second)
	set(&o.Backoff, time.Second)
	set(&o.Longest, 30*time.Second)
	if o.Host == "" {
		o.Host = attest.KDSHost
	}
	if o.Attempts == 0 {
		o.Attempts = 5
	}
	if o.Sleep == nil {
		o.Sleep = sleep
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	c := &Client{o: o}
	c.http = &http.Client{Transport: o.Transport, CheckRedirect: c.checkRedirect}
	return c
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// maxRedirects bounds the redirects of one request.
const maxRedirects = 3

func (c *Client) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	return c.checkURL(req.URL)
}

// checkURL refuses everything but HTTPS to the one host.
func (c *Client) checkURL(u *url.URL) error {
	if u.Scheme != "https" || u.Host != c.o.Host || u.User != nil {
		return fmt.Errorf("found %s://%s, expected https://%s", u.Scheme, u.Host, c.o.Host)
	}
	return nil
}

// Get implements [attest.Getter]. The answer has been held against what the URL
// asks for: a certificate in DER, a chain in PEM, or a CRL in DER.
func (c *Client) Get(ctx context.Context, rawURL string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, rawURL, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if req.URL.Host == attest.KDSHost {
		req.URL.Host, req.Host = c.o.Host, c.o.Host
	}
	if err := c.checkURL(req.URL); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err := c.isDown(); err != nil {
		return nil, fmt.Errorf("%w: %s: not asked: %w", ErrUnavailable, req.URL, err)
	}
	pause := c.o.Backoff
	for try := 1; ; try++ {
		data, after, err := c.try(req)
		if err == nil {
			return data, nil
		}
		var final finalError
		over := errors.As(err, &final) || ctx.Err() != nil
		if !over && try >= c.o.Attempts {
			c.setDown(err)
			over = true
		}
		if over {
			return nil, fmt.Errorf("%w: %s: try %d: %w", ErrUnavailable, req.URL, try, err)
		}
		wait := min(max(pause, after), c.o.Longest)
		// Jitter keeps many verifiers from coming back at once.
		wait += time.Duration(rand.Int64N(int64(wait)/4 + 1))
		if err := c.o.Sleep(ctx, wait); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrUnavailable, req.URL, err)
		}
		pause = min(2*pause, c.o.Longest)
	}
}

// isDown returns why the host does not answer, if that was found out a short time
// ago.
func (c *Client) isDown() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.o.Now().Before(c.until) {
		return c.down
	}
	return nil
}

func (c *Client) setDown(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down, c.until = fmt.Errorf("no answer a short time ago: %w", err), c.o.Now().Add(c.o.Longest)
}

// finalError is a fault that another try would not mend.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

// try makes one request; after is how long the service asks to wait.
func (c *Client) try(req *http.Request) (data []byte, after time.Duration, err error) {
	ctx, cancel := context.WithTimeout(req.Context(), c.o.Timeout)
	defer cancel()
	resp, err := c.http.Do(req.WithContext(ctx))
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	switch s := resp.StatusCode; {
	case s == http.StatusOK:
	case s == http.StatusTooManyRequests, s == http.StatusRequestTimeout, s >= 500:
		return nil, retryAfter(resp.Header), fmt.Errorf("status %s", resp.Status)
	default:
		return nil, 0, finalError{fmt.Errorf("status %s", resp.Status)}
	}
	data, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, 0, err
	case len(data) > maxAnswer:
		return nil, 0, finalError{fmt.Errorf("more than %d bytes", maxAnswer)}
	}
	if err := checkContent(req.URL.Path, data); err != nil {
		return nil, 0, err
	}
	return data, 0, nil
}

// retryAfter reads a Retry-After header in seconds: zero when there is none, or
// another form of it.
func retryAfter(h http.Header) time.Duration {
	// A number that is too large becomes the largest, which no pause comes near.
	s, _ := strconv.ParseUint(h.Get("Retry-After"), 10, 31)
	return time.Duration(s) * time.Second
}

// checkContent holds an answer against what its URL asks for: a login page of
// the network, or half an answer, is no certificate.
func checkContent(path string, data []byte) error {
	switch {
	case strings.HasSuffix(path, "/crl"):
		if _, err := attest.ParseCRL(data); err != nil {
			return fmt.Errorf("the answer is no CRL: %w", err)
		}
		return nil
	case strings.HasSuffix(path, "/cert_chain"):
		if !bytes.Contains(data, []byte("-----BEGIN CERTIFICATE-----")) {
			return errors.New("the answer is no certificate chain")
		}
	}
	b, err := attest.ParseBundle(data)
	if err != nil {
		return fmt.Errorf("the answer is no certificate: %w", err)
	}
	if len(b.Certificates) == 0 {
		return errors.New("the answer has no certificate")
	}
	return nil
}
