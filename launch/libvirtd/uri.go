// Package libvirtd connects to libvirt's daemons (https://libvirt.org): which one a
// URI leads to, starting one for a session as libvirt's own clients do, and calls
// of go-libvirt that have deadlines and bounds, of which that library knows none.
package libvirtd

import (
	"errors"
	"net/url"
	"strings"
)

// A Place is a libvirt that a URI leads to.
type Place struct {
	Driver  string // what the daemon is asked to open: qemu:///system
	Session bool
	Host    string // another machine; empty: this one
	user    string
	port    string
}

// errURI says which URIs are taken.
var errURI = errors.New("expected qemu:///system, qemu:///session or qemu+ssh://[USER@]HOST[:PORT]/system, without parameters")

// ParseURI takes URIs that lead to a QEMU driver and say nothing else:
// libvirt's parameters can name commands to run.
func ParseURI(uri string) (Place, error) {
	u, err := url.Parse(uri)
	if err != nil || !good(u) {
		return Place{}, errURI
	}
	return Place{
		Driver: "qemu://" + u.Path, Session: u.Path == "/session",
		Host: u.Hostname(), user: u.User.Username(), port: u.Port(),
	}, nil
}

func good(u *url.URL) bool {
	if u.RawQuery != "" || u.Fragment != "" {
		return false
	}
	if u.Path != "/system" && u.Path != "/session" {
		return false
	}
	switch u.Scheme {
	case "qemu", "qemu+unix":
		return u.Host == "" && u.User == nil
	case "qemu+ssh":
		_, password := u.User.Password()
		// ssh would take a hyphen for an option.
		return u.Hostname() != "" && u.Hostname()[0] != '-' && !strings.HasPrefix(u.User.Username(), "-") && !password
	}
	return false
}
