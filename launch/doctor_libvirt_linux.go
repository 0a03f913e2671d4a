package launch

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/digitalocean/go-libvirt"
)

// A LibvirtQuery is what [Doctor] asks a libvirt.
type LibvirtQuery struct {
	URI      string // qemu:///system or qemu:///session
	Emulator string // path of QEMU; empty: libvirt's choice
	Machine  string // q35
	Type     string // kvm or qemu
}

// A LibvirtAnswer is what it says.
type LibvirtAnswer struct {
	// Version is major * 1,000,000 + minor * 1,000 + release.
	Version uint64
	// Capabilities is the XML of the domain capabilities
	// (https://libvirt.org/formatdomaincaps.html).
	Capabilities string
}

// domainCapabilities is what is read of them.
type domainCapabilities struct {
	Type     string `xml:"domain"`
	Security struct {
		Supported string       `xml:"supported,attr"`
		Enums     []domainEnum `xml:"enum"`
	} `xml:"features>launchSecurity"`
	TPM struct {
		Supported string       `xml:"supported,attr"`
		Enums     []domainEnum `xml:"enum"`
	} `xml:"devices>tpm"`
}

type domainEnum struct {
	Name   string   `xml:"name,attr"`
	Values []string `xml:"value"`
}

func enumHas(enums []domainEnum, name, value string) bool {
	for _, e := range enums {
		if e.Name == name && slices.Contains(e.Values, value) {
			return true
		}
	}
	return false
}

// maxCapabilities bounds the XML; libvirt's own bound of a string is 4 MiB.
const maxCapabilities = 1 << 20

func (d *doctor) libvirt() {
	q := LibvirtQuery{URI: d.spec.Libvirt.URI, Machine: d.spec.QEMU.Machine, Type: "kvm"}
	if d.spec.QEMU.Accel == AccelTCG {
		q.Type = "qemu"
	}
	if filepath.IsAbs(d.spec.QEMU.Binary) {
		q.Emulator = d.spec.QEMU.Binary // a bare name is libvirt's to find
	}
	ctx, cancel := context.WithTimeout(d.ctx, probeTimeout)
	defer cancel()
	a, err := d.o.Libvirt(ctx, q)
	if err != nil {
		d.fail("libvirt", fmt.Sprintf("libvirt: %v", err), "libvirt at "+q.URI, "start libvirtd, and see that this user may connect: virsh -c "+q.URI+" version")
		return
	}
	version := fmt.Sprintf("libvirt %d.%d.%d", a.Version/1_000_000, a.Version/1000%1000, a.Version%1000)
	var caps domainCapabilities
	if len(a.Capabilities) > maxCapabilities {
		err = fmt.Errorf("found %d bytes, expected at most %d", len(a.Capabilities), maxCapabilities)
	} else {
		err = xml.Unmarshal([]byte(a.Capabilities), &caps)
	}
	switch {
	case err != nil:
		d.fail("libvirt", fmt.Sprintf("%s: domain capabilities: %v", version, err), "domain capabilities", "see virsh domcapabilities")
	case d.spec.Platform == PlatformSNP && (caps.Security.Supported != "yes" || !enumHas(caps.Security.Enums, "sectype", "sev-snp")):
		d.fail("libvirt", version+" offers no launch security of type sev-snp", "libvirt 10.5 or later, on a host that can",
			"mend what else is missing, then remove libvirt's cache of capabilities and start it anew (virsh domcapabilities shows launchSecurity)")
	case d.spec.Platform == PlatformSim && (caps.TPM.Supported != "yes" || !enumHas(caps.TPM.Enums, "backendModel", "external")):
		d.fail("libvirt", version+" offers no TPM with back end external", "libvirt 9.0 or later", "install a newer libvirt")
	default:
		d.ok("libvirt", "%s at %s", version, q.URI)
	}
}

// libvirtSockets returns where the daemons of a local URI listen, the newer
// kind of daemon first.
func libvirtSockets(uri, root, runtimeDir string) ([]string, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	if u.Host != "" {
		return nil, fmt.Errorf("%s is another machine", u.Host)
	}
	if s := u.Query().Get("socket"); s != "" {
		return []string{s}, nil
	}
	dir := filepath.Join(root, "/run/libvirt")
	if u.Path == "/session" {
		dir = filepath.Join(runtimeDir, "libvirt")
	}
	return []string{filepath.Join(dir, "virtqemud-sock"), filepath.Join(dir, "libvirt-sock")}, nil
}

// askLibvirt asks the libvirt that listens for a local URI. go-libvirt knows no
// contexts: when ctx ends, the connection is closed under it.
func askLibvirt(ctx context.Context, root, runtimeDir string, q LibvirtQuery) (*LibvirtAnswer, error) {
	sockets, err := libvirtSockets(q.URI, root, runtimeDir)
	if err != nil {
		return nil, err
	}
	var conn net.Conn
	for _, s := range sockets {
		var d net.Dialer
		if conn, err = d.DialContext(ctx, "unix", s); err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	a, err := queryLibvirt(conn, q)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return a, err
}

func queryLibvirt(conn net.Conn, q LibvirtQuery) (*LibvirtAnswer, error) {
	l := libvirt.NewWithDialer(connected{conn})
	if err := l.ConnectToURI(libvirt.ConnectURI(q.URI)); err != nil {
		return nil, err
	}
	version, err := l.ConnectGetLibVersion()
	if err != nil {
		return nil, err
	}
	optional := func(s string) libvirt.OptString {
		if s == "" {
			return nil
		}
		return libvirt.OptString{s}
	}
	caps, err := l.ConnectGetDomainCapabilities(optional(q.Emulator), optional("x86_64"), optional(q.Machine), optional(q.Type), 0)
	if err != nil {
		return nil, err
	}
	return &LibvirtAnswer{Version: version, Capabilities: caps}, l.Disconnect()
}

// connected is a dialer of go-libvirt's that has dialed.
type connected struct{ conn net.Conn }

// Dial implements socket.Dialer.
func (c connected) Dial() (net.Conn, error) { return c.conn, nil }
