package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/evtpm/evtpm/launch/launchtest"
	"github.com/evtpm/evtpm/measure"
)

// load reads, fills in and validates a spec whose folder is /dir.
func load(text string) (*Spec, error) {
	s, err := LoadSpec(strings.NewReader(text), "a.yaml")
	if err != nil {
		return nil, err
	}
	s.FillDefaults("/dir")
	return s, s.Validate()
}

var ignoreSource = cmpopts.IgnoreUnexported(Spec{})

// TestSpecDefaults: what a short spec means in full.
func TestSpecDefaults(t *testing.T) {
	got, err := load(launchtest.Demo)
	if err != nil {
		t.Fatal(err)
	}
	want := &Spec{
		Version: 1, Name: "demo", Platform: PlatformSim,
		Backend:  BackendQEMU,
		QEMU:     QEMU{Binary: "qemu-system-x86_64", Accel: AccelTCG, Machine: "q35"},
		Firmware: Firmware{Path: "/dir/OVMF.fd"},
		Kernel:   "/vmlinuz", Initrd: "/boot/initrd.cpio", Cmdline: "quiet loglevel=0", KernelHashes: On,
		CPU:    CPU{Model: "EPYC-v4", Count: 1, GuestFeatures: 1},
		Memory: 256 << 20, HostProfile: ProfileKVM, Policy: 0x30000,
		VTPM:        VTPM{Binding: "svsm", PCRBank: "sha256"},
		Sim:         &Sim{Product: "Genoa", ReportVersion: 5},
		Console:     ConsoleLog,
		OnReset:     OnResetStop,
		Agent:       Agent{Transport: TransportVirtioSerial, Port: 7600},
		Attestation: Attestation{PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}, Chip: ChipHost, OnRefused: OnRefusedStop},
		Timeouts:    Timeouts{Start: Duration(30 * time.Second), Boot: Duration(2 * time.Minute), Attest: Duration(30 * time.Second), Stop: Duration(10 * time.Second)},
	}
	if d := cmp.Diff(want, got, ignoreSource); d != "" {
		t.Errorf("spec differs (-want +got):\n%s", d)
	}
	got.FillDefaults("/dir")
	if d := cmp.Diff(want, got, ignoreSource); d != "" {
		t.Errorf("filling in twice differs from once:\n%s", d)
	}

	snp, err := load("version: 1\nname: a\nplatform: snp\nbackend: libvirt\nsvsm: {image: a.igvm}\nkernel: k\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ what, got, want string }{
		{"accel", snp.QEMU.Accel, AccelKVM},
		{"libvirt.uri", snp.Libvirt.URI, "qemu:///system"},
		{"kernel_hashes", snp.KernelHashes, Off},
		{"svsm.image", snp.SVSM.Image, "/dir/a.igvm"},
		{"memory", snp.Memory.String(), "512M"},
		{"host_profile", snp.HostProfile, ""},
		{"cpu.guest_features", fmt.Sprint(snp.CPU.GuestFeatures), "0"},
		{"attestation.chip", snp.Attestation.Chip, ChipHost},
	} {
		if c.got != c.want {
			t.Errorf("%s: found %q, expected %q", c.what, c.got, c.want)
		}
	}
	if snp.Sim != nil {
		t.Errorf("sim: found %+v on platform snp, expected none", snp.Sim)
	}
}

// TestSpecChip: reports are held against this host's chip, if the VM runs here.
func TestSpecChip(t *testing.T) {
	for lines, want := range map[string]string{
		"":                                 ChipHost,
		"attestation: {chip: any}\n":       ChipAny,
		"libvirt: {uri: qemu:///system}\n": ChipHost,
		"libvirt: {uri: 'qemu+ssh://other/system'}\nnetworks: [{type: user}]\nagent: {transport: tcp, address: 'other:7600'}\n": ChipAny,
	} {
		s, err := load("version: 1\nname: a\nplatform: snp\nbackend: libvirt\nsvsm: {image: a.igvm}\nkernel: k\n" + lines)
		if err != nil || s.Attestation.Chip != want {
			t.Errorf("%q: found %q, %v, expected %q", lines, s.Attestation.Chip, err, want)
		}
	}
}

// TestSpecLibvirtURI: a URI says where, and nothing that is executed.
func TestSpecLibvirtURI(t *testing.T) {
	for uri, good := range map[string]bool{
		"qemu:///system":                         true,
		"qemu:///session":                        true,
		"qemu+unix:///system":                    true,
		"qemu+ssh://host/system":                 true,
		"qemu+ssh://root@host:2222/session":      true,
		"qemu+ssh://[::1]/system":                true,
		"test:///default":                        false,
		"qemu:///":                               false,
		"qemu:system":                            false,
		"qemu+ssh:///system":                     false,
		"qemu://host/system":                     false,
		"qemu://user@/system":                    false,
		"qemu+ssh://%zz/system":                  false,
		"qemu+ssh://-oProxyCommand=x/system":     false,
		"qemu+ssh://-lx@host/system":             false,
		"qemu+ssh://root:secret@host/system":     false,
		"qemu+ssh://host/system?command=/bin/sh": false,
		"qemu+unix:///system?socket=/tmp/x":      false,
		"qemu:///system#x":                       false,
		"qemu+tls://host/system":                 false,
		"qemu+ssh://host/etc/passwd":             false,
	} {
		_, err := load(launchtest.With("backend: libvirt", "libvirt: {uri: '"+uri+"'}"))
		if (err == nil) != good {
			t.Errorf("%s: found %v, expected it to be good: %v", uri, err, good)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "a.yaml:10: libvirt.uri: found \"") {
			t.Errorf("%s: found %v", uri, err)
		}
	}
}

// TestSpecMAC: cards have addresses of their own, the same at every launch.
func TestSpecMAC(t *testing.T) {
	macs := make(map[string]bool)
	for _, name := range []string{"a", "b"} {
		for range 2 {
			s, err := load(launchtest.With("name: "+name, "networks: [{type: user}, {type: tap, device: t}, {type: bridge, bridge: b, mac: '52:54:00:00:00:01'}]"))
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range s.Networks {
				macs[n.MAC] = true
			}
		}
	}
	if len(macs) != 5 || !macs["52:54:00:00:00:01"] {
		t.Errorf("found addresses %v, expected two of each machine and the one given", macs)
	}
}

// snp returns a spec of platform snp.
func snp(lines ...string) string {
	return launchtest.With(append([]string{"platform: snp"}, lines...)...)
}

