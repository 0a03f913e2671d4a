package doctor

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/digitalocean/go-libvirt"

	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/libvirtd"
)

// A LibvirtQuery is what [Examine] asks a libvirt.
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

func (d *examination) libvirt() {
	if err := d.spec.CheckLibvirt(d.o.geteuid()); err != nil {
		d.fail("libvirt", err.Error(), "a libvirt that this spec can be launched through", "correct the spec")
		return
	}
	q := LibvirtQuery{URI: d.spec.Libvirt.URI, Machine: d.spec.QEMU.Machine, Type: "kvm"}
	if d.spec.QEMU.Accel == launch.AccelTCG {
		q.Type = "qemu"
	}
	if filepath.IsAbs(d.spec.QEMU.Binary) {
		q.Emulator = d.spec.QEMU.Binary // a bare name is libvirt's to find
	}
	ctx, cancel := context.WithTimeout(d.ctx, probeTimeout)
	defer cancel()
	a, err := d.o.Libvirt(ctx, q)
	if place, parseErr := libvirtd.ParseURI(q.URI); parseErr == nil && place.Session && libvirtd.NotListening(err) {
		if program, err := libvirtd.SessionDaemon(d.o.lookPath); err == nil {
			d.ok("libvirt", "no libvirt of this session runs; a launch starts %s", program)
			return
		}
	}
	var refused libvirt.Error
	if errors.As(err, &refused) {
		d.fail("libvirt", err.Error(), "a libvirt that can start such a VM", "mend what else is missing; then see virsh -c "+q.URI+" domcapabilities --virttype "+q.Type)
		return
	}
	if err != nil {
		d.fail("libvirt", fmt.Sprintf("libvirt: %v", err), "libvirt at "+q.URI, "start libvirtd, and see that this user may connect: virsh -c "+q.URI+" version")
		return
	}
	version := "libvirt " + libvirtd.Version(a.Version)
	var caps domainCapabilities
	if len(a.Capabilities) > maxCapabilities {
		err = fmt.Errorf("found %d bytes, expected at most %d", len(a.Capabilities), maxCapabilities)
	} else {
		err = xml.Unmarshal([]byte(a.Capabilities), &caps)
	}
	switch {
	case err != nil:
		d.fail("libvirt", fmt.Sprintf("%s: domain capabilities: %v", version, err), "domain capabilities", "see virsh domcapabilities")
	case a.Version < launch.OldestLibvirt(d.spec.Platform):
		d.fail("libvirt", version, "libvirt "+libvirtd.Version(launch.OldestLibvirt(d.spec.Platform))+" or later", "install a newer libvirt")
	case d.spec.Platform == launch.PlatformSNP && (caps.Security.Supported != "yes" || !enumHas(caps.Security.Enums, "sectype", "sev-snp")):
		d.fail("libvirt", version+" offers no launch security of type sev-snp", "libvirt 10.5 or later, on a host that can",
			"mend what else is missing, then remove libvirt's cache of capabilities and start it anew (virsh domcapabilities shows launchSecurity)")
	case d.spec.Platform == launch.PlatformSim && (caps.TPM.Supported != "yes" || !enumHas(caps.TPM.Enums, "backendModel", "external")):
		d.fail("libvirt", version+" offers no TPM with back end external", "libvirt 9.0 or later", "install a newer libvirt")
	default:
		d.ok("libvirt", "%s at %s", version, q.URI)
	}
}

// askLibvirt asks the libvirt that listens for a local URI.
func askLibvirt(ctx context.Context, root, runtimeDir string, q LibvirtQuery) (*LibvirtAnswer, error) {
	place, err := libvirtd.ParseURI(q.URI)
	if err != nil {
		return nil, err
	}
	if place.Host != "" {
		return nil, fmt.Errorf("%s is another machine", place.Host)
	}
	conn, err := place.Connect(ctx, root, runtimeDir)
	if err != nil {
		return nil, err
	}
	c, err := libvirtd.NewConn(ctx, conn, place.Driver)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	optional := func(s string) libvirt.OptString {
		if s == "" {
			return nil
		}
		return libvirt.OptString{s}
	}
	a := new(LibvirtAnswer)
	// A libvirt that has not seen this QEMU yet runs it first.
	err = c.CallWithin(ctx, "domain capabilities", func(l *libvirt.Libvirt) (err error) {
		if a.Version, err = l.ConnectGetLibVersion(); err != nil {
			return err
		}
		a.Capabilities, err = l.ConnectGetDomainCapabilities(optional(q.Emulator), optional("x86_64"), optional(q.Machine), optional(q.Type), 0)
		return err
	})
	return a, err
}
