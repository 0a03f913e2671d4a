package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/evtpm/evtpm/attest/evidence"
)

// swtpm starts a fresh software TPM and returns a connection to it.
func swtpm(t *testing.T) transport.TPM {
	t.Helper()
	path, err := exec.LookPath("swtpm")
	if err != nil {
		t.Skip("needs swtpm")
	}
	// A socket's path must stay below 108 bytes, which t.TempDir may not.
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "data")
	cmd := exec.Command(path, "socket", "--tpm2", "--tpmstate", "dir="+dir,
		"--server", "type=unixio,path="+sock, "--ctrl", "type=unixio,path="+filepath.Join(dir, "ctrl"),
		"--flags", "not-need-init,startup-clear")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		os.RemoveAll(dir)
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		conn, err := net.Dial("unix", sock)
		if err == nil {
			t.Cleanup(func() { conn.Close() })
			return transport.FromReadWriter(conn)
		}
		if time.Now().After(deadline) {
			t.Fatalf("swtpm: %v", err)
		}
	}
}

// fakeSource answers its bindings with bytes that name what was asked.
type fakeSource struct {
	can  []string
	err  error
	wait chan struct{}
}

func (f fakeSource) Bindings() []string { return f.can }

func (f fakeSource) Attest(ctx context.Context, binding string, nonce []byte) (*Attestation, error) {
	if f.wait != nil {
		select {
		case <-f.wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if f.err != nil {
		return nil, f.err
	}
	return &Attestation{Report: append([]byte(binding+":"), nonce...), Manifest: []byte("manifest"), ManifestVersion: 7, Certificates: []byte("certs")}, nil
}

func fakeBoot() (string, error) { return "9a3b0f06-0c3c-4be9-9b0a-5a4b3f2f0c11", nil }

func options(tpm transport.TPM) Options {
	return Options{
		Version: "test", TPM: tpm, BootID: fakeBoot,
		Sources:  []Source{fakeSource{can: svsmBindings()}},
		EventLog: func() ([]byte, error) { return []byte("log"), nil },
	}
}

// noTPM answers every command with an error.
type noTPM struct{}

func (noTPM) Send([]byte) ([]byte, error) { return nil, errors.New("no TPM here") }

// peer is the verifier's side of a connection to an agent.
type peer struct {
	t    *testing.T
	conn net.Conn
	done chan error
}

// serve runs an agent on one end of a socket and returns the other, past Hello.
func serve(t *testing.T, o Options) *peer {
	t.Helper()
	p := connect(t, o)
	var hello evidence.Hello
	p.expect(evidence.FrameHello, &hello)
	if hello.AgentVersion != o.Version || hello.BootID == "" {
		t.Fatalf("hello: %+v", hello)
	}
	return p
}

func connect(t *testing.T, o Options) *peer {
	t.Helper()
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	here, there := net.Pipe()
	p := &peer{t: t, conn: here, done: make(chan error, 1)}
	go func() { p.done <- a.Serve(ctx, there) }()
	t.Cleanup(func() { cancel(); here.Close() })
	here.SetDeadline(time.Now().Add(30 * time.Second))
	return p
}

func (p *peer) send(ft evidence.FrameType, m any) {
	p.t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		p.t.Fatal(err)
	}
	p.sendRaw(ft, b)
}

func (p *peer) sendRaw(ft evidence.FrameType, b []byte) {
	p.t.Helper()
	if err := evidence.WriteFrame(p.conn, ft, b); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) expect(want evidence.FrameType, into any) {
	p.t.Helper()
	ft, b, err := evidence.ReadFrame(p.conn, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	if ft != want {
		p.t.Fatalf("found frame type %d (%s), expected %d", ft, b, want)
	}
	if err := json.Unmarshal(b, into); err != nil {
		p.t.Fatal(err)
	}
}

// refused expects a Failure that says want.
func (p *peer) refused(want string) {
	p.t.Helper()
	var f evidence.Failure
	p.expect(evidence.FrameError, &f)
	if !strings.Contains(f.Message, want) {
		p.t.Errorf("found failure %q, expected one with %q", f.Message, want)
	}
}

func nonce(b byte) []byte { return bytes.Repeat([]byte{b}, nonceSize) }

func allPCRs() []int {
	var out []int
	for i := range pcrCount {
		out = append(out, i)
	}
	return out
}

func TestExchange(t *testing.T) {
	tpm := swtpm(t)
	p := serve(t, options(tpm))
	var firstAK []byte
	for round, bank := range []string{"sha256", "sha384"} {
		c := evidence.Challenge{Nonce: nonce(byte(round + 1)), PCRBank: bank, PCRs: allPCRs()}
		p.send(evidence.FrameChallenge, c)
		var ev evidence.Evidence
		p.expect(evidence.FrameEvidence, &ev)

		if ev.Schema != evidence.Schema || !bytes.Equal(ev.Nonce, c.Nonce) || ev.Binding != evidence.BindingSVSM ||
			string(ev.Report) != "svsm:"+string(c.Nonce) || string(ev.Manifest) != "manifest" || ev.ManifestVersion != 7 ||
			string(ev.Certificates) != "certs" || string(ev.EventLog) != "log" || ev.BootID == "" || ev.PCRBank != bank {
			t.Errorf("%s: evidence %+v", bank, ev)
		}
		checkQuote(t, tpm, &ev, c.PCRs)
		if round > 0 && !bytes.Equal(firstAK, ev.AKPublic) {
			t.Error("the AK changed within the agent's life")
		}
		firstAK = ev.AKPublic

		secret := []byte("0123456789abcdef0123456789abcdef")
		p.send(evidence.FrameActivate, makeCredential(t, &ev, secret))
		var act evidence.Activated
		p.expect(evidence.FrameActivated, &act)
		if !bytes.Equal(act.CertInfo, secret) {
			t.Errorf("%s: activation gave %x", bank, act.CertInfo)
		}
	}
	p.conn.Close()
	if err := <-p.done; err != nil {
		t.Errorf("after the peer left: %v", err)
	}
}

// checkQuote verifies the quote with the AK in the evidence and compares the
// PCRs with those that the TPM has.
func checkQuote(t *testing.T, tpm transport.TPM, ev *evidence.Evidence, pcrs []int) {
	t.Helper()
	ak, err := tpm2.Unmarshal[tpm2.TPM2BPublic](ev.AKPublic)
	if err != nil {
		t.Fatal(err)
	}
	// The TPM itself verifies the signature: it is not the code under test.
	loaded, err := tpm2.LoadExternal{InPublic: *ak, Hierarchy: tpm2.TPMRHNull}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	defer tpm2.FlushContext{FlushHandle: loaded.ObjectHandle}.Execute(tpm)
	digest := sha256.Sum256(ev.Quote)
	sig, err := tpm2.Unmarshal[tpm2.TPMTSignature](ev.QuoteSignature)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.VerifySignature{
		KeyHandle: loaded.ObjectHandle, Digest: tpm2.TPM2BDigest{Buffer: digest[:]}, Signature: *sig,
	}).Execute(tpm); err != nil {
		t.Errorf("quote signature: %v", err)
	}
	public, err := ak.Contents()
	if err != nil {
		t.Fatal(err)
	}
	if a := public.ObjectAttributes; !a.Restricted || !a.SignEncrypt || a.Decrypt || !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin {
		t.Errorf("AK attributes %+v", a)
	}

	q, err := tpm2.Unmarshal[tpm2.TPMSAttest](ev.Quote)
	if err != nil {
		t.Fatal(err)
	}
	if want := sha256.Sum256(ev.Nonce); q.Magic != tpm2.TPMGeneratedValue || q.Type != tpm2.TPMSTAttestQuote || !bytes.Equal(q.ExtraData.Buffer, want[:]) {
		t.Errorf("quote: magic %#x, type %#x, extra data %x", q.Magic, q.Type, q.ExtraData.Buffer)
	}
	info, err := q.Attested.Quote()
	if err != nil {
		t.Fatal(err)
	}
	alg, err := bankAlg(ev.PCRBank)
	if err != nil {
		t.Fatal(err)
	}
	if got := selected(info.PCRSelect, alg); !slices.Equal(got, pcrs) {
		t.Errorf("quoted PCRs %v, expected %v", got, pcrs)
	}
	h := sha256.New()
	var listed []int
	for _, pcr := range ev.PCRs {
		listed = append(listed, pcr.PCR)
		h.Write(pcr.Value)
		rsp, err := tpm2.PCRRead{PCRSelectionIn: selection(alg, []int{pcr.PCR})}.Execute(tpm)
		if err != nil || len(rsp.PCRValues.Digests) != 1 || !bytes.Equal(rsp.PCRValues.Digests[0].Buffer, pcr.Value) {
			t.Errorf("PCR %d: evidence says %x, TPM says %+v, %v", pcr.PCR, pcr.Value, rsp, err)
		}
	}
	if !slices.Equal(listed, pcrs) || !bytes.Equal(h.Sum(nil), info.PCRDigest.Buffer) {
		t.Errorf("PCRs %v with digest %x, expected %v with %x", listed, h.Sum(nil), pcrs, info.PCRDigest.Buffer)
	}
}

// makeCredential is what a verifier does with the evidence's EK and AK.
func makeCredential(t *testing.T, ev *evidence.Evidence, secret []byte) evidence.Activate {
	t.Helper()
	ekPublic, err := tpm2.Unmarshal[tpm2.TPM2BPublic](ev.EKPublic)
	if err != nil {
		t.Fatal(err)
	}
	ek, err := ekPublic.Contents()
	if err != nil {
		t.Fatal(err)
	}
	encapsulator, err := tpm2.ImportEncapsulationKey(ek)
	if err != nil {
		t.Fatal(err)
	}
	akPublic, err := tpm2.Unmarshal[tpm2.TPM2BPublic](ev.AKPublic)
	if err != nil {
		t.Fatal(err)
	}
	ak, err := akPublic.Contents()
	if err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.ObjectName(ak)
	if err != nil {
		t.Fatal(err)
	}
	blob, seed, err := tpm2.CreateCredential(rand.Reader, encapsulator, name.Buffer, secret)
	if err != nil {
		t.Fatal(err)
	}
	return evidence.Activate{
		CredentialBlob: tpm2.Marshal(tpm2.TPM2BIDObject{Buffer: blob}),
		Secret:         tpm2.Marshal(tpm2.TPM2BEncryptedSecret{Buffer: seed}),
	}
}

func TestPCRSelection(t *testing.T) {
	tpm := swtpm(t)
	p := serve(t, options(tpm))
	for _, pcrs := range [][]int{{0}, {23}, {0, 1, 2, 3, 4, 5, 6, 7}, {4, 9}, {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22}} {
		p.send(evidence.FrameChallenge, evidence.Challenge{Nonce: nonce(1), PCRBank: "sha256", PCRs: pcrs})
		var ev evidence.Evidence
		p.expect(evidence.FrameEvidence, &ev)
		checkQuote(t, tpm, &ev, pcrs)
	}
}

// mover extends a PCR after each of the first n quotes.
type mover struct {
	transport.TPM
	n      int
	quotes int
}

func (m *mover) Send(cmd []byte) ([]byte, error) {
	rsp, err := m.TPM.Send(cmd)
	if err == nil && bytes.Equal(cmd[6:10], []byte{0, 0, 1, 0x58}) { // TPM_CC_Quote
		m.quotes++
		if m.quotes <= m.n {
			_, err = tpm2.PCRExtend{
				PCRHandle: tpm2.AuthHandle{Handle: 16, Auth: tpm2.PasswordAuth(nil)},
				Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)}}},
			}.Execute(m.TPM)
		}
	}
	return rsp, err
}

