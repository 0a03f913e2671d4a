package fromvm

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/evtpm/evtpm/measure"
)

func ptr(n int) *int { return &n }

var (
	block64    = base64.StdEncoding.EncodeToString(append([]byte{1}, make([]byte, 95)...))
	auth64     = base64.StdEncoding.EncodeToString([]byte{2, 3})
	hostData64 = base64.StdEncoding.EncodeToString(append([]byte{4}, make([]byte, 31)...))
)

func padded(size int, first ...byte) []byte { return append(first, make([]byte, size-len(first))...) }

func TestQEMU(t *testing.T) {
	for name, c := range map[string]struct {
		line string
		want VM
	}{
		"SNP with everything": {
			line: `qemu-system-x86_64 -enable-kvm -cpu EPYC-v4,+x2apic,host-phys-bits=on -machine q35,confidential-guest-support=sev0,vmport=off \
  -smp 4,maxcpus=255 -m 2048M -no-reboot -bios "/srv/OVMF amdsev.fd" -kernel /boot/vmlinuz -initrd /boot/initrd.img -append 'console=ttyS0 root=/dev/vda1  ro' \
  -object memory-backend-memfd,id=ram1,size=2048M -object sev-snp-guest,id=sev0,policy=0x30000,cbitpos=51,reduced-phys-bits=1,kernel-hashes=on,host-data=` +
				hostData64 + `,id-block=` + block64 + `,id-auth=` + auth64,
			want: VM{
				Mode: measure.ModeSNP, VCPUs: 4, CPUModel: "EPYC-v4", Firmware: "/srv/OVMF amdsev.fd", Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd.img",
				Cmdline: "console=ttyS0 root=/dev/vda1  ro", KernelHashes: true, GuestFeatures: 1, Policy: 0x30000,
				HostData: padded(32, 4), IDBlock: padded(96, 1), IDAuth: padded(4096, 2, 3),
			},
		},
		"SNP by JSON, features, model numbers": {
			line: `-M q35 -machine confidential-guest-support=s -object '{"qom-type":"sev-snp-guest","id":"s","policy":4295163904,"debug-swap":true,"secure-tsc":true}' -cpu EPYC-Genoa,model=160,stepping=2 -bios f`,
			want: VM{Mode: measure.ModeSNP, VCPUs: 1, CPUModel: "EPYC-Genoa", Model: ptr(160), Stepping: ptr(2), Firmware: "f", GuestFeatures: 0x221, Policy: 0x100030000},
		},
		"SEV-ES from flash, topology": {
			line: `-machine pc-q35-9.1,memory-encryption=s -object sev-guest,id=s,policy=0x5,kernel-hashes=off -cpu EPYC -smp sockets=2,cores=3,threads=2 -drive if=pflash,unit=1,file=vars.fd -drive if=pflash,format=raw,unit=0,file=code,,1.fd,readonly=on -kernel k`,
			want: VM{Mode: measure.ModeSEVES, LegacyVMType: true, VCPUs: 12, CPUModel: "EPYC", Firmware: "code,1.fd", Kernel: "k", Policy: 5},
		},
		"SEV-ES with the newer interface, flash by node": {
			line: `-machine q35,confidential-guest-support=s,pflash0=fmt -blockdev '{"driver":"file","filename":"/fw.fd","node-name":"st"}' -blockdev node-name=fmt,driver=raw,file=st -object sev-guest,id=s,policy=4,legacy-vm-type=off -cpu host -smp maxcpus=3`,
			want: VM{Mode: measure.ModeSEVES, VCPUs: 3, CPUModel: "host", Firmware: "/fw.fd", Policy: 4},
		},
		"SEV, as in /proc/PID/cmdline": {
			line: "qemu\x00-object\x00sev-guest,id=s\x00-machine\x00confidential-guest-support=s\x00-cpu\x00EPYC\x00-pflash\x00a b\x00-append\x00x $y\x00",
			want: VM{Mode: measure.ModeSEV, VCPUs: 1, CPUModel: "EPYC", Firmware: "a b", Cmdline: "x $y", Policy: 1},
		},
		"IGVM": {
			line: `-machine q35,confidential-guest-support=s,igvm-cfg=i -object igvm-cfg,id=i,file=svsm.igvm -object sev-snp-guest,id=s -cpu EPYC-v4 -smp 8`,
			want: VM{Mode: measure.ModeSNP, VCPUs: 8, CPUModel: "EPYC-v4", IGVM: "svsm.igvm", GuestFeatures: 1, Policy: 0x30000},
		},
		"a script of COCONUT's, shortened": {
			line: "#!/bin/sh\n# don't edit\nsudo $HOME/bin/qemu-system-x86_64 -cpu EPYC-v4 -machine q35,confidential-guest-support=s,memory-backend=ram1 \\\n" +
				"  -object memory-backend-memfd,id=ram1,size=${MEM} -object sev-snp-guest,id=s,cbitpos=51,init-flags=5,igvm-file=/srv/coconut.igvm \\\n" +
				"  -drive file=\"$IMAGE\",if=none,id=disk0 -smp 8 2>&1 | tee log &",
			want: VM{Mode: measure.ModeSNP, VCPUs: 8, CPUModel: "EPYC-v4", IGVM: "/srv/coconut.igvm", GuestFeatures: 1, Policy: 0x30000,
				Warnings: []string{"init-flags and svsm are not upstream QEMU's: such a host measures in its own way"}},
		},
		"default CPU, flash for SNP": {
			line: `-machine confidential-guest-support=s -object sev-snp-guest,id=s -pflash f`,
			want: VM{Mode: measure.ModeSNP, VCPUs: 1, CPUModel: "qemu64", Firmware: "f", GuestFeatures: 1, Policy: 0x30000, Warnings: []string{
				"no -cpu: the VM has QEMU's default model, qemu64, which is no AMD model for SEV",
				"firmware in flash: QEMU starts an SNP VM from -bios only",
			}},
		},
	} {
		got, err := QEMU(c.line)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := cmp.Diff(&c.want, got); d != "" {
			t.Errorf("%s:\n%s", name, d)
		}
	}
}