// TestSpecAccepts lists spellings that must stay good.
func TestSpecAccepts(t *testing.T) {
	zeros := strings.Repeat("0", 64)
	for name, text := range map[string]string{
		"demo":                  launchtest.Demo,
		"CRLF (C-04)":           strings.ReplaceAll(launchtest.Demo, "\n", "\r\n"),
		"document markers":      "---\n" + launchtest.Demo + "...\n",
		"hexadecimal policy":    launchtest.With("policy: 0xB0000"),
		"decimal policy":        launchtest.With("policy: 196608"),
		"host data hex":         launchtest.With("host_data: " + strings.Repeat("ab", 32)),
		"host data digits only": launchtest.With("host_data: " + strings.Repeat("12", 32)),
		"host data base64":      launchtest.With("host_data: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
		"host data zeros":       launchtest.With("host_data: " + zeros),
		"replacement character": "# \ufffd\n" + launchtest.Demo,
		"empty command line":    launchtest.With(`cmdline: ""`),
		"command line of 2047":  launchtest.With("cmdline: " + strings.Repeat("x", 2047)),
		"longest name":          launchtest.With("name: a" + strings.Repeat("-", 62)),
		"512 vCPUs":             launchtest.With("cpu: {count: 512}"),
		"signature by hand":     launchtest.With("cpu: {model: host, signature: 0xa10f11}"),
		"signature that agrees": launchtest.With("cpu: {model: EPYC-Milan, signature: 0xa00f11}"),
		"qemu64 on sim":         launchtest.With("cpu: {model: qemu64}"),
		"kvm on sim":            launchtest.With("qemu: {accel: kvm}"),
		"machine version":       launchtest.With("qemu: {machine: pc-q35-10.0}"),
		"ssh":                   snp("backend: libvirt", "libvirt: {uri: qemu+ssh://root@host/system}"),
		"two disks":             launchtest.With("disks: [{path: a, format: raw, readonly: true}, {path: a, format: raw, readonly: true}]"),
		"all networks": launchtest.With("networks: [{type: user, forwards: [{host_port: 2222, guest_port: 22}, {protocol: udp, host_port: 2222, guest_port: 22}]}," +
			" {type: bridge, bridge: br0, mac: '52:54:00:00:00:01'}, {type: tap, device: tap0}, {type: user}]"),
		"vsock":           launchtest.With("vsock: {cid: 3}", "agent: {transport: vsock, port: 1}"),
		"tcp":             launchtest.With("networks: [{type: user}]", "agent: {transport: tcp, address: '[::1]:7600'}"),
		"IGVM":            snp("firmware: {}", "svsm: {image: a.igvm, device_plane: true}", "host_profile: kvm-direct"),
		"ready ID block":  launchtest.With("id_block: {block: b, auth: a}"),
		"ID block":        launchtest.With("id_block: {id_key: k, author_key: a, svn: 4294967295}"),
		"IGVM on sim":     launchtest.With("firmware: {}", "svsm: {image: a.igvm}"),
		"huge pages":      launchtest.With("hugepages: 2M"),
		"empty lists":     launchtest.With("disks: []", "networks: []"),
		"few PCRs":        launchtest.With("attestation: {pcrs: [9, 4, 0]}"),
		"largest timeout": launchtest.With("timeouts: {boot: 24h}"),
	} {
		if _, err := load(text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSpecPolicyBits: named bits change the default, a number replaces it.
func TestSpecPolicyBits(t *testing.T) {
	for text, want := range map[string]Policy{
		"0x30000":                                    0x30000,
		"{}":                                         0x30000,
		"{smt: false}":                               0x20000,
		"{debug: true, smt: true}":                   0xb0000,
		"{abi_major: 1, abi_minor: 55}":              0x30137,
		"{migrate_ma: true}":                         0x70000,
		"{single_socket: true}":                      0x130000,
		"{cxl: true}":                                0x230000,
		"{mem_aes_256_xts: true}":                    0x430000,
		"{rapl_disable: true}":                       0x830000,
		"{ciphertext_hiding: true}":                  0x1030000,
		"{page_swap_disable: true}":                  0x2030000,
		"{page_swap_disable: false, abi_minor: 0x1}": 0x30001,
	} {
		s, err := load(launchtest.With("policy: " + text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if s.Policy != want {
			t.Errorf("%s: found %s, expected %s", text, s.Policy, want)
		}
	}
}

// TestSpecRefuses: every rule, by the words that a user reads. All problems of a
// spec are listed, in the order of its fields.
func TestSpecRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"C-02 unknown, repeated, wrong case": {
			"version: 1\nname: demo\nName: x\nplatfrom: sim\ncpu:\n  count: 1\n  count: 2\n  modle: x\nxyzzyxyzzy: 1\ntimeouts: {qqq: 1s}\n",
			[]string{
				`a.yaml:3: unknown field "Name", nearest is "name"`,
				`a.yaml:4: unknown field "platfrom", nearest is "platform"`,
				`a.yaml:7: cpu.count: found twice, first on line 6`,
				`a.yaml:8: cpu: unknown field "modle", nearest is "model"`,
				`a.yaml:9: unknown field "xyzzyxyzzy"`,
				`a.yaml:10: timeouts: unknown field "qqq", expected one of start, boot, attest, stop`,
			},
		},
		"C-02 misspelt security field": {
			launchtest.With("policy: {debgu: false}"),
			[]string{`a.yaml:9: policy: unknown field "debgu", nearest is "debug"`},
		},
		"C-03 numbers": {
			"version: 1.0\ncpu:\n  count: -1\n  guest_features: 010\n  signature: 0x1_000\nsim: {report_version: \"5\"}\nvsock: {cid: 4294967296}\npolicy: 0x10000000000000000\n" +
				"attestation: {pcrs: [1e1, 0o7, 0b1, +1, '2', 99999999999]}\n",
			[]string{
				`a.yaml:1: version: found the number "1.0": expected a whole number, decimal or hexadecimal after 0x`,
				`a.yaml:3: cpu.count: found the number "-1": expected a whole number, decimal or hexadecimal after 0x`,
				`a.yaml:4: cpu.guest_features: found the number "010": a leading zero means octal to some readers; expected a decimal number, or hexadecimal after 0x`,
				`a.yaml:5: cpu.signature: found the number "0x1_000": expected a whole number, decimal or hexadecimal after 0x`,
				`a.yaml:6: sim.report_version: found the text "5", expected a number without quotes`,
				`a.yaml:7: vsock.cid: found the number "4294967296": does not fit in 32 bits`,
				`a.yaml:8: policy: found "0x10000000000000000": does not fit in 64 bits`,
				`a.yaml:9: attestation.pcrs[0]: found the number "1e1": expected a whole number, decimal or hexadecimal after 0x`,
				`a.yaml:9: attestation.pcrs[1]: found the number "0o7": a leading zero means octal to some readers; expected a decimal number, or hexadecimal after 0x`,
				`a.yaml:9: attestation.pcrs[2]: found the number "0b1": a leading zero means octal to some readers; expected a decimal number, or hexadecimal after 0x`,
				`a.yaml:9: attestation.pcrs[3]: found the number "+1": expected a whole number, decimal or hexadecimal after 0x`,
				`a.yaml:9: attestation.pcrs[4]: found the text "2", expected a number without quotes`,
				`a.yaml:9: attestation.pcrs[5]: found the number "99999999999": too large`,
			},
		},
		"C-03 quoted policy": {launchtest.With(`policy: "0x30000"`), []string{`a.yaml:9: policy: found the text "0x30000", expected a number without quotes`}},
		"C-03 truth values": {
			launchtest.With("rng: yes", "disks: [{path: a, format: raw, readonly: on, discard: True}]", "policy: {smt: 1}"),
			[]string{
				`a.yaml:9: rng: found "yes", expected true or false`,
				`a.yaml:10: disks[0].readonly: found "on", expected true or false`,
				`a.yaml:10: disks[0].discard: found the truth value "True", expected true or false`,
				`a.yaml:11: policy.smt: found the number "1", expected true or false`,
			},
		},
		"C-03 text": {
			launchtest.With("name: 123", "kernel: true", "cmdline: 2001-01-01", "initrd: [a]", "console: {a: b}", "hugepages: 1.5", "host_profile:"),
			[]string{
				`a.yaml:2: name: found the number "123", expected text: put it in quotes if it is meant`,
				`a.yaml:5: kernel: found the truth value "true", expected text: put it in quotes if it is meant`,
				`a.yaml:6: initrd: found a list, expected text`,
				`a.yaml:7: cmdline: found the date "2001-01-01", expected text: put it in quotes if it is meant`,
				`a.yaml:9: console: found a mapping, expected text`,
				`a.yaml:10: hugepages: found the number "1.5", expected text: put it in quotes if it is meant`,
				`a.yaml:11: host_profile: found no value, expected text`,
			},
		},
		"C-03 units": {
			launchtest.With("memory: 256", "timeouts: {boot: 60, start: 1 minute, stop: -5s, attest: 0s}"),
			[]string{
				`a.yaml:8: memory: found the number "256", expected a size with a unit, such as 512M or 2G`,
				`a.yaml:9: timeouts.boot: found the number "60", expected a time span with a unit, such as 90s or 2m`,
				`a.yaml:9: timeouts.start: found "1 minute": expected a time span with a unit, such as 90s or 2m`,
			},
		},
		"sizes":            {launchtest.With("memory: 0M"), []string{`a.yaml:8: memory: found 0, expected 128M to 8T`}},
		"sizes, unit":      {launchtest.With("memory: 256MB"), []string{`a.yaml:8: memory: found "256MB": expected a number and a unit, such as 512M or 2G`}},
		"sizes, words":     {launchtest.With("memory: someM"), []string{`a.yaml:8: memory: found "someM": expected a number and a unit, such as 512M or 2G`}},
		"time span, sign":  {launchtest.With("timeouts: {boot: +5s}"), []string{`a.yaml:9: timeouts.boot: found "+5s": expected a time span with a unit, such as 90s or 2m`}},
		"bytes, padding":   {launchtest.With("id_block: {id_key: k, image_id: AAAAAAAAAAAAAAAAAAAAAAA=}"), []string{`a.yaml:9: id_block.image_id: found "AAAAAAAAAAAAAAAAAAAAAAA=", expected 16 bytes: 32 hexadecimal digits, or 24 characters of base64`}},
		"long text":        {launchtest.With("platform: " + strings.Repeat("x", 100)), []string{`a.yaml:3: platform: found "` + strings.Repeat("x", 64) + `...", expected one of snp, sim`}},
		"sizes, hex":       {launchtest.With("memory: 0x10G"), []string{`a.yaml:8: memory: found "0x10G": expected a number and a unit, such as 512M or 2G`}},
		"sizes, overflow":  {launchtest.With("memory: 16777216T"), []string{`a.yaml:8: memory: found "16777216T": too large`}},
		"sizes, small":     {launchtest.With("memory: 64M"), []string{`a.yaml:8: memory: found 64M, expected 128M to 8T`}},
		"sizes, large":     {launchtest.With("memory: 9T"), []string{`a.yaml:8: memory: found 9T, expected 128M to 8T`}},
		"sizes, odd":       {launchtest.With("memory: 262145K"), []string{`a.yaml:8: memory: found 262145K, expected a multiple of 1M`}},
		"sizes, huge page": {launchtest.With("memory: 1500M", "hugepages: 1G"), []string{`a.yaml:8: memory: found 1500M, expected a multiple of 1G, the size of the huge pages`}},
		"huge pages":       {launchtest.With("hugepages: big"), []string{`a.yaml:9: hugepages: found "big", nearest is "1G", expected 2M or 1G`}},
		"time spans": {
			launchtest.With("timeouts: {boot: 25h, stop: -5s, attest: 0s}"),
			[]string{
				`a.yaml:9: timeouts.boot: found 25h0m0s, expected more than 0s and at most 24h0m0s`,
				`a.yaml:9: timeouts.attest: found 0s, expected more than 0s and at most 24h0m0s`,
				`a.yaml:9: timeouts.stop: found -5s, expected more than 0s and at most 24h0m0s`,
			},
		},
		"shapes": {
			launchtest.With("cpu: 4", "disks: {path: a}", "networks: [user]", "sim: Milan"),
			[]string{
				`a.yaml:9: cpu: found the number "4", expected a mapping of model, count, signature, guest_features`,
				`a.yaml:10: disks: found a mapping, expected a list`,
				`a.yaml:11: networks[0]: found "user", expected a mapping of type, bridge, device, mac, forwards`,
				`a.yaml:12: sim: found "Milan", expected a mapping of product, report_version, machine`,
			},
		},
		"shapes of scalars": {
			launchtest.With("version: [1]", "host_data: [a]", "rng: {}", "memory: [a]", "timeouts: {boot: {}}", "policy: [1]"),
			[]string{
				`a.yaml:1: version: found a list, expected a number`,
				`a.yaml:8: memory: found a list, expected a size with a unit, such as 512M or 2G`,
				`a.yaml:9: host_data: found a list, expected bytes in hex or base64`,
				`a.yaml:10: rng: found a mapping, expected true or false`,
				`a.yaml:11: timeouts.boot: found a mapping, expected a time span with a unit, such as 90s or 2m`,
				`a.yaml:12: policy: found a list, expected a number or a mapping of bits`,
			},
		},
		"quoted truth value":  {launchtest.With(`rng: "true"`), []string{`a.yaml:9: rng: found the text "true", expected true or false`}},
		"anchor of the whole": {"--- &a\nversion: 1\n", []string{`a.yaml: found the anchor &a: anchors are not read`}},
		"anchor of a bit":     {launchtest.With("policy: {abi_major: &a 1}"), []string{`a.yaml:9: policy.abi_major: found the anchor &a: anchors are not read`}},
		"bytes": {
			launchtest.With("host_data: abcd", "id_block: {id_key: k, family_id: "+strings.Repeat("z", 32)+", image_id: AAAAAAAAAAAAAAAAAAAAAB==}"),
			[]string{
				`a.yaml:9: host_data: found "abcd", expected 32 bytes: 64 hexadecimal digits, or 44 characters of base64`,
				`a.yaml:10: id_block.family_id: found "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz", expected 16 bytes: 32 hexadecimal digits, or 24 characters of base64`,
				`a.yaml:10: id_block.image_id: found "AAAAAAAAAAAAAAAAAAAAAB==", expected 16 bytes: 32 hexadecimal digits, or 24 characters of base64`,
			},
		},
		"C-01 aliases, anchors, tags, merge keys": {
			launchtest.With("cpu: &a {model: EPYC-v4}", "timeouts: *a", "cmdline: !!str 123", "disks: [&b a, *b]", "vtpm: {<<: {binding: nv}}"),
			[]string{
				`a.yaml:7: cmdline: found the tag !!str: tags are not read`,
				`a.yaml:9: cpu: found the anchor &a: anchors are not read`,
				`a.yaml:10: timeouts: found the alias *a, expected a value: aliases are not read`,
				`a.yaml:11: disks[0]: found the anchor &b: anchors are not read`,
				`a.yaml:11: disks[1]: found the alias *b, expected a value: aliases are not read`,
				`a.yaml:12: vtpm: unknown field "<<", expected one of binding, pcr_bank`,
			},
		},
		"keys": {
			launchtest.With("? [a, b]\n: c", "!!str rng: true", "? &x rng\n: true"),
			[]string{
				`a.yaml:9: found a list as a field's name, expected a plain one`,
				`a.yaml:11: found "rng" as a field's name, expected a plain one`,
				`a.yaml:12: found "rng" as a field's name, expected a plain one`,
			},
		},
		"C-01 large":               {launchtest.Demo + strings.Repeat("#", maxSpecBytes), []string{`a.yaml: found more than 65536 bytes`}},
		"C-04 empty":               {"", []string{`a.yaml: found an empty document, expected a mapping that begins with version: 1`}},
		"C-04 comment":             {"# nothing\n", []string{`a.yaml: found an empty document, expected a mapping that begins with version: 1`}},
		"C-04 no mapping":          {"- a\n", []string{`a.yaml:1: found a list, expected a mapping that begins with version: 1`}},
		"C-04 two documents":       {launchtest.Demo + "---\n" + launchtest.Demo, []string{`a.yaml: found a second document, expected one`}},
		"C-04 garbage after":       {launchtest.Demo + "...\n}\n", []string{`a.yaml:9: not YAML: did not find expected <document start>`}},
		"C-04 BOM":                 {"\xef\xbb\xbf" + launchtest.Demo, []string{`a.yaml:1: found a byte order mark, expected plain UTF-8`}},
		"C-04 UTF-16":              {"\xff\xfev\x00", []string{`a.yaml:1: found a byte order mark, expected plain UTF-8`}},
		"C-04 UTF-16, other":       {"\xfe\xff\x00v", []string{`a.yaml:1: found a byte order mark, expected plain UTF-8`}},
		"C-04 NUL":                 {launchtest.With("cmdline: a\x00b"), []string{`a.yaml:7: found the control character U+0000`}},
		"C-04 escape":              {launchtest.With("cmdline: a\x1b[2J"), []string{`a.yaml:7: found the control character U+001B`}},
		"C-04 C1":                  {launchtest.With("cmdline: a\u0085b"), []string{`a.yaml:7: found the control character U+0085`}},
		"C-04 line separator":      {launchtest.With("cmdline: a\u2028b"), []string{`a.yaml:7: found the line separator U+2028`}},
		"C-04 right to left":       {launchtest.With("cmdline: a\u202eb"), []string{`a.yaml:7: found U+202E, which shows text in another order than it has`}},
		"C-04 paragraph separator": {launchtest.With("cmdline: a\u2029b"), []string{`a.yaml:7: found the line separator U+2029`}},
		"C-04 isolate":             {launchtest.With("cmdline: a\u2066b"), []string{`a.yaml:7: found U+2066, which shows text in another order than it has`}},
		"C-04 escaped DEL":         {launchtest.With(`cmdline: "a\x7fb"`), []string{`a.yaml:7: cmdline: found the control character '\x7f', expected one line of plain text`}},
		"C-04 BOM inside":          {launchtest.With("cmdline: a\ufeffb"), []string{`a.yaml:7: found a byte order mark`}},
		"C-04 invalid UTF-8":       {launchtest.With("cmdline: a\xffb"), []string{`a.yaml:7: found invalid UTF-8`}},
		"C-04 tabs":                {launchtest.With("cpu:\n\tcount: 1"), []string{`a.yaml:10: not YAML: found character that cannot start any token`}},
		"C-04 escaped NUL":         {launchtest.With(`cmdline: "a\0b"`), []string{`a.yaml:7: cmdline: found the control character '\x00', expected one line of plain text`}},
		"C-09 newline":             {launchtest.With(`cmdline: "a\nb"`), []string{`a.yaml:7: cmdline: found the control character '\n', expected one line of plain text`}},
		"C-09 newline in a path":   {launchtest.With(`kernel: "a\nb"`), []string{`a.yaml:5: kernel: found the control character '\n', expected one line of plain text`}},
		"C-14 newer version":       {"version: 2\nname: demo\nfuture: [1]\n", []string{`a.yaml:1: version: found 2, expected 1: written for a newer evtpm than this one`}},
		"C-14 version later":       {"name: demo\nversion: 2\nfuture: [1]\n", []string{`a.yaml:2: version: found 2, expected 1: written for a newer evtpm than this one`}},
		"version 0":                {launchtest.With("version: 0"), []string{`a.yaml:1: version: found 0, expected 1`}},
		"nothing given": {
			"{}", []string{
				`a.yaml: version: missing, expected 1`,
				`a.yaml: name: missing, expected lower-case letters, digits and hyphens, at most 63, no hyphen first`,
				`a.yaml: platform: missing, expected snp or sim`,
				`a.yaml: firmware.path: missing, expected an OVMF image, or svsm.image that holds one`,
			},
		},
		"given, but empty": {
			launchtest.With("backend: libvirt", "kernel_hashes: ''", "qemu: {accel: '', binary: ''}", "host_profile: ''", "cpu: {guest_features: 0, model: ''}", "libvirt: {uri: ''}", "memory: 0K", "networks: [{type: user, mac: ''}]"),
			[]string{
				`a.yaml:11: qemu.binary: found "", expected a program's name, or an absolute path`,
				`a.yaml:11: qemu.accel: found "", expected one of kvm, tcg`,
				`a.yaml:10: kernel_hashes: found "", expected one of on, off`,
				`a.yaml:13: cpu.model: found "", expected a CPU model's name without options`,
				`a.yaml:8: memory: found 0, expected 128M to 8T`,
				`a.yaml:12: host_profile: found "", expected one of kvm, kvm-bsp, kvm-direct`,
				`a.yaml:15: networks[0].mac: found "", expected a unicast MAC address in lower case, such as 52:54:00:12:34:56`,
				`a.yaml:14: libvirt.uri: found "", expected qemu:///system, qemu:///session or qemu+ssh://[USER@]HOST[:PORT]/system, without parameters`,
				`a.yaml:13: cpu.guest_features: found 0x0, expected bit 0 (SNPActive) set`,
			},
		},
		"enumerations": {
			launchtest.With("platform: sims", "backend: QEMU", "vtpm: {binding: '', pcr_bank: sha1}", "sim: {product: Venice}", "kernel_hashes: no"),
			[]string{
				`a.yaml:3: platform: found "sims", nearest is "sim", expected snp or sim`,
				`a.yaml:9: backend: found "QEMU", nearest is "qemu", expected qemu or libvirt`,
				`a.yaml:12: kernel_hashes: found "no", expected one of on, off`,
				`a.yaml:10: vtpm.binding: found "", expected one of svsm, svsm-services, nv`,
				`a.yaml:10: vtpm.pcr_bank: found "sha1", expected one of sha256, sha384`,
				`a.yaml:11: sim.product: found "Venice", expected one of Milan, Genoa, Turin`,
			},
		},
		"host profile without SVSM": {launchtest.With("host_profile: kvm-bsp"), []string{`a.yaml:9: host_profile: found kvm-bsp without svsm.image, expected kvm: KVM measures every vCPU of a VM that OVMF starts`}},
		"report version 4":          {launchtest.With("sim: {report_version: 4}"), []string{`a.yaml:9: sim.report_version: found 4, expected 3 or 5`}},
		"report version 2":          {launchtest.With("sim: {report_version: 2}"), []string{`a.yaml:9: sim.report_version: found 2, expected 3 or 5`}},
		"sim on snp":                {snp("sim: {}"), []string{`a.yaml:9: sim: found on platform snp, expected only on platform sim`}},
		"features with SVSM":        {snp("firmware: {}", "svsm: {image: i}", "cpu: {guest_features: 1}"), []string{`a.yaml:10: cpu.guest_features: found with svsm.image, expected nothing: the VMSA in the image says it`}},
		"tcg on snp":                {snp("qemu: {accel: tcg}"), []string{`a.yaml:9: qemu.accel: found "tcg", expected kvm: SEV-SNP is KVM's`}},
		"machine":                   {snp("qemu: {machine: 'q35,smm=on'}"), []string{`a.yaml:9: qemu.machine: found "q35,smm=on", expected q35, or a version of it such as pc-q35-10.0`}},
		"program":                   {snp("qemu: {binary: ./qemu}"), []string{`a.yaml:9: qemu.binary: found "./qemu", expected a program's name, or an absolute path`}},
		"C-08 program":              {snp("qemu: {binary: -x}"), []string{`a.yaml:9: qemu.binary: found "-x", expected a program's name, or an absolute path`}},
		"libvirt without backend":   {launchtest.With("libvirt: {}"), []string{`a.yaml:9: libvirt: found with backend qemu, expected only with backend libvirt`}},
		"no firmware":               {launchtest.With("firmware: {}"), []string{`a.yaml:4: firmware.path: missing, expected an OVMF image, or svsm.image that holds one`}},
		"two firmwares":             {snp("svsm: {image: i}"), []string{`a.yaml:4: firmware.path: found beside svsm.image, expected one of them: QEMU loads no firmware besides an IGVM file`}},
		"empty path":                {launchtest.With("firmware: {path: ''}"), []string{`a.yaml:4: firmware.path: found a path of 0 characters, expected 1 to 4095`}},
		"long path":                 {launchtest.With("kernel: /" + strings.Repeat("a", 4096)), []string{`a.yaml:5: kernel: found a path of 4097 characters, expected 1 to 4095`}},
		"no image":                  {snp("firmware: {}", "svsm: {}"), []string{`a.yaml:9: svsm.image: missing, expected a file's path`}},
		"no kernel": {
			"version: 1\nname: a\nplatform: sim\nfirmware: {path: f}\ninitrd: i\ncmdline: c\nkernel_hashes: on\n",
			[]string{`a.yaml:5: initrd: found without a kernel`, `a.yaml:6: cmdline: found without a kernel`, `a.yaml:7: kernel_hashes: found on without a kernel`},
		},
		"hashes with IGVM":  {snp("firmware: {}", "svsm: {image: i}", "kernel_hashes: on"), []string{`a.yaml:10: kernel_hashes: found on with svsm.image, expected off: QEMU gives an IGVM file no hashes`}},
		"long cmdline":      {launchtest.With("cmdline: " + strings.Repeat("x", 2048)), []string{`a.yaml:7: cmdline: found 2048 bytes, expected at most 2047`}},
		"I-23 cpu model":    {launchtest.With("cpu: {model: EPYC-Milann}"), []string{`a.yaml:9: cpu.model: CPU model "EPYC-Milann": not an AMD model of QEMU 11.1; the nearest is "EPYC-Milan" (QEMU: unable to find CPU model 'EPYC-Milann'); or give cpu.signature`}},
		"I-23 cpu host":     {launchtest.With("cpu: {model: host}"), []string{`a.yaml:9: cpu.model: CPU model "host": its signature is that of the host's own processor; give it as a number; or give cpu.signature`}},
		"qemu64 on snp":     {snp("cpu: {model: qemu64}"), []string{`a.yaml:9: cpu.model: CPU model "qemu64": QEMU has it, but it is not an AMD model with SEV, and its signature is not known here; or give cpu.signature`}},
		"cpu options":       {launchtest.With("cpu: {model: 'EPYC,+x'}"), []string{`a.yaml:9: cpu.model: found "EPYC,+x", expected a CPU model's name without options`}},
		"cpu signature":     {launchtest.With("cpu: {signature: 0xa00f11}"), []string{`a.yaml:9: cpu.signature: found 0xa00f11, expected 0x800f12, the signature of EPYC-v4`}},
		"cpu features":      {launchtest.With("cpu: {guest_features: 0x20}"), []string{`a.yaml:9: cpu.guest_features: found 0x20, expected bit 0 (SNPActive) set`}},
		"I-23 0 vCPUs":      {launchtest.With("cpu: {count: 0}"), []string{`a.yaml:9: cpu.count: found 0, expected 1 to 512`}},
		"I-23 513 vCPUs":    {launchtest.With("cpu: {count: 513}"), []string{`a.yaml:9: cpu.count: found 513, expected 1 to 512`}},
		"I-23 2^31 vCPUs":   {launchtest.With("cpu: {count: 2147483648}"), []string{`a.yaml:9: cpu.count: found the number "2147483648": too large`}},
		"policy, reserved":  {launchtest.With("policy: 0x4030000"), []string{`a.yaml:9: policy: found 0x4030000: bits 63 to 26 are reserved, expected zero`}},
		"policy, bit 17":    {launchtest.With("policy: 0x10000"), []string{`a.yaml:9: policy: found 0x10000: bit 17 is reserved, expected one: 0x30000`}},
		"policy, zero":      {launchtest.With("policy: 0"), []string{`a.yaml:9: policy: found 0x0: bit 17 is reserved, expected one: 0x20000`}},
		"policy, abi":       {launchtest.With("policy: {abi_major: 256}"), []string{`a.yaml:9: policy.abi_major: found 256, expected 0 to 255`}},
		"ID block, no key":  {launchtest.With("id_block: {svn: 1}"), []string{`a.yaml:9: id_block.id_key: missing, expected a private key, or block and auth`}},
		"ID block, half":    {launchtest.With("id_block: {block: b}"), []string{`a.yaml:9: id_block: found one of block and auth, expected both`}},
		"ID block, auth":    {launchtest.With("id_block: {auth: a}"), []string{`a.yaml:9: id_block: found one of block and auth, expected both`}},
		"ID block, and key": {launchtest.With("id_block: {block: b, auth: a, id_key: k}"), []string{`a.yaml:9: id_block: found keys or ids beside a ready-made block, expected one way or the other`}},
		"ID block, author":  {launchtest.With("id_block: {block: b, auth: a, author_key: k}"), []string{`a.yaml:9: id_block: found keys or ids beside a ready-made block, expected one way or the other`}},
		"ID block, family":  {launchtest.With("id_block: {block: b, auth: a, family_id: " + strings.Repeat("00", 16) + "}"), []string{`a.yaml:9: id_block: found keys or ids beside a ready-made block, expected one way or the other`}},
		"ID block, image":   {launchtest.With("id_block: {block: b, auth: a, image_id: " + strings.Repeat("00", 16) + "}"), []string{`a.yaml:9: id_block: found keys or ids beside a ready-made block, expected one way or the other`}},
		"device plane":      {launchtest.With("firmware: {}", "svsm: {image: i, device_plane: true}"), []string{`a.yaml:9: svsm.device_plane: found on platform sim, expected only on platform snp: the simulated SVSM has no devices`}},
		"ID block, both":    {launchtest.With("id_block: {block: b, auth: a, svn: 1}"), []string{`a.yaml:9: id_block: found keys or ids beside a ready-made block, expected one way or the other`}},
		"disks": {
			launchtest.With("disks: [{path: a}, {format: vmdk, path: b}, {format: raw, path: a}]"),
			[]string{
				`a.yaml:9: disks[0].format: missing, expected qcow2 or raw`,
				`a.yaml:9: disks[1].format: found "vmdk", expected one of qcow2, raw`,
				`a.yaml:9: disks[2].path: found the image of disks[0] again: two disks cannot share an image that one of them writes`,
			},
		},
		"17 disks": {launchtest.With("disks: [" + strings.Repeat("{path: a, format: raw, readonly: true}, ", 17) + "]"), []string{`a.yaml:9: disks: found 17, expected at most 16`}},
		"65 PCRs":  {launchtest.With("attestation: {pcrs: [" + strings.Repeat("1,", 65) + "]}"), []string{`a.yaml:9: attestation.pcrs: found 65 values, expected at most 64`}},
		"no PCRs":  {launchtest.With("attestation: {pcrs: []}"), []string{`a.yaml:9: attestation.pcrs: found an empty list, expected at least one value`}},
		"networks": {
			launchtest.With("networks: [{}, {type: vde}, {type: user, bridge: br0}, {type: bridge, forwards: [{host_port: 1, guest_port: 1}]}, {type: tap, mac: '01:00:00:00:00:00'}]"),
			[]string{
				`a.yaml:9: networks[0].type: missing, expected user, bridge or tap`,
				`a.yaml:9: networks[1].type: found "vde", expected one of user, bridge, tap`,
				`a.yaml:9: networks[4].mac: found "01:00:00:00:00:00", expected a unicast MAC address in lower case, such as 52:54:00:12:34:56`,
				`a.yaml:9: networks[2].bridge: found for type user, expected only for type bridge`,
				`a.yaml:9: networks[3].bridge: missing, needed for type bridge`,
				`a.yaml:9: networks[3].forwards: found for type bridge, expected only for type user`,
				`a.yaml:9: networks[4].device: missing, needed for type tap`,
			},
		},
		"C-07 interface names": {
			launchtest.With("networks: [{type: bridge, bridge: 'br0,x=y'}, {type: tap, device: abcdefghijklmnop}]"),
			[]string{
				`a.yaml:9: networks[0].bridge: found "br0,x=y", expected the name of a network interface: at most 15 letters, digits, dots, hyphens and underscores`,
				`a.yaml:9: networks[1].device: found "abcdefghijklmnop", expected the name of a network interface: at most 15 letters, digits, dots, hyphens and underscores`,
			},
		},
		"network conflicts": {
			launchtest.With("networks: [{type: user, mac: '52:54:00:00:00:01', forwards: [{host_port: 80, guest_port: 1}, {host_port: 80, guest_port: 2}]}, {type: user, mac: '52:54:00:00:00:01'}]"),
			[]string{
				`a.yaml:9: networks[0].forwards[1].host_port: found 80, already taken by networks[0].forwards[0]`,
				`a.yaml:9: networks[1].mac: found the address of networks[0] again`,
			},
		},
		"forwards": {
			launchtest.With("networks: [{type: user, forwards: [{host_port: 0, guest_port: 65536, protocol: sctp}, {}]}]"),
			[]string{
				`a.yaml:9: networks[0].forwards[0].protocol: found "sctp", nearest is "tcp", expected tcp or udp`,
				`a.yaml:9: networks[0].forwards[0].host_port: found 0, expected 1 to 65535`,
				`a.yaml:9: networks[0].forwards[0].guest_port: found 65536, expected 1 to 65535`,
				`a.yaml:9: networks[0].forwards[1].host_port: missing, expected 1 to 65535`,
				`a.yaml:9: networks[0].forwards[1].guest_port: missing, expected 1 to 65535`,
			},
		},
		"vsock":             {launchtest.With("vsock: {cid: 2}"), []string{`a.yaml:9: vsock.cid: found 2, expected 3 to 4294967294`}},
		"large cid":         {launchtest.With("vsock: {cid: 0xffffffff}"), []string{`a.yaml:9: vsock.cid: found 4294967295, expected 3 to 4294967294`}},
		"no cid":            {launchtest.With("vsock: {}"), []string{`a.yaml:9: vsock.cid: missing, expected 3 to 4294967294`}},
		"agent, no device":  {launchtest.With("agent: {transport: vsock}"), []string{`a.yaml:9: agent.transport: found vsock without a vsock device, expected vsock.cid`}},
		"agent, no network": {launchtest.With("agent: {transport: tcp, address: 'h:1'}"), []string{`a.yaml:9: agent.transport: found tcp without a network card, expected networks`}},
		"agent, no address": {launchtest.With("networks: [{type: user}]", "agent: {transport: tcp}"), []string{`a.yaml:10: agent.address: found "", expected HOST:PORT`}},
		"agent, port 0":     {launchtest.With("networks: [{type: user}]", "agent: {transport: tcp, address: 'h:0'}"), []string{`a.yaml:10: agent.address: found "h:0", expected HOST:PORT`}},
		"agent, no host":    {launchtest.With("networks: [{type: user}]", "agent: {transport: tcp, address: ':80'}"), []string{`a.yaml:10: agent.address: found ":80", expected HOST:PORT`}},
		"agent, no use": {
			launchtest.With("agent: {address: 'h:1', port: 7}"),
			[]string{`a.yaml:9: agent.address: found for transport virtio-serial, expected only for tcp`, `a.yaml:9: agent.port: found for transport virtio-serial, expected only for vsock`},
		},
		"PCRs":                {launchtest.With("attestation: {pcrs: [24, 4, 9, 4]}"), []string{`a.yaml:9: attestation.pcrs[3]: found 24, expected 0 to 23`, `a.yaml:9: attestation.pcrs: found PCR 4 twice`}},
		"fetch on sim":        {launchtest.With("attestation: {fetch: true}"), []string{`a.yaml:9: attestation.fetch: found true, expected false with platform sim: AMD has no certificates of simulated chips`}},
		"another host's chip": {launchtest.With("platform: snp", "backend: libvirt", "libvirt: {uri: 'qemu+ssh://o/system'}", "attestation: {chip: host}"), []string{`a.yaml:11: attestation.chip: found host, expected any: qemu+ssh://o/system leads to another machine, and its chip is not known here; name it in chip_ids of a policy`}},
		"PCRs, 4":             {launchtest.With("attestation: {pcrs: [0, 9]}"), []string{`a.yaml:9: attestation.pcrs: found no PCR 4, expected 4 and 9 with a kernel: they hold kernel, initrd and command line`}},
		"PCRs, 9":             {launchtest.With("kernel_hashes: off", "attestation: {pcrs: [4]}"), []string{`a.yaml:10: attestation.pcrs: found no PCR 9, expected 4 and 9 with a kernel: they hold kernel, initrd and command line`}},
		"C-05 dots":           {launchtest.With("name: ../x"), []string{`a.yaml:2: name: found "../x", expected lower-case letters, digits and hyphens, at most 63, no hyphen first`}},
		"C-05 slash":          {launchtest.With("name: /x"), []string{`a.yaml:2: name: found "/x", expected lower-case letters, digits and hyphens, at most 63, no hyphen first`}},
		"C-05 tilde":          {launchtest.With("name: '~x'"), []string{`a.yaml:2: name: found "~x", expected lower-case letters, digits and hyphens, at most 63, no hyphen first`}},
		"C-05 percent":        {launchtest.With("name: '%x'"), []string{`a.yaml:2: name: found "%x", expected lower-case letters, digits and hyphens, at most 63, no hyphen first`}},
		"C-05 colon":          {launchtest.With("name: 'a:b'"), []string{`a.yaml:2: name: found "a:b", expected lower-case letters, digits and hyphens, at most 63, no hyphen first`}},
		"C-08 hyphen":         {launchtest.With("name: -x"), []string{`a.yaml:2: name: found "-x", expected lower-case letters, digits and hyphens, at most 63, no hyphen first`}},
		"C-05 long":           {launchtest.With("name: " + strings.Repeat("a", 64)), []string{`a.yaml:2: name: found "` + strings.Repeat("a", 64) + `", expected lower-case letters, digits and hyphens, at most 63, no hyphen first`}},
		"not YAML":            {"version: 1\nname: [a\n", []string{`a.yaml:1: not YAML: did not find expected ',' or ']'`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(c.text)
			if err == nil {
				t.Fatal("found no error")
			}
			if d := cmp.Diff(c.want, strings.Split(err.Error(), "\n")); d != "" {
				t.Errorf("errors differ (-want +got):\n%s", d)
			}
		})
	}
}

// TestSpecManyProblems: a person reads some of them, and how many more there are.
func TestSpecManyProblems(t *testing.T) {
	var text strings.Builder
	for i := range 70 {
		fmt.Fprintf(&text, "x%d: 1\n", i)
	}
	_, err := load(text.String())
	if err == nil {
		t.Fatal("found no error")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != maxProblems+1 || lines[maxProblems] != "and 20 more" {
		t.Errorf("found %d lines, the last %q", len(lines), lines[len(lines)-1])
	}
}

// TestSpecUnreadable: what cannot be read to its end is not taken for a whole.
func TestSpecUnreadable(t *testing.T) {
	r := io.MultiReader(strings.NewReader(launchtest.Demo), iotest.ErrReader(io.ErrUnexpectedEOF))
	if s, err := LoadSpec(r, "a.yaml"); s != nil || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("found %v and error %v, expected the reader's error", s, err)
	}
}

// TestSpecMadeInCode: a spec without a file is filled in and judged alike.
func TestSpecMadeInCode(t *testing.T) {
	s := &Spec{Version: 1, Name: "a", Platform: PlatformSim, Firmware: Firmware{Path: "f"}, CPU: CPU{Count: 600}}
	if err := s.Validate(); err == nil {
		t.Error("found no error for a spec without its defaults")
	}
	s.FillDefaults("/dir")
	err := s.Validate()
	var field *FieldError
	if !errors.As(err, &field) || field.Error() != "spec: cpu.count: found 600, expected 1 to 512" {
		t.Errorf("found %v, expected an error about cpu.count", err)
	}
	chosen := &Spec{
		Version: 1, Name: "a", Platform: PlatformSim, Firmware: Firmware{Path: "f"}, Kernel: "/k", KernelHashes: Off, Policy: 0xb0000,
		QEMU: QEMU{Accel: AccelKVM}, CPU: CPU{GuestFeatures: 0x21, Model: "EPYC-v1"}, Attestation: Attestation{PCRs: []int{4, 9}}, Networks: []Network{{Type: NetworkUser, MAC: "52:54:00:00:00:01"}},
	}
	chosen.FillDefaults("/dir")
	for _, c := range []struct{ what, got, want string }{
		{"kernel_hashes", chosen.KernelHashes, Off},
		{"policy", chosen.Policy.String(), "0xb0000"},
		{"qemu.accel", chosen.QEMU.Accel, AccelKVM},
		{"cpu.guest_features", fmt.Sprint(chosen.CPU.GuestFeatures), "33"},
		{"cpu.model", chosen.CPU.Model, "EPYC-v1"},
		{"attestation.pcrs", fmt.Sprint(chosen.Attestation.PCRs), "[4 9]"},
		{"networks[0].mac", chosen.Networks[0].MAC, "52:54:00:00:00:01"},
		{"kernel", chosen.Kernel, "/k"},
	} {
		if c.got != c.want {
			t.Errorf("%s: found %s after filling in, expected %s", c.what, c.got, c.want)
		}
	}
	s.CPU.Count = -1
	if err := s.Validate(); err == nil || err.Error() != "spec: cpu.count: found -1, expected 1 to 512" {
		t.Errorf("found %v, expected an error about cpu.count", err)
	}
	s.CPU.Count = 512
	s.Libvirt.URI = "qemu:///system"
	if err := s.Validate(); err == nil || err.Error() != "spec: libvirt: found with backend qemu, expected only with backend libvirt" {
		t.Errorf("found %v, expected an error about libvirt", err)
	}
	s.Libvirt.URI = ""
	s.HostData = measure.HexBytes{1}
	if err := s.Validate(); err == nil || err.Error() != "spec: host_data: found 1 bytes, expected 32" {
		t.Errorf("found %v, expected an error about host_data", err)
	}
	s.HostData = nil
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
}

// TestC01Bombs: documents made to exhaust their reader end within 100 ms and
// 64 MiB. The best of some runs counts, for a machine that is busy otherwise.
func TestC01Bombs(t *testing.T) {
	const limit = 100 * time.Millisecond
	laughs := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c <= 'i'; c++ {
		p := string(c - 1)
		laughs += fmt.Sprintf("%c: &%c [*%s,*%s,*%s,*%s,*%s,*%s,*%s,*%s,*%s]\n", c, c, p, p, p, p, p, p, p, p, p)
	}
	keys := new(strings.Builder)
	for i := 0; keys.Len() < maxSpecBytes-16; i++ {
		fmt.Fprintf(keys, "k%d:\n", i)
	}
	fill := func(s string) string { return strings.Repeat(s, maxSpecBytes/len(s)) }
	for name, text := range map[string]string{
		"billion laughs":   laughs,
		"a million keys":   strings.Repeat("k:\n", 1e6),
		"as many keys":     keys.String(),
		"100 MiB":          strings.Repeat("x", 100<<20),
		"flow depth":       fill("["),
		"flow maps":        fill("{a: "),
		"block depth":      fill("- "),
		"complex keys":     fill("? "),
		"deep mapping":     deepMapping(300),
		"comments":         fill("#\n"),
		"comment lines":    launchtest.Demo + fill(" # x\n")[:maxSpecBytes-len(launchtest.Demo)-2] + "\n}",
		"anchors":          fill("&a "),
		"tags":             fill("! "),
		"aliases":          "x: &a b\ny: [" + fill("*a,")[:maxSpecBytes-64] + "*a]\n",
		"quotes":           fill("'"),
		"backslashes":      `"` + fill(`\`)[:maxSpecBytes-2],
		"empty lines":      fill("\n"),
		"document starts":  fill("---\n"),
		"colons":           fill(":"),
		"long scalar":      "cmdline: " + fill("x")[:maxSpecBytes-10],
		"long list":        "attestation: {pcrs: [" + fill("1,")[:maxSpecBytes-64] + "1]}\n",
		"bad list":         "attestation: {pcrs: [" + fill("x,")[:maxSpecBytes-64] + "x]}\n",
		"indented depth":   indented(),
		"simple keys":      fill("a: {"),
		"folded":           "cmdline: >\n" + fill(" x\n\n"),
		"percent":          fill("%\n"),
		"percent versions": fill("%YAML 1.1\n"),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			_, err := load(text)
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			for deadline := start.Add(10 * time.Second); took > limit && time.Now().Before(deadline); {
				start := time.Now()
				load(text)
				took = min(took, time.Since(start))
			}
			if err == nil {
				t.Error("found no error")
			} else if len(err.Error()) > 32<<10 {
				t.Errorf("found an error of %d bytes", len(err.Error()))
			}
			if took > limit {
				t.Errorf("took %v, expected at most %v", took, limit)
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > 64<<20 {
				t.Errorf("allocated %d MiB, expected less than 64", got>>20)
			}
		})
	}
}

func deepMapping(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

func indented() string {
	var b strings.Builder
	for i := 0; b.Len() < maxSpecBytes-400; i++ {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

// fill sets every field of a spec to something that is not zero, whatever rules
// it breaks. A kind of field that it does not know is an error, so that no field
// is forgotten here either.
func fillStruct(t *testing.T, v reflect.Value, n *int) {
	for _, f := range fieldsOf(v.Type()) {
		fillValue(t, v.Field(f.index), f, n)
	}
}

func fillValue(t *testing.T, v reflect.Value, f field, n *int) {
	*n++
	switch v.Interface().(type) {
	case Size:
		v.SetUint(uint64(*n) << 20)
		return
	case Duration:
		v.SetInt(int64(*n) * int64(time.Second))
		return
	case Policy:
		v.SetUint(uint64(0x30000 + *n))
		return
	case measure.HexBytes:
		size, ok := f.number("size")
		if !ok {
			t.Fatalf("field %s: no size tag", f.name)
		}
		b := make(measure.HexBytes, size)
		b[0] = byte(*n)
		v.Set(reflect.ValueOf(b))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fillValue(t, v.Elem(), f, n)
	case reflect.Struct:
		fillStruct(t, v, n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fillValue(t, v.Index(i), f, n)
		}
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d: \"#'", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int:
		v.SetInt(int64(*n))
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n))
	default:
		t.Fatalf("field %s: kind %s has no reader", f.name, v.Kind())
	}
}

// yamlOf writes a spec as a user would.
func yamlOf(b *strings.Builder, v reflect.Value) {
	switch x := v.Interface().(type) {
	case Size, Duration, measure.HexBytes, Policy:
		fmt.Fprintf(b, "%s", x)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		yamlOf(b, v.Elem())
	case reflect.Struct:
		b.WriteByte('{')
		for _, f := range fieldsOf(v.Type()) {
			b.WriteString(f.name + ": ")
			yamlOf(b, v.Field(f.index))
			b.WriteString(", ")
		}
		b.WriteByte('}')
	case reflect.Slice:
		b.WriteByte('[')
		for i := range v.Len() {
			yamlOf(b, v.Index(i))
			b.WriteString(", ")
		}
		b.WriteByte(']')
	case reflect.String:
		fmt.Fprintf(b, "%q", v.String())
	default:
		fmt.Fprint(b, v.Interface())
	}
}

// TestSpecNoFieldForgotten: every field travels through YAML unchanged, has a
// name, a description, and rules that can be read.
func TestSpecNoFieldForgotten(t *testing.T) {
	want := new(Spec)
	n := 0
	fillStruct(t, reflect.ValueOf(want).Elem(), &n)
	want.Version = SpecVersion
	b := new(strings.Builder)
	yamlOf(b, reflect.ValueOf(want).Elem())
	got, err := LoadSpec(strings.NewReader(b.String()), "filled.yaml")
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	if d := cmp.Diff(want, got, ignoreSource); d != "" {
		t.Errorf("spec differs (-written +read):\n%s", d)
	}
	var check func(reflect.Type)
	check = func(typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			if !f.IsExported() {
				continue
			}
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "" || name == "-" || name != strings.ToLower(name) {
				t.Errorf("%s.%s: found json name %q, expected one in lower case", typ.Name(), f.Name, name)
			}
			if doc := f.Tag.Get("doc"); !strings.HasSuffix(doc, ".") {
				t.Errorf("%s.%s: found doc %q, expected a sentence", typ.Name(), f.Name, doc)
			}
			if f.Tag.Get("pattern") != "" && f.Tag.Get("want") == "" {
				t.Errorf("%s.%s: found a pattern without words for it", typ.Name(), f.Name)
			}
			field := field{name: name, tag: f.Tag}
			field.number("min")
			field.number("max")
			field.number("size")
			elem := f.Type
			for elem.Kind() == reflect.Pointer || elem.Kind() == reflect.Slice {
				elem = elem.Elem()
			}
			if elem.Kind() == reflect.Struct {
				check(elem)
			}
		}
	}
	check(reflect.TypeFor[Spec]())
}

// TestC12Owner: who could have written the spec decides whether it is read.
func TestC12Owner(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs files with owners and modes: Windows has none")
	}
	path := filepath.Join(t.TempDir(), "a.yaml")
	if err := os.WriteFile(path, []byte(launchtest.Demo), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSpec(path, SpecFileOptions{}); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(path, 0o646); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSpec(path, SpecFileOptions{}); !errors.Is(err, ErrUntrustedFile) {
		t.Errorf("found %v for a file that everybody can write, expected ErrUntrustedFile", err)
	}
	if _, err := ReadSpec(path, SpecFileOptions{AnyOwner: true}); err != nil {
		t.Error(err)
	}
	if os.Geteuid() != 0 {
		return
	}
	if err := errors.Join(os.Chmod(path, 0o600), os.Chown(path, 12345, -1)); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSpec(path, SpecFileOptions{}); !errors.Is(err, ErrUntrustedFile) {
		t.Errorf("found %v for somebody else's file, expected ErrUntrustedFile", err)
	}
}

// TestReadSpecPaths: paths are relative to the spec's folder, and nothing in them
// is expanded.
func TestReadSpecPaths(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	if err := os.WriteFile(path, []byte(launchtest.With("kernel: ~/k", "initrd: $HOME/i")), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := ReadSpec(path, SpecFileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(dir, "~", "k"); s.Kernel != want {
		t.Errorf("kernel: found %s, expected %s", s.Kernel, want)
	}
	if want := filepath.Join(dir, "$HOME", "i"); s.Initrd != want {
		t.Errorf("initrd: found %s, expected %s", s.Initrd, want)
	}
	for _, bad := range []string{dir, filepath.Join(dir, "absent")} {
		if _, err := ReadSpec(bad, SpecFileOptions{}); err == nil {
			t.Errorf("%s: found no error", bad)
		}
	}
}

// TestReadSpecBackend: the caller's word on the back end counts as if it stood in
// the file, with the defaults that follow from it.
func TestReadSpecBackend(t *testing.T) {
	for name, c := range map[string]struct {
		lines   []string
		backend string
		uri     string
		start   time.Duration
		err     string
	}{
		"as it says":           {nil, "", "", 30 * time.Second, ""},
		"libvirt instead":      {nil, BackendLibvirt, "qemu:///session", 2 * time.Minute, ""},
		"libvirt and its own":  {[]string{"backend: libvirt", "timeouts: {start: 7s}"}, BackendLibvirt, "qemu:///session", 7 * time.Second, ""},
		"libvirt's URI stays":  {[]string{"backend: libvirt", "libvirt: {uri: 'qemu:///system'}"}, BackendLibvirt, "qemu:///system", 2 * time.Minute, ""},
		"qemu instead":         {[]string{"backend: libvirt", "libvirt: {uri: 'qemu:///system'}"}, BackendQEMU, "", 30 * time.Second, ""},
		"an explicit qemu":     {[]string{"backend: qemu"}, BackendLibvirt, "qemu:///session", 2 * time.Minute, ""},
		"a bad URI of libvirt": {[]string{"backend: libvirt", "libvirt: {uri: 'qemu+tcp://h/system'}"}, BackendQEMU, "", 30 * time.Second, ""},
		"not another's":        {nil, "xen", "", 30 * time.Second, "backend: found \"xen\""},
	} {
		dir := t.TempDir()
		path := launchtest.Write(t, filepath.Join(dir, "a.yaml"), []byte(launchtest.With(c.lines...)))
		s, err := ReadSpec(path, SpecFileOptions{Backend: c.backend})
		if c.err != "" || err != nil {
			if err == nil || c.err == "" || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: found %v, expected %q", name, err, c.err)
			}
			continue
		}
		if s.Libvirt.URI != c.uri || time.Duration(s.Timeouts.Start) != c.start {
			t.Errorf("%s: found %q, %v, expected %q, %v", name, s.Libvirt.URI, time.Duration(s.Timeouts.Start), c.uri, c.start)
		}
	}
}