func TestQuoteRepeatedWhenPCRMoves(t *testing.T) {
	tpm := &mover{TPM: swtpm(t), n: quoteTries - 1}
	p := serve(t, options(tpm))
	c := evidence.Challenge{Nonce: nonce(1), PCRBank: "sha256", PCRs: []int{0, 16}}
	p.send(evidence.FrameChallenge, c)
	var ev evidence.Evidence
	p.expect(evidence.FrameEvidence, &ev)
	if tpm.quotes != quoteTries {
		t.Errorf("%d quotes, expected %d", tpm.quotes, quoteTries)
	}
	checkQuote(t, tpm.TPM, &ev, c.PCRs)

	tpm.n, tpm.quotes = 1000, 0
	p.send(evidence.FrameChallenge, c)
	p.refused("PCRs changed")
}

func TestPersistentEK(t *testing.T) {
	tpm := swtpm(t)
	// Another key than L-1's, so that the test can tell which was used.
	created, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(tpm2.ECCEKTemplate),
	}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.EvictControl{
		Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		ObjectHandle:     &tpm2.NamedHandle{Handle: created.ObjectHandle, Name: created.Name},
		PersistentHandle: ekHandle,
	}).Execute(tpm); err != nil {
		t.Fatal(err)
	}
	p := serve(t, options(tpm))
	p.send(evidence.FrameChallenge, evidence.Challenge{Nonce: nonce(1), PCRBank: "sha256", PCRs: []int{0}})
	var ev evidence.Evidence
	p.expect(evidence.FrameEvidence, &ev)
	if !bytes.Equal(ev.EKPublic, tpm2.Marshal(created.OutPublic)) {
		t.Errorf("EK is %x, expected the persistent one", ev.EKPublic)
	}
	secret := []byte("persistent")
	p.send(evidence.FrameActivate, makeCredential(t, &ev, secret))
	var act evidence.Activated
	p.expect(evidence.FrameActivated, &act)
	if !bytes.Equal(act.CertInfo, secret) {
		t.Errorf("activation gave %x", act.CertInfo)
	}
}

