package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/launchtest"
)

// capabilities is what libvirt says of a host, as far as doctor reads it.
const capabilities = `<domainCapabilities>
  <path>/usr/bin/qemu-system-x86_64</path><domain>kvm</domain><machine>pc-q35-10.0</machine><arch>x86_64</arch>
  <devices><tpm supported='yes'>
    <enum name='model'><value>tpm-crb</value></enum>
    <enum name='backendModel'><value>passthrough</value><value>emulator</value><value>external</value></enum>
  </tpm></devices>
  <features><launchSecurity supported='yes'>
    <enum name='sectype'><value>sev</value><value>sev-snp</value></enum>
  </launchSecurity></features>
</domainCapabilities>`

// TestL28Libvirt: what libvirt does not offer, and answers that are none.
func TestL28Libvirt(t *testing.T) {
	for name, c := range map[string]struct {
		platform string
		answer   func(q LibvirtQuery) (*LibvirtAnswer, error)
		want     []string
	}{
		"snp": {launch.PlatformSNP, func(q LibvirtQuery) (*LibvirtAnswer, error) {
			if q != (LibvirtQuery{URI: "qemu:///system", Machine: "q35", Type: "kvm"}) {
				return nil, fmt.Errorf("query %+v", q)
			}
			return &LibvirtAnswer{Version: 11_003_000, Capabilities: capabilities}, nil
		}, nil},
		"sim": {launch.PlatformSim, func(q LibvirtQuery) (*LibvirtAnswer, error) {
			if q != (LibvirtQuery{URI: "qemu:///session", Machine: "q35", Type: "qemu"}) {
				return nil, fmt.Errorf("query %+v", q)
			}
			return &LibvirtAnswer{Version: 11_003_000, Capabilities: capabilities}, nil
		}, nil},
		"no answer": {launch.PlatformSim, func(LibvirtQuery) (*LibvirtAnswer, error) { return nil, errors.New("no") }, []string{"fail libvirt"}},
		"no KVM": {launch.PlatformSNP, func(LibvirtQuery) (*LibvirtAnswer, error) {
			return nil, fmt.Errorf("libvirt: %w", libvirt.Error{Code: 8, Message: "the accel 'kvm' is not supported"})
		}, []string{"fail libvirt"}},
		"no daemon":               {launch.PlatformSim, func(LibvirtQuery) (*LibvirtAnswer, error) { return nil, fs.ErrNotExist }, nil},
		"no daemon of the system": {launch.PlatformSNP, func(LibvirtQuery) (*LibvirtAnswer, error) { return nil, fs.ErrNotExist }, []string{"fail libvirt"}},
		"old": {launch.PlatformSNP, func(LibvirtQuery) (*LibvirtAnswer, error) {
			return &LibvirtAnswer{Version: 9_000_000, Capabilities: capabilities}, nil
		}, []string{"fail libvirt"}},
		"very old": {launch.PlatformSim, func(LibvirtQuery) (*LibvirtAnswer, error) {
			return &LibvirtAnswer{Version: 8_999_999, Capabilities: capabilities}, nil
		}, []string{"fail libvirt"}},
		"no XML": {launch.PlatformSim, func(LibvirtQuery) (*LibvirtAnswer, error) {
			return &LibvirtAnswer{Version: 11_003_000, Capabilities: "<"}, nil
		}, []string{"fail libvirt"}},
		"too much XML": {launch.PlatformSim, func(LibvirtQuery) (*LibvirtAnswer, error) {
			return &LibvirtAnswer{Version: 11_003_000, Capabilities: capabilities + strings.Repeat(" ", maxCapabilities)}, nil
		}, []string{"fail libvirt"}},
		"no SNP": {launch.PlatformSNP, func(LibvirtQuery) (*LibvirtAnswer, error) {
			return &LibvirtAnswer{Version: 11_003_000, Capabilities: strings.Replace(capabilities, "sev-snp", "tdx", 1)}, nil
		}, []string{"fail libvirt"}},
		"SNP not supported": {launch.PlatformSNP, func(LibvirtQuery) (*LibvirtAnswer, error) {
			return &LibvirtAnswer{Version: 11_003_000, Capabilities: strings.Replace(capabilities, "launchSecurity supported='yes'", "launchSecurity supported='no'", 1)}, nil
		}, []string{"fail libvirt"}},
		"sim needs no SNP": {launch.PlatformSim, func(LibvirtQuery) (*LibvirtAnswer, error) {
			return &LibvirtAnswer{Version: 11_003_000, Capabilities: strings.Replace(capabilities, "sev-snp", "tdx", 1)}, nil
		}, nil},
		"no external TPM": {launch.PlatformSim, func(LibvirtQuery) (*LibvirtAnswer, error) {
			return &LibvirtAnswer{Version: 11_003_000, Capabilities: strings.Replace(capabilities, "external", "other", 1)}, nil
		}, []string{"fail libvirt"}},
		"no TPM": {launch.PlatformSim, func(LibvirtQuery) (*LibvirtAnswer, error) {
			return &LibvirtAnswer{Version: 11_003_000, Capabilities: strings.Replace(capabilities, "tpm supported='yes'", "tpm supported='no'", 1)}, nil
		}, []string{"fail libvirt"}},
	} {
		t.Run(name, func(t *testing.T) {
			spec := specOf(t, "platform: "+c.platform, "backend: libvirt")
			h := newFakeHost(t)
			h.o.geteuid = func() int { return launchtest.Nobody }
			h.o.Libvirt = func(_ context.Context, q LibvirtQuery) (*LibvirtAnswer, error) { return c.answer(q) }
			r := examine(t, h, spec)
			if got := notOK(r); !slices.Equal(got, c.want) || r.Works != (c.want == nil) {
				t.Errorf("found %q, works %t, expected %q", got, r.Works, c.want)
			}
		})
	}
}

