package launch

import (
	"strings"
	"testing"
)

// TestLibvirtRefusals: what cannot be launched through a libvirt is said at once.
func TestLibvirtRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		lines []string
		euid  int
		want  []string
	}{
		"qemu":            {[]string{"platform: sim"}, 0, nil},
		"session":         {[]string{"platform: sim", "backend: libvirt"}, 1000, nil},
		"session of root": {[]string{"platform: sim", "backend: libvirt"}, 0, []string{"qemu:///session for root, expected qemu:///system"}},
		"system of root":  {[]string{"platform: sim", "backend: libvirt", "libvirt: {uri: 'qemu:///system'}"}, 0, nil},
		"remote sim":      {[]string{"platform: sim", "backend: libvirt", "libvirt: {uri: 'qemu+ssh://h/system'}"}, 0, []string{"with platform sim", "expected tcp"}},
		"remote": {[]string{"platform: snp", "backend: libvirt", "libvirt: {uri: 'qemu+ssh://h/system'}", "networks: [{type: user}]",
			"agent: {transport: tcp, address: 'h:7600'}"}, 0, nil},
		"remote by port": {[]string{"platform: snp", "backend: libvirt", "libvirt: {uri: 'qemu+ssh://h/system'}"}, 0, []string{"agent.transport virtio-serial, expected tcp"}},
	} {
		_, spec := planDir(t, c.lines...)
		err := spec.CheckLibvirt(c.euid)
		if (err == nil) != (c.want == nil) {
			t.Errorf("%s: found %v, expected %q", name, err, c.want)
		}
		for _, want := range c.want {
			if err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: found %v, expected %s", name, err, want)
			}
		}
	}
}