func TestEKIsTemplateL1(t *testing.T) {
	tpm := swtpm(t)
	p := serve(t, options(tpm))
	p.send(evidence.FrameChallenge, evidence.Challenge{Nonce: nonce(1), PCRBank: "sha256", PCRs: []int{0}})
	var ev evidence.Evidence
	p.expect(evidence.FrameEvidence, &ev)
	// TCG EK Credential Profile, template L-1: size 314, RSA, SHA-256, attributes
	// 0x000300b2, 32 bytes of policy A (as tpm2_createek of tpm2-tools prints).
	want := []byte{0x01, 0x3a, 0x00, 0x01, 0x00, 0x0b, 0x00, 0x03, 0x00, 0xb2, 0x00, 0x20, 0x83, 0x71, 0x97, 0x67}
	if !bytes.HasPrefix(ev.EKPublic, want) || len(ev.EKPublic) != 316 {
		t.Errorf("EK of %d bytes begins with %x", len(ev.EKPublic), ev.EKPublic[:16])
	}
}

func TestOwnerHierarchyWhenEndorsementHasPassword(t *testing.T) {
	tpm := swtpm(t)
	v := &vtpm{tpm: tpm}
	if err := v.keys(); err != nil {
		t.Fatal(err)
	}
	inEndorsement := v.ak.public
	v.flush()
	ek, err := v.findEK()
	if err != nil {
		t.Fatal(err)
	}
	// The EK stays reachable as a persistent key.
	if _, err := (tpm2.EvictControl{
		Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		ObjectHandle:     &tpm2.NamedHandle{Handle: ek.handle, Name: ek.name},
		PersistentHandle: ekHandle,
	}).Execute(tpm); err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.HierarchyChangeAuth{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		NewAuth:    tpm2.TPM2BAuth{Buffer: []byte("secret")},
	}).Execute(tpm); err != nil {
		t.Fatal(err)
	}
	p := serve(t, options(tpm))
	c := evidence.Challenge{Nonce: nonce(1), PCRBank: "sha256", PCRs: []int{0}}
	p.send(evidence.FrameChallenge, c)
	var ev evidence.Evidence
	p.expect(evidence.FrameEvidence, &ev)
	if bytes.Equal(ev.AKPublic, inEndorsement) {
		t.Error("the AK is the endorsement hierarchy's")
	}
	checkQuote(t, tpm, &ev, c.PCRs)
}