func TestQEMURefuses(t *testing.T) {
	const good = `-machine confidential-guest-support=s -object sev-snp-guest,id=s -cpu EPYC-v4 -bios f `
	if _, err := QEMU(good); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"":                                      "found no SEV",
		"-machine q35":                          "found no SEV",
		"-machine confidential-guest-support=s": "no -object with this id",
		"-machine confidential-guest-support=s -object tdx-guest,id=s":               "Intel TDX",
		"-machine confidential-guest-support=s -object rng-random,id=s":              `found type "rng-random"`,
		"-machine confidential-guest-support=s -object sev-snp-guest,id=s -cpu EPYC": "SeaBIOS",
		good + "-smp 0":                                      "-smp",
		good + "-smp cpus=x":                                 "-smp",
		good + "-smp cores=1000000,threads=9999":             "more than",
		good + "-smp":                                        "found nothing after it",
		good + "-append 'x":                                  "apostrophe",
		good + `-append "x`:                                  "quotation mark",
		good + `-append x\`:                                  "backslash",
		good + "-append $CMDLINE":                            "only a shell knows",
		good + "-append \"a $CMDLINE\"":                      `found "$CMDLINE"`,
		good + "$EXTRA":                                      "only a shell knows",
		good + "-nographic `cat extra`":                      "only a shell knows",
		good + "\"$@\"":                                      "only a shell knows",
		good + "-smp \"$N\"":                                 "only a shell knows",
		good + "-object \"$X\"":                              "only a shell knows",
		good + "-drive if=pflash,file=$X":                    "only a shell knows",
		good + "-drive if=$X":                                "only a shell knows",
		good + "-set object.s.policy=1":                      "-set",
		strings.ReplaceAll(good, "id=s ", "id=s,policy=$P "): `found "$P"`,
		strings.ReplaceAll(good, "guest-support=s", "guest-support=s,pflash0=n -blockdev driver=file,filename=$X,node-name=n") + "-bios ''": "only a shell knows",
		strings.ReplaceAll(good, "guest-support=s", "guest-support=s,igvm-cfg=i -object igvm-cfg,id=i,file=$X"):                             "only a shell knows",
		good + "-append \"`cat x`\"":                                                                "only a shell knows",
		good + "-readconfig f":                                                                      "-readconfig",
		good + "-object sev-snp-guest,id=s":                                                         "found a second one with id=s",
		good + "-cpu EPYC,model=x":                                                                  "-cpu model",
		good + "-cpu ,x":                                                                            "expected a model first",
		good + "-machine igvm-cfg=i":                                                                "igvm-cfg=i",
		strings.ReplaceAll(good, "id=s ", "id=s,policy=x "):                                         "policy",
		strings.ReplaceAll(good, "id=s ", "id=s,kernel-hashes=perhaps "):                            "kernel-hashes",
		strings.ReplaceAll(good, "id=s ", "id=s,debug-swap=2 "):                                     "debug-swap",
		strings.ReplaceAll(good, "id=s ", "id=s,host-data=AAAA "):                                   "host-data: found 3 bytes",
		strings.ReplaceAll(good, "id=s ", "id=s,id-block=%% "):                                      "id-block",
		strings.ReplaceAll(good, "id=s ", "id=s,policy=1,policy=2 "):                                `found "1" and "2"`,
		good + `-object '{"qom-type":"x","id":"y","id":"z"}'`:                                       "found twice",
		good + `-object '{"qom-type":`:                                                              "apostrophe",
		good + `-object '{"a":` + strings.Repeat(`{"a":`, 20) + `1` + strings.Repeat("}", 21) + `'`: "nesting",
		strings.Repeat("x ", 5000):                                                                  "words",
		strings.Repeat("x", maxInput+1):                                                             "at most",
		strings.Repeat("x\x00", 5000):                                                               "words",
	} {
		if _, err := QEMU(line); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.120s: found error %v, expected one with %q", line, err, want)
		}
	}
}

