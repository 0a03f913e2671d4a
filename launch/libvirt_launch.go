package launch

import (
	"errors"
	"fmt"

	"github.com/evtpm/evtpm/launch/libvirtd"
)

// CheckLibvirt refuses what the user euid cannot launch through the spec's libvirt.
func (s *Spec) CheckLibvirt(euid int) error {
	if s.Backend != BackendLibvirt {
		return nil
	}
	p, err := libvirtd.ParseURI(s.Libvirt.URI)
	if err != nil {
		return err
	}
	var errs []error
	refuse := func(format string, args ...any) { errs = append(errs, fmt.Errorf("libvirt.uri: "+format, args...)) }
	switch {
	case p.Host != "":
		if s.Platform == PlatformSim {
			refuse("found %s with platform sim, expected a libvirt on this machine: the simulated AMD-SP and the vTPM are here, and another machine's QEMU does not reach them", s.Libvirt.URI)
		}
		if s.Agent.Transport != TransportTCP {
			refuse("found %s with agent.transport %s, expected tcp: the agent's port is on the other machine", s.Libvirt.URI, s.Agent.Transport)
		}
	case p.Session && euid == 0:
		refuse("found %s for root, expected qemu:///system: libvirt has sessions for other users alone", s.Libvirt.URI)
	}
	return errors.Join(errs...)
}

// onOtherHost reports whether the VM is to run on another machine.
func (s *Spec) onOtherHost() bool {
	if s.Backend != BackendLibvirt {
		return false
	}
	p, err := libvirtd.ParseURI(s.Libvirt.URI)
	return err == nil && p.Host != ""
}

// OldestLibvirt is the oldest libvirt that knows what a platform needs: TPMs of
// other processes, and SEV-SNP (https://libvirt.org/news.html).
func OldestLibvirt(platform string) uint64 {
	if platform == PlatformSNP {
		return 10_005_000
	}
	return 9_000_000
}