func TestKeysLostAndMadeAnew(t *testing.T) {
	tpm := swtpm(t)
	o := options(tpm)
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	c := &evidence.Challenge{Nonce: nonce(1), PCRBank: "sha256", PCRs: []int{0}}
	first, err := a.evidence(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []*key{a.tpm.ek, a.tpm.ak} {
		if _, err := (tpm2.FlushContext{FlushHandle: k.handle}).Execute(tpm); err != nil {
			t.Fatal(err)
		}
	}
	second, err := a.evidence(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.AKPublic, second.AKPublic) || !bytes.Equal(first.EKPublic, second.EKPublic) {
		t.Error("the keys of one boot differ")
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if caps, err := (tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x80000000, PropertyCount: 8}).Execute(tpm); err != nil {
		t.Error(err)
	} else if h, err := caps.CapabilityData.Data.Handles(); err != nil || len(h.Handle) != 0 {
		t.Errorf("after Close: %v, %v, expected no transient object", h, err)
	}
}

func TestBadChallenges(t *testing.T) {
	good := func() evidence.Challenge {
		return evidence.Challenge{Nonce: nonce(1), PCRBank: "sha256", PCRs: []int{0, 4}}
	}
	p := serve(t, options(noTPM{}))
	for name, tc := range map[string]struct {
		change func(*evidence.Challenge)
		want   string
	}{
		"no nonce":      {func(c *evidence.Challenge) { c.Nonce = nil }, "nonce: found 0 bytes, expected 64"},
		"short nonce":   {func(c *evidence.Challenge) { c.Nonce = c.Nonce[:63] }, "nonce: found 63 bytes"},
		"long nonce":    {func(c *evidence.Challenge) { c.Nonce = append(c.Nonce, 0) }, "nonce: found 65 bytes"},
		"binding":       {func(c *evidence.Challenge) { c.Binding = "trust-me" }, `binding: found "trust-me"`},
		"absent source": {func(c *evidence.Challenge) { c.Binding = evidence.BindingNV }, `this guest can answer ["svsm" "svsm-services"]`},
		"sha1 bank":     {func(c *evidence.Challenge) { c.PCRBank = "sha1" }, `pcr_bank: found "sha1"`},
		"no bank":       {func(c *evidence.Challenge) { c.PCRBank = "" }, `pcr_bank: found ""`},
		"no PCRs":       {func(c *evidence.Challenge) { c.PCRs = nil }, "pcrs: found none"},
		"PCR 24":        {func(c *evidence.Challenge) { c.PCRs = []int{0, 24} }, "pcrs: found 24 after 0"},
		"negative PCR":  {func(c *evidence.Challenge) { c.PCRs = []int{-1} }, "pcrs: found -1"},
		"PCR twice":     {func(c *evidence.Challenge) { c.PCRs = []int{4, 4} }, "pcrs: found 4 after 4"},
		"descending":    {func(c *evidence.Challenge) { c.PCRs = []int{4, 0} }, "pcrs: found 0 after 4"},
	} {
		t.Run(name, func(t *testing.T) {
			p.t = t
			c := good()
			tc.change(&c)
			p.send(evidence.FrameChallenge, c)
			p.refused(tc.want)
		})
	}
	p.t = t
	// All at once.
	p.send(evidence.FrameChallenge, evidence.Challenge{Binding: "x"})
	p.refused("nonce: found 0 bytes, expected 64\nbinding: found \"x\"")
	// Malformed messages leave the connection usable.
	for _, raw := range []string{"", "{", "null garbage", `{"nonce":"AA==","verified":true}`, `{"pcrs":"all"}`, `[]`, "{}{}", `{"nonce":"","nonce":""}`} {
		p.sendRaw(evidence.FrameChallenge, []byte(raw))
		p.refused("challenge: ")
	}
	for _, ft := range []evidence.FrameType{0, evidence.FrameEvidence, evidence.FrameError, evidence.FrameSVSMAttest, 255} {
		p.sendRaw(ft, []byte("{}"))
		p.refused("expected a challenge")
	}
	// The TPM's failure is told, and nothing is made up in its place.
	p.send(evidence.FrameChallenge, good())
	p.refused("no TPM here")
}

func TestHelloOnRequest(t *testing.T) {
	p := serve(t, options(noTPM{}))
	p.sendRaw(evidence.FrameHello, nil)
	var h evidence.Hello
	p.expect(evidence.FrameHello, &h)
	if !slices.Equal(h.Sources, svsmBindings()) {
		t.Errorf("sources %q", h.Sources)
	}
}

func TestActivation(t *testing.T) {
	tpm := swtpm(t)
	p := serve(t, options(tpm))
	p.send(evidence.FrameActivate, evidence.Activate{CredentialBlob: []byte{0, 0}, Secret: []byte{0, 0}})
	p.refused("expected a challenge first")

	challenge := func() *evidence.Evidence {
		p.send(evidence.FrameChallenge, evidence.Challenge{Nonce: nonce(1), PCRBank: "sha256", PCRs: []int{0}})
		var ev evidence.Evidence
		p.expect(evidence.FrameEvidence, &ev)
		return &ev
	}
	for name, tc := range map[string]struct {
		change func(*evidence.Activate)
		want   string
	}{
		"empty blob":     {func(m *evidence.Activate) { m.CredentialBlob = nil }, "credential_blob: found 0 bytes"},
		"trailing byte":  {func(m *evidence.Activate) { m.CredentialBlob = append(m.CredentialBlob, 0) }, "credential_blob: size field"},
		"secret too big": {func(m *evidence.Activate) { m.Secret[0] = 0xff }, "secret: size field"},
		"flipped bit":    {func(m *evidence.Activate) { m.CredentialBlob[40] ^= 1 }, "TPM2_ActivateCredential"},
	} {
		t.Run(name, func(t *testing.T) {
			p.t = t
			m := makeCredential(t, challenge(), []byte("secret"))
			tc.change(&m)
			p.send(evidence.FrameActivate, m)
			p.refused(tc.want)
		})
	}
	p.t = t

	// A credential for another key is not opened.
	ev := challenge()
	other := *ev
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](ev.AKPublic)
	if err != nil {
		t.Fatal(err)
	}
	contents, err := public.Contents()
	if err != nil {
		t.Fatal(err)
	}
	contents.ObjectAttributes.Restricted = false
	other.AKPublic = tpm2.Marshal(tpm2.New2B(*contents))
	p.send(evidence.FrameActivate, makeCredential(t, &other, []byte("secret")))
	p.refused("TPM2_ActivateCredential")

	// One activation for one evidence.
	ev = challenge()
	m := makeCredential(t, ev, []byte("secret"))
	p.send(evidence.FrameActivate, m)
	p.expect(evidence.FrameActivated, &evidence.Activated{})
	p.send(evidence.FrameActivate, m)
	p.refused("expected a challenge first")
}