func TestWords(t *testing.T) {
	for in, want := range map[string][]string{
		"":                              nil,
		" a  b\tc\nd ":                  {"a", "b", "c", "d"},
		`'a b' "c d" e\ f`:              {"a b", "c d", "e f"},
		`a''b "" ''`:                    {"ab", "", ""},
		`"a\"b\\c\d"`:                   {`a"b\c\d`},
		"a \\\n  b":                     {"a", "b"},
		"\"a\\\nb\"":                    {"ab"},
		`'$x \'`:                        {`$x \`},
		`\$x`:                           {"$x"},
		"a\x00b c\x00\x00":              {"a", "b c", ""},
		"# it's\na#b # c\nd":            {"a#b", "d"},
		`$Q/qemu a=$B,c "${D}e" $`:      {"\x00$Q/qemu", "a=\x00$B,c", "\x00${D}e", "$"},
		"$QEMU a`b c`d \"$(e \"f\")g\"": {"\x00$QEMU", "a\x00`b c`d", "\x00$(e \"f\")g"},
	} {
		got, err := words(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%q:\n%s", in, d)
		}
	}
}

func TestSignature(t *testing.T) {
	for _, c := range []struct {
		vm   VM
		want uint32
	}{
		{VM{CPUModel: "EPYC-v4"}, 0x800f12},
		{VM{CPUModel: "EPYC-Genoa", Model: ptr(160), Stepping: ptr(2)}, 0xaa0f02},
		{VM{CPUModel: "host", Family: ptr(26), Model: ptr(2), Stepping: ptr(1)}, 0xb00f21},
	} {
		got, err := c.vm.Signature()
		if err != nil || got != c.want {
			t.Errorf("%+v: found 0x%x and error %v, expected 0x%x", c.vm, got, err, c.want)
		}
	}
	for _, vm := range []VM{{CPUModel: "host"}, {CPUModel: "EPYC", Model: ptr(256)}, {CPUModel: "host", Family: ptr(26)}} {
		if got, err := vm.Signature(); err == nil {
			t.Errorf("%+v: found 0x%x, expected an error", vm, got)
		}
	}
}

const snpDomain = `<?xml version="1.0"?>
<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>snp</name>
  <vcpu placement='static' current='2'>4</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-10.0'>hvm</type>
    <loader type='rom' stateless='yes'>/usr/share/ovmf/OVMF.amdsev.fd</loader>
    <kernel>/boot/vmlinuz</kernel>
    <initrd>/boot/initrd</initrd>
    <cmdline>console=ttyS0 a=&quot;b c&quot; </cmdline>
  </os>
  <cpu mode='custom' match='exact'><model fallback='forbid'>EPYC-Milan</model></cpu>
  <devices><disk><source file='x'/><model>virtio</model></disk></devices>
  <launchSecurity type='sev-snp' kernelHashes='yes' authorKey='no' vcek='yes'>
    <cbitpos>51</cbitpos><reducedPhysBits>1</reducedPhysBits>
    <policy>0x00030000</policy>
    <hostData>HOSTDATA</hostData>
    <idBlock>IDBLOCK</idBlock>
    <idAuth>IDAUTH</idAuth>
  </launchSecurity>
</domain>`

func snpXML() string {
	return strings.NewReplacer("HOSTDATA", hostData64, "IDBLOCK", block64, "IDAUTH", auth64).Replace(snpDomain)
}

func TestLibvirt(t *testing.T) {
	want := VM{
		Mode: measure.ModeSNP, VCPUs: 2, CPUModel: "EPYC-Milan", Firmware: "/usr/share/ovmf/OVMF.amdsev.fd", Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd",
		Cmdline: `console=ttyS0 a="b c" `, KernelHashes: true, GuestFeatures: 1, Policy: 0x30000,
		HostData: padded(32, 4), IDBlock: padded(96, 1), IDAuth: padded(4096, 2, 3),
	}
	got, err := Libvirt([]byte(snpXML()))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&want, got); d != "" {
		t.Error(d)
	}
	got, err = Libvirt([]byte(`<domain type='qemu'><vcpu>3</vcpu><os><loader type='pflash'>f</loader></os><cpu mode='host-passthrough'/><launchSecurity type='sev'><policy>7</policy></launchSecurity></domain>`))
	if err != nil {
		t.Fatal(err)
	}
	want = VM{Mode: measure.ModeSEVES, LegacyVMType: true, VCPUs: 3, CPUModel: "host", Firmware: "f", Policy: 7,
		Warnings: []string{`domain type "qemu": only kvm starts confidential VMs`}}
	if d := cmp.Diff(&want, got); d != "" {
		t.Error(d)
	}
	passthrough := strings.Replace(snpXML(), "</domain>", `<qemu:commandline><qemu:arg value='-cpu'/><qemu:arg value='EPYC-Turin,stepping=1'/>`+
		`<qemu:arg value='-smp'/><qemu:arg value='9'/><qemu:arg value='-append'/><qemu:arg value='quiet'/><qemu:arg value='-object'/><qemu:arg value='igvm-cfg,id=i,file=x.igvm'/>`+
		`<qemu:arg value='-machine'/><qemu:arg value='igvm-cfg=i'/></qemu:commandline></domain>`, 1)
	got, err = Libvirt([]byte(passthrough))
	if err != nil {
		t.Fatal(err)
	}
	if got.VCPUs != 9 || got.CPUModel != "EPYC-Turin" || *got.Stepping != 1 || got.Cmdline != "quiet" || got.IGVM != "x.igvm" {
		t.Errorf("found %+v", got)
	}
}

func TestLibvirtRefuses(t *testing.T) {
	doc := snpXML()
	for _, c := range []struct{ old, new, want string }{
		{doc, "", "found no <domain>"},
		{doc, "<domain", "line 1"},
		{doc, "<network/>", "found no <domain>"},
		{doc, doc + "<domain/>", "second document"},
		{"<?xml version=\"1.0\"?>", `<!DOCTYPE d [<!ENTITY a "b">]>`, "document type"},
		{"<vcpu", "<vcpu>1</vcpu><vcpu", "second <vcpu>"},
		{"</domain>", "<launchSecurity type='sev'/></domain>", "second <launchSecurity>"},
		{"current='2'", "current='0'", "<vcpu>"},
		{"current='2'", "current='-1'", "<vcpu>"},
		{"type='sev-snp'", "type='tdx'", `found type "tdx"`},
		{"type='sev-snp'", "type='s390-pv'", `found type "s390-pv"`},
		{"mode='custom'", "mode='host-model'", "host-model"},
		{"mode='custom'", "mode='x'", `found mode "x"`},
		{"0x00030000", "policy", "<policy>"},
		{"kernelHashes='yes'", "kernelHashes='1'", "kernelHashes"},
		{block64, "AAAA", "<idBlock>: found 3 bytes"},
		{"<loader type='rom' stateless='yes'>/usr/share/ovmf/OVMF.amdsev.fd</loader>", "", "no <loader>"},
		{"<os>\n    <type arch='x86_64' machine='pc-q35-10.0'>hvm</type>\n    <loader type='rom' stateless='yes'>/usr/share/ovmf/OVMF.amdsev.fd</loader>", "<os firmware='efi'>", "virsh dumpxml"},
		{"<devices>", strings.Repeat("<a>", 70) + strings.Repeat("</a>", 70) + "<devices>", "nesting"},
		{"</domain>", "<commandline/></domain>", "namespace"},
		{"</domain>", "<qemu:commandline><qemu:arg value='-machine'/><qemu:arg value='confidential-guest-support=x'/></qemu:commandline></domain>", "expected one of them"},
		{"</domain>", "<qemu:commandline><qemu:arg value='-smp'/><qemu:arg value='x'/></qemu:commandline></domain>", "-smp"},
		{doc, strings.Repeat(" ", maxInput+1), "at most"},
		{doc, `<domain><launchSecurity type='sev'/></domain>`, "found no <policy>"},
		{doc, `<domain/>`, "found no SEV"},
	} {
		bad := strings.Replace(doc, c.old, c.new, 1)
		if bad == doc {
			t.Errorf("%q: nothing replaced", c.old)
		}
		if _, err := Libvirt([]byte(bad)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60q -> %.60q: found error %v, expected one with %q", c.old, c.new, err, c.want)
		}
	}
}

// checkVM fails the test when what was read could not have been written.
func checkVM(t *testing.T, vm *VM) {
	if vm.VCPUs < 1 || vm.Mode == "" || vm.Firmware == "" && vm.IGVM == "" || vm.CPUModel == "" && vm.Family == nil {
		t.Fatalf("accepted %+v", vm)
	}
	if n := len(vm.IDBlock); n != 0 && n != measure.IDBlockSize {
		t.Fatalf("accepted an ID block of %d bytes", n)
	}
}

func FuzzQEMU(f *testing.F) {
	f.Add(`qemu-system-x86_64 -cpu EPYC-v4 -machine q35,confidential-guest-support=sev0 -smp 4 -bios 'a b' -kernel k -append "x" -object sev-snp-guest,id=sev0,policy=0x30000,kernel-hashes=on`)
	f.Add(`-M confidential-guest-support=s,pflash0=a -object '{"qom-type":"sev-guest","id":"s","policy":5}' -blockdev '{"node-name":"a","filename":"f"}' -cpu EPYC,model=1`)
	f.Add("#!/bin/sh\n# it's\n$Q/qemu -M confidential-guest-support=s -drive file=\"$(a \"b\")\",if=none -object sev-snp-guest,id=s -bios f -append `a`$B${C}")
	f.Fuzz(func(t *testing.T, line string) {
		vm, err := QEMU(line)
		if err != nil {
			return
		}
		for _, text := range []string{vm.CPUModel, vm.Firmware, vm.Kernel, vm.Initrd, vm.Cmdline, vm.IGVM} {
			if strings.Contains(text, unknown) {
				t.Errorf("found %q, which only a shell knows", text)
			}
		}
		checkVM(t, vm)
	})
}

func FuzzLibvirt(f *testing.F) {
	f.Add([]byte(snpXML()))
	f.Add([]byte(`<domain xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><os><loader>f</loader></os><launchSecurity type='sev'><policy>7</policy></launchSecurity><q:commandline><q:arg value='-smp'/><q:arg value='3'/></q:commandline></domain>`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		vm, err := Libvirt(doc)
		if err != nil {
			return
		}
		checkVM(t, vm)
	})
}
