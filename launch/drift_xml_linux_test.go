package launch

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// liveXML writes a domain as libvirt 11.3 does once it runs: what it was asked
// for in its own way, and what it adds of its own accord.
func liveXML(asked string) string {
	for _, c := range [][2]string{
		{`machine="q35"`, `machine='pc-q35-10.0'`},
		{`check="none"`, `check='full'`},
		{`<vcpu>`, `<vcpu placement='static'>`},
		{`<policy>0x30000</policy>`, `<policy>0x00030000</policy>`},
		{`<domain type`, `<domain id='7' type`},
		{`<controller type="usb" model="none"></controller>`, `<controller type='usb' index='0' model='none'><alias name='usb'/></controller>
			<controller type='pci' index='0' model='pcie-root'><alias name='pcie.0'/></controller><controller type='sata' index='0'/>`},
		{`</devices>`, `<input type='mouse' bus='ps2'/><input type='keyboard' bus='ps2'/><watchdog model='itco' action='reset'/>
			<console type='unix'><alias name='serial0'/></console><emulator>/usr/bin/qemu-system-x86_64</emulator></devices>
			<seclabel type='none'/>`},
		{`name="org.evtpm.agent.0"`, `name='org.evtpm.agent.0' state='disconnected'`},
	} {
		asked = strings.ReplaceAll(asked, c[0], c[1])
	}
	return memoryElement.ReplaceAllStringFunc(asked, func(m string) string {
		bytes, err := strconv.ParseUint(memoryElement.FindStringSubmatch(m)[1], 10, 64)
		if err != nil {
			return m
		}
		return fmt.Sprintf("<memory unit='KiB'>%d</memory><currentMemory unit='KiB'>%[1]d</currentMemory>", bytes>>10)
	})
}

var memoryElement = regexp.MustCompile(`<memory unit="b">(\d+)</memory>`)

