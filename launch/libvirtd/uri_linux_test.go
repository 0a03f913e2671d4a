package libvirtd

import (
	"fmt"
	"testing"
)

func TestPlace(t *testing.T) {
	for uri, want := range map[string]string{
		"qemu:///system":                   "qemu:///system [/r/run/libvirt/virtqemud-sock /r/run/libvirt/libvirt-sock]",
		"qemu:///session":                  "qemu:///session [/u/libvirt/virtqemud-sock /u/libvirt/libvirt-sock]",
		"qemu+unix:///system":              "qemu:///system [/r/run/libvirt/virtqemud-sock /r/run/libvirt/libvirt-sock]",
		"qemu:///system?socket=/a/b":       "",
		"qemu+ssh://root@other:22/session": "qemu:///session root other 22",
		"qemu+ssh://other/system":          "qemu:///system  other ",
	} {
		p, err := ParseURI(uri)
		got := fmt.Sprint(p.Driver, " ", p.sockets("/r", "/u"))
		if p.Host != "" {
			got = fmt.Sprintf("%s %s %s %s", p.Driver, p.user, p.Host, p.port)
		}
		if (want == "") != (err != nil) || err == nil && got != want {
			t.Errorf("%s: found %v, %v, expected %s", uri, got, err, want)
		}
	}
}