func TestSourceOrderAndBounds(t *testing.T) {
	broken := fakeSource{can: []string{evidence.BindingSVSM}, err: errors.New("the SVSM is silent")}
	good := fakeSource{can: []string{evidence.BindingNV}}
	ctx := context.Background()

	_, binding, err := attest(ctx, []Source{broken, good}, "", nonce(1))
	if err != nil || binding != evidence.BindingNV {
		t.Errorf("best: %q, %v", binding, err)
	}
	if _, _, err = attest(ctx, []Source{broken, good}, evidence.BindingSVSM, nonce(1)); err == nil || !strings.Contains(err.Error(), "silent") {
		t.Errorf("asked for svsm: %v", err)
	}
	if _, _, err = attest(ctx, []Source{fakeSource{}}, "", nonce(1)); err == nil || !strings.Contains(err.Error(), "no source") {
		t.Errorf("no source: %v", err)
	}
	if got := bindings([]Source{fakeSource{can: svsmBindings()}, fakeSource{can: svsmBindings()}, good}); !slices.Equal(got, []string{"svsm", "svsm-services", "nv"}) {
		t.Errorf("bindings %q", got)
	}
	for _, a := range []Attestation{
		{Report: make([]byte, maxReport+1)}, {Manifest: make([]byte, maxManifest+1)}, {Certificates: make([]byte, maxCertificates+1)},
	} {
		if err := checkSizes(&a); err == nil || !strings.Contains(err.Error(), "expected at most") {
			t.Errorf("%d %d %d bytes: %v", len(a.Report), len(a.Manifest), len(a.Certificates), err)
		}
	}
}

