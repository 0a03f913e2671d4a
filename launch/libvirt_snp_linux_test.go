package launch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/evtpm/evtpm/launch/launchtest"
	"github.com/evtpm/evtpm/launch/libvirtd"
	"github.com/evtpm/evtpm/qmp"
)

// create starts a domain as a supervisor does.
func create(t *testing.T, c *libvirtd.Conn, domain []byte) (d libvirt.Domain, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	err = c.CallWithin(ctx, "start", func(l *libvirt.Libvirt) (err error) {
		d, err = l.DomainCreateXML(string(domain), libvirt.DomainStartPaused|libvirt.DomainStartAutodestroy|libvirt.DomainStartValidate)
		return err
	})
	return d, err
}

// notKVM makes a domain one that needs no KVM, which is where everything else
// would end here.
func notKVM(domain []byte) []byte {
	return []byte(strings.Replace(string(domain), `<domain type="kvm"`, `<domain type="qemu"`, 1))
}

// hugepages are what this machine may have none of.
var hugepages = regexp.MustCompile(`(?s)<hugepages>.*</hugepages>`)

// TestE2ELibvirtSNPStops: a real libvirt that believes in SEV-SNP starts every
// domain with it, and the real QEMU ends where the hardware is missing.
func TestE2ELibvirtSNPStops(t *testing.T) {
	s := launchtest.SNPSession(t)
	c := s.Connect(t)
	for name, p := range domainCases(t) {
		if p.Spec.Platform != PlatformSNP || p.Spec.Networks != nil || p.Spec.Vsock != nil {
			continue // libvirt opens the host's devices first
		}
		domain, err := p.LibvirtDomain(LibvirtOptions{Dir: s.Dir})
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			_, err = create(t, c, notKVM(hugepages.ReplaceAll(domain, nil)))
			if err == nil {
				t.Fatalf("%s: a VM with SEV-SNP started", name)
			}
			// A QEMU that ends before libvirt has connected to it.
			if !strings.Contains(err.Error(), "failed to connect to monitor socket") {
				break
			}
		}
		if said := err.Error(); !saysOne(said, missingHardware) && !(p.SVSM != nil && saysOne(said, missingBuild)) {
			t.Errorf("%s: libvirt says %v", name, err)
		}
		tell("started    %-24s %s", name, lastLine(err.Error()))
		// As a domain of KVM's, which is what a launch asks for.
		_, err = create(t, c, domain)
		var refused libvirt.Error
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), "does not support virt type 'kvm'") || libvirt.ErrorNumber(refused.Code) != libvirt.ErrConfigUnsupported {
			t.Errorf("%s: as a domain of KVM's: found %v, expected that the host is not capable", name, err)
		}
	}
}

// TestE2ELibvirtSNPRuns: a domain with SEV-SNP runs, with a program in QEMU's
// place that forgets SEV-SNP; libvirt's own part of it is real. What libvirt then
// says of the domain is what was asked for.
func TestE2ELibvirtSNPRuns(t *testing.T) {
	kernel, err := os.ReadFile("../build/kernel/vmlinuz")
	if err != nil {
		t.Skip("build/kernel/vmlinuz is missing: run scripts/setup demo")
	}
	s := launchtest.SNPSession(t)
	dir, spec := planDir(t, "platform: snp", "id_block: {id_key: id.pem}", "host_data: "+strings.Repeat("0b", 32), "cpu: {model: EPYC-v4}",
		"policy: {single_socket: true}", "qemu: {binary: "+s.Emulator()+"}", "console: log")
	launchtest.Key(t, filepath.Join(dir, "id.pem"))
	p := resolve(t, spec)
	p.Spec.Cmdline = "console=ttyS0"
	console := filepath.Join(s.Dir, "console.log")
	launchtest.Write(t, filepath.Join(s.Dir, "vmlinuz"), kernel)
	if err := os.Chmod(filepath.Join(s.Dir, "vmlinuz"), 0o644); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"firmware": "/usr/share/ovmf/OVMF.fd", "kernel": filepath.Join(s.Dir, "vmlinuz"), "initrd": filepath.Join(s.Dir, "vmlinuz")}
	asked, err := p.LibvirtDomain(LibvirtOptions{Dir: s.Dir, File: func(in *Input) string { return files[in.Name] }, UUID: "6cf6e3c9-1d5b-4a52-8c2d-5d4b4f1e9d10"})
	if err != nil {
		t.Fatal(err)
	}
	asked = notKVM(asked)
	c := s.Connect(t)
	d, err := create(t, c, asked)
	if err != nil {
		t.Fatal(err)
	}
	mon, err := libvirtd.NewMonitor(t.Context(), c, d)
	if err != nil {
		t.Fatal(err)
	}
	var live string
	call := func(what string, do func(*libvirt.Libvirt) error) {
		t.Helper()
		if err := c.Call(t.Context(), what, do); err != nil {
			t.Fatal(err)
		}
	}
	call("XML", func(l *libvirt.Libvirt) (err error) {
		live, err = l.DomainGetXMLDesc(d, 0)
		return err
	})
	if err := CompareDomains(asked, []byte(live)); err != nil {
		t.Errorf("%v\n%s", err, live)
	}
	if !strings.Contains(live, "sev-snp") || !strings.Contains(live, "idBlock") {
		t.Errorf("libvirt's domain has no SEV-SNP:\n%s", live)
	}
	// QEMU itself knows that there is no SEV-SNP in it.
	err = p.ReadBack(t.Context(), mon, files)
	var drift *driftError
	if !errors.As(err, &drift) || !strings.Contains(err.Error(), "confidential-guest-support") {
		t.Errorf("found %v, expected that there is no confidential guest", err)
	}
	if _, err := (qmp.Commands{Executor: mon}).QuerySEV(t.Context()); err != nil {
		t.Error(err)
	}
	call("resume", func(l *libvirt.Libvirt) error { return l.DomainResume(d) })
	booted := false
	for deadline := time.Now().Add(3 * time.Minute); !booted && time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		said, _ := os.ReadFile(console)
		booted = strings.Contains(string(said), "Linux version")
	}
	if !booted {
		said, _ := os.ReadFile(console)
		t.Errorf("the guest's kernel did not start; its console says:\n%s", said)
	}
	call("destroy", func(l *libvirt.Libvirt) error { return l.DomainDestroy(d) })
	tell("ran        an SNP domain under TCG, SEV-SNP left out of QEMU's command line alone: the kernel started: %t", booted)
}
