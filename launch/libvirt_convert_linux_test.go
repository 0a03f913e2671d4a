package launch

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/evtpm/evtpm/launch/launchtest"
	"github.com/evtpm/evtpm/measure/fromvm"
)

// options gathers the options of a command line by name.
func options(args []string) map[string][]string {
	out := make(map[string][]string)
	for i, a := range args {
		if strings.HasPrefix(a, "-") && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
			out[a] = append(out[a], args[i+1])
		}
	}
	return out
}

// jsonOption returns the JSON values of an option that have the key with the
// value.
func jsonOption(values []string, key, value string) []map[string]any {
	var out []map[string]any
	for _, v := range values {
		var m map[string]any
		if json.Unmarshal([]byte(v), &m) == nil && m[key] == value {
			out = append(out, m)
		}
	}
	return out
}

// TestE2ELibvirtConverts: libvirt makes of each domain the command line that we
// give QEMU ourselves, in everything that is measured or confidential, and in the
// devices.
func TestE2ELibvirtConverts(t *testing.T) {
	s := launchtest.SNPSession(t)
	for name, p := range domainCases(t) {
		if p.Spec.Networks != nil || p.Spec.Vsock != nil {
			continue // libvirt opens the host's devices already here
		}
		t.Run(name, func(t *testing.T) {
			domain, err := p.LibvirtDomain(LibvirtOptions{Dir: "/run/evtpm/demo"})
			if err != nil {
				t.Fatal(err)
			}
			// Without KVM there are no domains of its type.
			text := strings.Replace(string(domain), `<domain type="kvm"`, `<domain type="qemu"`, 1)
			path := launchtest.Write(t, filepath.Join(s.Dir, "domain.xml"), []byte(text))
			if err := os.Chmod(path, 0o644); err != nil {
				t.Fatal(err)
			}
			line := string(s.Virsh(t, "domxml-to-native", "qemu-argv", path))
			theirs := words(t, line)
			theirs = theirs[slices.IndexFunc(theirs, func(w string) bool { return strings.HasPrefix(w, "/") }):]
			command, err := p.QEMUCommand(QEMUOptions{Dir: "/run/evtpm/demo"})
			if err != nil {
				t.Fatal(err)
			}
			ours := append([]string{command.Binary}, command.Args...)

			a, b := options(ours), options(theirs)
			for _, option := range []string{"-bios", "-kernel", "-initrd", "-append", "-cpu"} {
				if d := cmp.Diff(a[option], b[option]); d != "" {
					t.Errorf("%s differs (-ours +theirs):\n%s", option, d)
				}
			}
			if p.SVSM == nil && p.Spec.Platform == PlatformSNP {
				our, err1 := fromvm.QEMUArgs(ours)
				their, err2 := fromvm.QEMUArgs(theirs)
				if err1 != nil || err2 != nil {
					t.Fatalf("reading the command lines: %v, %v", err1, err2)
				}
				if d := cmp.Diff(our, their, cmpopts.IgnoreFields(fromvm.VM{}, "Warnings")); d != "" {
					t.Errorf("what is measured differs (-ours +theirs):\n%s", d)
				}
			}
			sev := func(options map[string][]string) any {
				found := jsonOption(options["-object"], "qom-type", "sev-snp-guest")
				for _, f := range found {
					delete(f, "id")
					if f["kernel-hashes"] == false {
						delete(f, "kernel-hashes") // the default
					}
					if f["author-key-enabled"] == false {
						delete(f, "author-key-enabled")
					}
				}
				return found
			}
			if d := cmp.Diff(sev(a), sev(b)); d != "" {
				t.Errorf("sev-snp-guest differs (-ours +theirs):\n%s", d)
			}
			if d := cmp.Diff(jsonOption(a["-object"], "qom-type", "igvm-cfg"), jsonOption(b["-object"], "qom-type", "igvm-cfg")); d != "" {
				t.Errorf("igvm-cfg differs (-ours +theirs):\n%s", d)
			}
			memory := func(options map[string][]string) string {
				for _, m := range jsonOption(options["-object"], "qom-type", "memory-backend-memfd") {
					return fmt.Sprint(m["size"], m["share"], m["hugetlb"], m["hugetlbsize"])
				}
				return "none"
			}
			if memory(a) != memory(b) {
				t.Errorf("memory: ours is %s, theirs %s", memory(a), memory(b))
			}
			joined := strings.Join(theirs, " ")
			for _, bad := range []string{"pflash", "smm=on", "-global isa-debugcon", "virtio-balloon", "VGA", "usb-"} {
				if strings.Contains(joined, bad) {
					t.Errorf("found %q in libvirt's command line:\n%s", bad, line)
				}
			}
			machine := strings.Join(b["-machine"], ",")
			for _, want := range []string{"smm=off", "q35"} {
				if !strings.Contains(machine, want) {
					t.Errorf("found machine %q, expected %s in it", machine, want)
				}
			}
			var ports []string
			for _, d := range jsonOption(b["-device"], "driver", "virtserialport") {
				ports = append(ports, fmt.Sprintf("nr=%v,name=%v", d["nr"], d["name"]))
			}
			for _, d := range a["-device"] {
				switch {
				case strings.HasPrefix(d, "virtserialport,"):
					nr, rest, _ := strings.Cut(strings.TrimPrefix(d, "virtserialport,bus=serial0.0,"), ",")
					_, name, _ := strings.Cut(rest, "name=")
					if want := nr + ",name=" + name; !slices.Contains(ports, want) {
						t.Errorf("found ports %q, expected %s", ports, want)
					}
				case strings.HasPrefix(d, "loader,"):
					if !slices.Contains(b["-device"], d) {
						t.Errorf("found devices %q, expected %s", b["-device"], d)
					}
				case strings.HasPrefix(d, "tpm-crb,"):
					if len(jsonOption(b["-device"], "driver", "tpm-crb")) != 1 || !slices.Contains(b["-tpmdev"], "emulator,id=tpm-tpm0,chardev=chrtpm") {
						t.Errorf("found TPMs %q, expected one emulator", b["-tpmdev"])
					}
				}
			}
			if p.Spec.Platform == PlatformSNP && len(b["-tpmdev"]) != 0 {
				t.Errorf("found TPMs %q of the host in a confidential VM, expected none", b["-tpmdev"])
			}
			if !t.Failed() {
				tell("converted  %-24s %d options of libvirt's, the same as ours in all that is measured or confidential", name, len(theirs))
			}
		})
	}
}

// words splits what virsh prints, which is quoted for a shell.
func words(t *testing.T, line string) []string {
	t.Helper()
	var out []string
	var word strings.Builder
	quoted, started := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\'':
			quoted, started = !quoted, true
		case quoted:
			word.WriteByte(c)
		case c == '\\' && i+1 < len(line):
			i++
			if line[i] != '\n' {
				word.WriteByte(line[i])
				started = true
			}
		case c == ' ' || c == '\n':
			if started {
				out = append(out, word.String())
				word.Reset()
				started = false
			}
		default:
			word.WriteByte(c)
			started = true
		}
	}
	if quoted {
		t.Fatalf("found an open quote in %s", line)
	}
	return out
}