func TestEventLogBounds(t *testing.T) {
	o := options(swtpm(t))
	c := evidence.Challenge{Nonce: nonce(1), PCRBank: "sha256", PCRs: []int{0}}
	o.EventLog = func() ([]byte, error) { return make([]byte, maxEventLog+1), nil }
	p := serve(t, o)
	p.send(evidence.FrameChallenge, c)
	p.refused("event log: found more than 262144 bytes")

	o = options(swtpm(t))
	o.EventLog = func() ([]byte, error) { return make([]byte, maxEventLog), nil }
	p = serve(t, o)
	p.send(evidence.FrameChallenge, c)
	var ev evidence.Evidence
	p.expect(evidence.FrameEvidence, &ev)
	if len(ev.EventLog) != maxEventLog {
		t.Errorf("event log of %d bytes", len(ev.EventLog))
	}

	o = options(swtpm(t))
	o.EventLog = func() ([]byte, error) { return nil, errors.New("no permission") }
	p = serve(t, o)
	p.send(evidence.FrameChallenge, c)
	p.refused("event log: no permission")
}

// What a hostile or broken peer can send, and when.
func TestL23_HostileFrames(t *testing.T) {
	header := func(length uint32) []byte {
		return []byte{'e', 'v', 't', 'p', 1, byte(evidence.FrameChallenge), 0, 0, byte(length >> 24), byte(length >> 16), byte(length >> 8), byte(length)}
	}
	for name, tc := range map[string]struct {
		send []byte
		want string
	}{
		"length of 4 GiB": {header(0xffffffff), "expected at most 16384"},
		"one byte more":   {header(maxRequest + 1), "expected at most 16384"},
		"garbage":         {[]byte("GET / HTTP/1.1\r\n"), "magic"},
		"next version":    {[]byte("evtp\x02\x02\x00\x00\x00\x00\x00\x00"), "version is 2, expected 1"},
	} {
		t.Run(name, func(t *testing.T) {
			p := serve(t, options(noTPM{}))
			go p.conn.Write(tc.send)
			p.refused(tc.want)
			if err := <-p.done; !errors.Is(err, evidence.ErrFrame) {
				t.Errorf("the connection ended with %v", err)
			}
		})
	}
	t.Run("one byte a second", func(t *testing.T) {
		o := options(noTPM{})
		o.ReadTimeout = 200 * time.Millisecond
		p := serve(t, o)
		start := time.Now()
		go func() {
			for _, b := range header(10) {
				if _, err := p.conn.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(60 * time.Millisecond)
			}
		}()
		if err := <-p.done; !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) > 5*time.Second {
			t.Errorf("ended with %v after %v", err, time.Since(start))
		}
	})
	t.Run("never reads", func(t *testing.T) {
		o := options(noTPM{})
		o.WriteTimeout = 100 * time.Millisecond
		p := connect(t, o)
		if err := <-p.done; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("ended with %v", err)
		}
	})
	t.Run("idle", func(t *testing.T) {
		a, err := New(options(noTPM{}))
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		ended := make(chan error, 1)
		go a.ServeListener(ctx, l, ListenOptions{IdleTimeout: 100 * time.Millisecond, Report: func(err error) { ended <- err }})
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("ended with %v", err)
		}
	})
	t.Run("leaves within a frame", func(t *testing.T) {
		p := serve(t, options(noTPM{}))
		p.conn.Write(header(10))
		p.conn.Close()
		if err := <-p.done; !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestListener(t *testing.T) {
	o := options(noTPM{})
	wait := make(chan struct{})
	o.Sources = []Source{fakeSource{can: svsmBindings(), err: errors.New("asked"), wait: wait}}
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.ServeListener(ctx, l, ListenOptions{}) }()

	dial := func() *peer {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		return &peer{t: t, conn: conn}
	}
	var peers []*peer
	for range maxConns {
		p := dial()
		p.expect(evidence.FrameHello, &evidence.Hello{})
		peers = append(peers, p)
	}
	// One connection too many is closed at once.
	if n, err := dial().conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("connection %d was served", maxConns+1)
	}
	// Challenges are answered one at a time: the second is not lost.
	c := evidence.Challenge{Nonce: nonce(1), PCRBank: "sha256", PCRs: []int{0}}
	peers[0].send(evidence.FrameChallenge, c)
	peers[1].send(evidence.FrameChallenge, c)
	close(wait)
	peers[0].refused("asked")
	peers[1].refused("asked")
	// A place that becomes free is used again.
	peers[2].conn.Close()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if _, _, err := evidence.ReadFrame(dial().conn, 0); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the freed place is not used")
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("still listening")
	}
}

func TestCancelEndsAChallenge(t *testing.T) {
	o := options(noTPM{})
	o.Sources = []Source{fakeSource{can: svsmBindings(), wait: make(chan struct{})}}
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	here, there := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx, there) }()
	p := &peer{t: t, conn: here}
	p.expect(evidence.FrameHello, &evidence.Hello{})
	p.send(evidence.FrameChallenge, evidence.Challenge{Nonce: nonce(1), PCRBank: "sha256", PCRs: []int{0}})
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the challenge goes on after the end of its context")
	}
}

func TestNewRefusesHalfAnAgent(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"no TPM":    func(o *Options) { o.TPM = nil },
		"no source": func(o *Options) { o.Sources = nil },
		"no boot":   func(o *Options) { o.BootID = nil },
	} {
		o := options(noTPM{})
		change(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