// TestL27Domain: a domain that libvirt runs as it was asked to passes; whatever
// was changed in it is named.
func TestL27Domain(t *testing.T) {
	cases := domainCases(t)
	render := func(name string) string {
		data, err := cases[name].LibvirtDomain(LibvirtOptions{Dir: "/d", Console: "/d/console.sock", UUID: "6cf6e3c9-1d5b-4a52-8c2d-5d4b4f1e9d10"})
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	for name := range cases {
		asked := render(name)
		if err := CompareDomains([]byte(asked), []byte(liveXML(asked))); err != nil {
			t.Errorf("%s: found %v\n%s", name, err, liveXML(asked))
		}
	}
	for _, c := range []struct{ domain, from, to, want string }{
		{"snp with all", "<uuid>6c", "<uuid>7c", "domain/uuid"},
		{"snp with all", "<kernel>", "<kernel>/evil", "domain/os/kernel"},
		{"snp with all", "<cmdline>", "<cmdline>init=/bin/sh ", "domain/os/cmdline"},
		{"snp with all", `type="rom"`, `type="pflash"`, "domain/os/loader@type"},
		{"snp with all", "</loader>", "</loader><nvram>/x</nvram>", "domain/os/nvram: found, expected none"},
		{"snp with all", `kernelHashes="yes"`, `kernelHashes="no"`, "domain/launchSecurity@kernelHashes"},
		{"snp with all", "<policy>0x", "<policy>0x8", "domain/launchSecurity/policy"},
		{"snp with all", "<hostData>", "<hostData>A", "domain/launchSecurity/hostData"},
		{"snp with all", `mode="shared"`, `mode="private"`, "domain/memoryBacking/access@mode"},
		{"snp with all", "/dev/urandom", "/dev/zero", "domain/devices/rng/backend"},
		{"snp", `<launchSecurity type="sev-snp"`, `<launchSecurity type="sev"`, "domain/launchSecurity@type"},
		{"sim", "</devices>", `</devices><launchSecurity type="sev"/>`, "domain/launchSecurity: found, expected none"},
		{"sim", "268435456", "268439552", "domain/memory"},
		{"sim", "<vcpu>1", "<vcpu>2", "domain/vcpu"},
		{"sim", `model="tpm-crb"`, `model="tpm-tis"`, "domain/devices/tpm@model"},
		{"sim", `mode="connect" path="/d/tpm.sock"`, `mode="connect" path="/e/tpm.sock"`, "domain/devices/tpm/backend/source@path"},
		{"sim", `port="2"`, `port="3"`, "domain/devices/channel/address@port"},
		{"sim", `path="/d/agent.sock"`, `path="/e/agent.sock"`, "domain/devices/channel/source@path"},
		{"sim", "</devices>", `<hostdev mode="subsystem" type="pci"/></devices>`, "found a hostdev (pci), expected none"},
		{"sim", "</devices>", `<disk type="file"/></devices>`, "found a disk (file), expected none"},
		{"sim", "</devices>", `<watchdog model="i6300esb"/></devices>`, "found a watchdog (i6300esb), expected none"},
		{"sim", "<qemu:arg value=\"-device\"></qemu:arg>", "", "qemu:commandline"},
		{"sim", "</qemu:commandline>", `<qemu:arg value="-s"/></qemu:commandline>`, "arguments in domain/qemu:commandline: found 3, expected 2"},
		{"sim", "loader,file=", "loader,file=/evil", "domain/qemu:commandline/qemu:arg@value"},
		{"snp", "</devices>", "</devices><qemu:commandline><qemu:arg value=\"-s\"/></qemu:commandline>", "domain/qemu:commandline: found, expected none"},
		{"sim", "</devices>", "</devices><qemu:override/>", "domain/qemu:override: found, expected none"},
		{"sim", "<on_reboot>destroy", "<on_reboot>restart", "domain/on_reboot"},
		{"sim", `<smm state="off">`, `<smm state="on">`, "domain/features/smm@state"},
		{"sim", "<domain", "<domain><", "libvirt's domain: "},
		{"sim", "</domain>", "", "libvirt's domain: "},
	} {
		asked := render(c.domain)
		if !strings.Contains(asked, c.from) {
			t.Errorf("%s is not in\n%s", c.from, asked)
			continue
		}
		err := CompareDomains([]byte(asked), []byte(liveXML(strings.Replace(asked, c.from, c.to, 1))))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s for %s: found %v, expected %q", c.to, c.from, err, c.want)
		}
		var drift *driftError
		if !strings.HasPrefix(c.want, "libvirt") && !errors.As(err, &drift) {
			t.Errorf("%s for %s: found %T, expected a drift", c.to, c.from, err)
		}
	}
	deep := strings.Repeat("<a>", 2*maxElementDepth) + strings.Repeat("</a>", 2*maxElementDepth)
	if _, err := parseElement([]byte(deep)); err == nil {
		t.Error("found no error of elements that nest deeply")
	}
}

// FuzzDomain: whatever libvirt answers, it is judged in bounded time; what is
// taken for the same as what was asked holds all that was asked.
func FuzzDomain(f *testing.F) {
	asked := []byte(`<domain type="qemu"><name>a</name><memory unit="b">1024</memory><devices><tpm model="tpm-crb"></tpm></devices></domain>`)
	for _, s := range []string{
		string(asked), liveXML(string(asked)), "", "<domain/>", "<a", "<domain><domain></domain>", "<!DOCTYPE a [<!ENTITY b 'c'>]><domain>&b;</domain>",
		`<domain type="qemu"><name>a</name><memory>1</memory><devices><tpm model="tpm-crb"/></devices></domain>`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, live []byte) {
		if CompareDomains(asked, live) != nil {
			return
		}
		for _, want := range []string{"qemu", "tpm-crb", ">a<"} {
			if !strings.Contains(string(live), want) && !strings.Contains(string(live), "&") && !strings.Contains(string(live), "<![CDATA[") && !strings.Contains(string(live), ">\n") {
				t.Errorf("%s", fmt.Sprintf("%q lacks %s", live, want))
			}
		}
	})
}