// TestDoctorRemoteLibvirt: nothing that is true of this machine is told of
// another one.
func TestDoctorRemoteLibvirt(t *testing.T) {
	spec := specOf(t, "platform: snp", "backend: libvirt", "libvirt: {uri: 'qemu+ssh://other/system'}")
	h := newFakeHost(t)
	h.remove(t, "dev/sev")
	r := examine(t, h, spec)
	if !r.Works || r.Host != "other" || !strings.Contains(r.Summary, "of which nothing was looked at") || len(r.Findings) != 1 {
		t.Errorf("found %+v", r)
	}
	spec.Firmware.Path += "x"
	if r = examine(t, h, spec); r.Works || !strings.Contains(r.Summary, "a launch on other cannot work: ") {
		t.Errorf("found %+v", r)
	}
}

// TestL26LibvirtHangs: go-libvirt knows no deadlines; the question has one all
// the same.
func TestL26LibvirtHangs(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "libvirt"), 0o700); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "libvirt", "libvirt-sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			if _, err := ln.Accept(); err != nil {
				return
			}
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err = askLibvirt(ctx, "/", dir, LibvirtQuery{URI: "qemu:///session"})
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 5*time.Second {
		t.Errorf("found %v after %v, expected a deadline", err, time.Since(begin))
	}
	if _, err := askLibvirt(t.Context(), dir, dir, LibvirtQuery{URI: "qemu:///system"}); err == nil {
		t.Error("found an answer of nobody")
	}
}

// TestE2EDoctorLibvirt asks a real libvirt: one that believes in SEV-SNP, and
// that of this machine.
func TestE2EDoctorLibvirt(t *testing.T) {
	s := launchtest.SNPSession(t)
	ask := func(_ context.Context, q LibvirtQuery) (*LibvirtAnswer, error) {
		q.URI, q.Type = "qemu:///session", "qemu" // there is no KVM
		return askLibvirt(within(t, 30*time.Second), "/", filepath.Join(s.Dir, "run"), q)
	}
	for _, platform := range []string{launch.PlatformSNP, launch.PlatformSim} {
		spec := specOf(t, "platform: "+platform, "backend: libvirt")
		h := newFakeHost(t)
		h.o.Libvirt, h.o.geteuid = ask, func() int { return launchtest.Nobody }
		r := examine(t, h, spec)
		if got := notOK(r); got != nil {
			t.Errorf("%s: found %q: %s", platform, got, r.Summary)
		}
		if f := r.Findings[len(r.Findings)-1]; f.Name != "libvirt" || !strings.HasPrefix(f.Found, "libvirt 1") {
			t.Errorf("%s: found %+v", platform, f)
		}
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
