package attest_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"github.com/evtpm/evtpm/attest"
)

// edit is the default policy's text with a part replaced.
func edit(t *testing.T, old, new string) []byte {
	t.Helper()
	text := attest.DefaultPolicyYAML()
	out := bytes.Replace(text, []byte(old), []byte(new), 1)
	if bytes.Equal(text, out) {
		t.Fatalf("%q is not in the default policy", old)
	}
	return out
}

func TestPoliciesRoundTrip(t *testing.T) {
	for name, p := range map[string]*attest.Policy{"default": attest.DefaultPolicy(), "permissive": attest.PermissivePolicy()} {
		text, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := attest.ParsePolicy(text, name)
		if name == "permissive" {
			// As a file of one's own it would check nothing.
			if err == nil || !strings.Contains(err.Error(), "checks nothing") {
				t.Errorf("permissive as a file: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		again, err := back.Encode()
		if err != nil || !bytes.Equal(text, again) {
			t.Errorf("%s: %v\n%s", name, err, cmp.Diff(string(text), string(again)))
		}
	}
}

func TestDefaultPolicyAsFile(t *testing.T) {
	p, err := attest.ParsePolicy(attest.DefaultPolicyYAML(), "default.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want(t, judgeWith(t, genoa(), func(q *attest.Policy) { *q = *p }))
	if !bytes.Contains(attest.PermissivePolicyYAML(), []byte("permissive")) {
		t.Error("the permissive policy's text is another")
	}
}

func TestC01_PolicyBombs(t *testing.T) {
	for name, text := range map[string][]byte{
		"aliases":        []byte("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"),
		"depth of 10000": []byte(strings.Repeat("[", 10000) + strings.Repeat("]", 10000)),
		"depth of 20":    append([]byte("x: "), []byte(strings.Repeat("[", 20)+strings.Repeat("]", 20))...),
		"100 MB":         make([]byte, 100<<20),
		"many keys":      []byte(strings.Repeat("k: 1\n", 50000)),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := attest.ParsePolicy(text, "p.yaml"); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestC02_PolicyFields(t *testing.T) {
	for name, c := range map[string]struct{ old, new, says string }{
		"unknown field":      {"host_data: zero", "host_data: zero\nhost_dta: any", "host_dta"},
		"misspelt bit":       {"debug: forbidden", "debgu: forbidden", "debgu"},
		"misspelt platform":  {"alias_check_complete: required", "alias_check: required", "alias_check"},
		"repeated field":     {"host_data: zero", "host_data: zero\nhost_data: any", "host_data"},
		"another case":       {"host_data: zero", "Host_Data: zero", "Host_Data"},
		"want misspelt":      {"debug: forbidden", "debug: forbiden", "forbiden"},
		"unknown product":    {"[Milan, Genoa", "[Milano, Genoa", "Milano"},
		"unknown signer":     {"[vcek, vlek]", "[vcek, vlak]", "vlak"},
		"unknown binding":    {"[svsm, svsm-services", "[svms, svsm-services", "svms"},
		"VMPL 4":             {"vmpl: [0]", "vmpl: [0, 4]", "4"},
		"version 6":          {"min_version: 3", "min_version: 6", "6"},
		"version 1":          {"min_version: 3", "min_version: 1", "1"},
		"revocation":         {"revocation: when-online", "revocation: never", "never"},
		"event log":          {"event_log: required", "event_log: optional", "optional"},
		"host data":          {"host_data: zero", "host_data: \"00\"", "00"},
		"floors":             {"floors: default", "floors: strict", "strict"},
		"floors missing":     {"  floors: default\n", "", "floors"},
		"age negative":       {"max_age_days: 180", "max_age_days: -1", "-1"},
		"CRL age negative":   {"revocation: when-online", "revocation: when-online\ncrl_max_age_days: -1", "-1"},
		"no signers":         {"signers: [vcek, vlek]", "signers: []", "signers is empty"},
		"no VMPL":            {"vmpl: [0]", "vmpl: []", "vmpl is empty"},
		"no products":        {"products: [Milan, Genoa, Bergamo-Siena, Turin]", "products: []", "empty"},
		"products a word":    {"products: [Milan, Genoa, Bergamo-Siena, Turin]", "products: all", "all"},
		"no bindings":        {"bindings: [svsm, svsm-services, nv]", "bindings: []", "bindings is empty"},
		"manifest version 2": {"event_log: required", "event_log: required\n  manifest_versions: [2]", "2"},
		"no chips":           {"host_data: zero", "host_data: zero\nchip_ids: []", "chip_ids is empty"},
		"no ID keys":         {"host_data: zero", "host_data: zero\nid_block: {id_keys: []}", "id_keys is empty"},
		"no author keys":     {"host_data: zero", "host_data: zero\nid_block: {author_keys: []}", "author_keys is empty"},
		"chip of 63 bytes":   {"host_data: zero", "host_data: zero\nchip_ids: [\"" + strings.Repeat("01", 63) + "\"]", "63"},
		"chip of zeros":      {"host_data: zero", "host_data: zero\nchip_ids: [\"" + strings.Repeat("00", 64) + "\"]", "zeros"},
		"ID key of 47 bytes": {"host_data: zero", "host_data: zero\nid_block: {id_keys: [\"" + strings.Repeat("01", 47) + "\"]}", "47"},
		"author key":         {"host_data: zero", "host_data: zero\nid_block: {author_keys: [\"01\"]}", "author_keys"},
		"family of 15 bytes": {"host_data: zero", "host_data: zero\nid_block: {family_id: \"" + strings.Repeat("01", 15) + "\"}", "family_id"},
		"image of 17 bytes":  {"host_data: zero", "host_data: zero\nid_block: {image_id: \"" + strings.Repeat("01", 17) + "\"}", "image_id"},
		"ABI of three parts": {"guest_policy:\n", "guest_policy:\n  min_abi: \"1.2.3\"\n", "min_abi"},
		"ABI of 256":         {"guest_policy:\n", "guest_policy:\n  min_abi: \"1.256\"\n", "min_abi"},
		"firmware":           {"platform:\n", "platform:\n  min_firmware: \"1.55\"\n", "min_firmware"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := attest.ParsePolicy(edit(t, c.old, c.new), "p.yaml")
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(err.Error(), "p.yaml: ") {
				t.Errorf("error is %v, expected one that says %q", err, c.says)
			}
		})
	}
	// The line is named, and all faults come at once.
	_, err := attest.ParsePolicy(edit(t, "host_data: zero", "host_dta: zero"), "p.yaml")
	if err == nil || !strings.Contains(err.Error(), "line ") {
		t.Errorf("error is %v, expected one that names the line", err)
	}
	text := edit(t, "vmpl: [0]", "vmpl: [9]")
	text = bytes.Replace(text, []byte("revocation: when-online"), []byte("revocation: never"), 1)
	if _, err := attest.ParsePolicy(text, "p.yaml"); err == nil || !strings.Contains(err.Error(), "9") || !strings.Contains(err.Error(), "never") {
		t.Errorf("error is %v, expected both faults", err)
	}
}

func TestC03_PolicyTypes(t *testing.T) {
	for name, c := range map[string][2]string{
		"yes for true":       {"host_data: zero", "host_data: zero\nallow_masked_chip_id: yes"},
		"on for true":        {"host_data: zero", "host_data: zero\nallow_masked_chip_id: on"},
		"number as a word":   {"min_version: 3", "min_version: \"3\""},
		"float":              {"min_version: 3", "min_version: 3.0"},
		"octal":              {"max_age_days: 180", "max_age_days: 0180"},
		"negative":           {"vmpl: [0]", "vmpl: [-1]"},
		"2 to the 32":        {"vmpl: [0]", "vmpl: [4294967296]"},
		"2 to the 64":        {"host_data: zero", "host_data: zero\nmitigations: {launch: 18446744073709551616}"},
		"list for a word":    {"host_data: zero", "host_data: [zero]"},
		"word for a list":    {"signers: [vcek, vlek]", "signers: vcek"},
		"value missing":      {"host_data: zero", "host_data:"},
		"a tag":              {"host_data: zero", "host_data: !!str zero"},
		"number without dot": {"guest_policy:\n", "guest_policy:\n  min_abi: 1.55\n"},
		// Where nothing stands, nothing would be asked for.
		"no chips":           {"host_data: zero", "host_data: zero\nchip_ids:"},
		"null for chips":     {"host_data: zero", "host_data: zero\nchip_ids: null"},
		"no ID block":        {"host_data: zero", "host_data: zero\nid_block: ~"},
		"list in a list":     {"[Milan, Genoa, Bergamo-Siena, Turin]", "[Milan, [Genoa]]"},
		"host data and half": {"host_data: zero", "host_data: \"" + strings.Repeat("01", 32) + "0\""},
		"host data and more": {"host_data: zero", "host_data: \"" + strings.Repeat("01", 32) + "xx\""},
		"host data no hex":   {"host_data: zero", "host_data: \"" + strings.Repeat("0g", 32) + "\""},
		// Fields that come from elsewhere than their own name.
		"an anchor":      {"host_data: zero", "host_data: &a zero"},
		"an alias":       {"signers: [vcek, vlek]", "signers: [&a vcek, *a]"},
		"a merge key":    {"host_data: zero", "<<: {host_data: any}"},
		"one more":       {"host_data: zero", "host_data: zero\n<<: {allow_masked_chip_id: true}"},
		"one among bits": {"debug: forbidden", "<<: {debug: any}"},
		"field repeated": {"host_data: zero", "host_data: zero\n\"host_data\": any"},
		"bit repeated":   {"debug: forbidden", "debug: forbidden\n    debug: any"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := attest.ParsePolicy(edit(t, c[0], c[1]), "p.yaml"); err == nil {
				t.Error("accepted")
			}
		})
	}
	// Words that some versions of YAML take for true and false, in any case: the
	// policy would say one thing here and another elsewhere. In quotes they are words.
	for _, word := range []string{"y", "n", "yes", "no", "on", "off"} {
		for _, w := range []string{word, strings.ToUpper(word), strings.ToUpper(word[:1]) + word[1:]} {
			for _, text := range [][]byte{edit(t, "host_data: zero", "host_data: zero\nallow_masked_chip_id: "+w), edit(t, "name: default", "name: "+w)} {
				if _, err := attest.ParsePolicy(text, "p.yaml"); err == nil || !strings.Contains(err.Error(), "expected true or false") {
					t.Errorf("%s: %v", w, err)
				}
			}
			p, err := attest.ParsePolicy(edit(t, "name: default", "name: \""+w+"\""), "p.yaml")
			if err != nil || p.Name != w {
				t.Errorf("%q as a name: %v", w, err)
			}
		}
	}
	// Numbers: those that all versions of YAML read as the same.
	for number, want := range map[string]uint64{
		"0": 0, "7": 7, "10": 10, "0x0": 0, "0x1F": 31, "0xff": 255, "18446744073709551615": 1<<64 - 1,
	} {
		p, err := attest.ParsePolicy(edit(t, "host_data: zero", "host_data: zero\nmitigations: {launch: "+number+"}"), "p.yaml")
		if err != nil || p.Mitigations.Launch != want {
			t.Errorf("%s: %+v, %v", number, p, err)
		}
	}
	for _, number := range []string{"00", "017", "+017", "0o17", "+7", "1_000", "0x1_0", "0b11", "-0", "017_0", "7.0", "1e3", ".inf", "1:30"} {
		if p, err := attest.ParsePolicy(edit(t, "host_data: zero", "host_data: zero\nmitigations: {launch: "+number+"}"), "p.yaml"); err == nil {
			t.Errorf("%s was accepted as %d", number, p.Mitigations.Launch)
		}
	}
	// Hexadecimal numbers are good, and so is a mask of 64 bits.
	p, err := attest.ParsePolicy(edit(t, "host_data: zero", "host_data: zero\nmitigations: {launch: 0x2, current: 0xFFFFFFFFFFFFFFFF}"), "p.yaml")
	if err != nil || p.Mitigations != (attest.MitigationRules{Launch: 2, Current: 1<<64 - 1}) {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestC04_PolicyDocuments(t *testing.T) {
	good := attest.DefaultPolicyYAML()
	for name, text := range map[string][]byte{
		"empty":         nil,
		"comment alone": []byte("# nothing\n"),
		"two documents": append(append(bytes.Clone(good), []byte("---\n")...), good...),
		"NUL":           append(bytes.Clone(good), 0),
		"invalid UTF-8": append(bytes.Clone(good), 0xFF, '\n'),
		"tabs":          bytes.ReplaceAll(good, []byte("  "), []byte("\t")),
		"a list":        []byte("- version: 1\n"),
		"a word":        []byte("default\n"),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := attest.ParsePolicy(text, "p.yaml"); err == nil {
				t.Error("accepted")
			}
		})
	}
	// Line ends of another system are good.
	if _, err := attest.ParsePolicy(bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")), "p.yaml"); err != nil {
		t.Error(err)
	}
}

func TestC14_PolicyVersion(t *testing.T) {
	for _, version := range []string{"0", "2", "99"} {
		_, err := attest.ParsePolicy(edit(t, "version: 1", "version: "+version), "p.yaml")
		if err == nil || !strings.Contains(err.Error(), "version is "+version) {
			t.Errorf("error is %v", err)
		}
	}
}

// floors is a policy with a table of its own.
func floors(t *testing.T, rows string) []byte {
	t.Helper()
	return edit(t, "floors: default", "floors:\n    version: 1\n    date: 2026-01-01\n    floors:\n"+rows)
}

func TestPolicyWithItsOwnFloors(t *testing.T) {
	good := "      - {cpuid: \"19/11/01\", name: mine, tcb: {bootloader: 10, tee: 0, snp: 28, microcode: 86}}\n"
	p, err := attest.ParsePolicy(floors(t, good), "p.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want(t, judgeWith(t, genoa(), func(q *attest.Policy) { *q = *p }), allFloors...)
	text, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := attest.ParsePolicy(text, "again"); err != nil {
		t.Error(err)
	}
	for name, rows := range map[string]string{
		"twice":           good + strings.Replace(good, "mine", "again", 1),
		"unknown product": strings.Replace(good, "19/11/01", "17/31/00", 1),
		"cpuid malformed": strings.Replace(good, "19/11/01", "19/11", 1),
		"cpuid no hex":    strings.Replace(good, "19/11/01", "19/11/xx", 1),
		"fmc on Genoa":    strings.Replace(good, "{bootloader", "{fmc: 1, bootloader", 1),
		"no fmc on Turin": strings.Replace(good, "19/11/01", "1a/02/01", 1),
		"level of 256":    strings.Replace(good, "snp: 28", "snp: 256", 1),
		"misspelt level":  strings.Replace(good, "snp: 28", "spn: 28", 1),
		"misspelt bit":    strings.Replace(good, "name: mine", "name: mine, platform: {alias: required}", 1),
		"no rows":         "      []\n",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := attest.ParsePolicy(floors(t, rows), "p.yaml"); err == nil {
				t.Error("accepted")
			}
		})
	}
	for name, c := range map[string][2]string{
		"no date":    {"    date: 2026-01-01\n", ""},
		"other date": {"2026-01-01", "January"},
		"version 2":  {"version: 1\n    date", "version: 2\n    date"},
	} {
		t.Run(name, func(t *testing.T) {
			text := bytes.Replace(floors(t, good), []byte(c[0]), []byte(c[1]), 1)
			if _, err := attest.ParsePolicy(text, "p.yaml"); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestC15_PolicyThatChecksNothing(t *testing.T) {
	text := attest.PermissivePolicyYAML()
	if _, err := attest.ParsePolicy(text, "p.yaml"); err == nil || !strings.Contains(err.Error(), "checks nothing") {
		t.Errorf("error is %v", err)
	}
	// Anything that could refuse a genuine report makes it a policy.
	for name, c := range map[string][2]string{
		"report version": {"min_version: 2", "min_version: 3"},
		"product":        {"products: any", "products: [Genoa]"},
		"signer":         {"signers: [vcek, vlek]", "signers: [vcek]"},
		"VMPL":           {"vmpl: [0, 1, 2, 3]", "vmpl: [0, 1, 2]"},
		"guest bit":      {"platform:\n", "guest_policy: {bits: {debug: forbidden}}\nplatform:\n"},
		"ABI":            {"platform:\n", "guest_policy: {min_abi: \"1.55\"}\nplatform:\n"},
		"platform bit":   {"platform:\n", "platform:\n  bits: {tsme: required}\n"},
		"firmware":       {"platform:\n", "platform:\n  min_firmware: \"1.55.0\"\n"},
		"floors":         {"floors: none", "floors: default"},
		"mitigation":     {"platform:\n", "mitigations: {launch: 2}\nplatform:\n"},
		"chip":           {"platform:\n", "chip_ids: [\"" + strings.Repeat("01", 64) + "\"]\nplatform:\n"},
		"host data":      {"host_data: any", "host_data: zero"},
		"ID key":         {"platform:\n", "id_block: {id_keys: [\"" + strings.Repeat("01", 48) + "\"]}\nplatform:\n"},
		"author key":     {"platform:\n", "id_block: {author_keys: [\"" + strings.Repeat("01", 48) + "\"]}\nplatform:\n"},
		"family":         {"platform:\n", "id_block: {family_id: \"" + strings.Repeat("01", 16) + "\"}\nplatform:\n"},
		"image":          {"platform:\n", "id_block: {image_id: \"" + strings.Repeat("01", 16) + "\"}\nplatform:\n"},
		"SVN":            {"platform:\n", "id_block: {min_guest_svn: 1}\nplatform:\n"},
		"revocation":     {"revocation: if-given", "revocation: required"},
	} {
		t.Run(name, func(t *testing.T) {
			out := bytes.Replace(text, []byte(c[0]), []byte(c[1]), 1)
			if bytes.Equal(out, text) {
				t.Fatal("nothing was changed")
			}
			if _, err := attest.ParsePolicy(out, "p.yaml"); err != nil {
				t.Error(err)
			}
		})
	}
	// A bit that may be anything checks nothing.
	out := bytes.Replace(text, []byte("platform:\n"), []byte("guest_policy: {bits: {debug: any}}\nplatform:\n"), 1)
	if _, err := attest.ParsePolicy(out, "p.yaml"); err == nil {
		t.Error("a policy of any was accepted")
	}
}

// Borders of a policy's values, and what is said of faults.
func TestPolicyBorders(t *testing.T) {
	for text, fault := range map[string]string{
		"min_version: 2": "", "min_version: 5": "",
		"min_version: 6": "report.min_version is 6, expected 2 to 5",
		"min_version: 1": "report.min_version is 1, expected 2 to 5",
	} {
		_, err := attest.ParsePolicy(edit(t, "min_version: 3", text), "p")
		if (err == nil) != (fault == "") || err != nil && !strings.Contains(err.Error(), fault) {
			t.Errorf("%s: %v", text, err)
		}
	}
	// Faults come in one order, whatever the map's is; and a policy with faults
	// is not said to check nothing, too.
	p := attest.PermissivePolicy()
	p.GuestPolicy.Bits = map[string]attest.Want{"a": "x", "b": "x", "c": "x", "d": "x"}
	first := p.Validate()
	if first == nil || strings.Contains(first.Error(), "checks nothing") {
		t.Fatalf("error is %v", first)
	}
	for range 20 {
		if err := p.Validate(); err == nil || err.Error() != first.Error() {
			t.Errorf("error is %v, was %v", err, first)
		}
	}
	own := bytes.Replace(attest.PermissivePolicyYAML(), []byte("[vcek, vlek]"), []byte("[vcek, vxek]"), 1)
	if _, err := attest.ParsePolicy(own, "p"); err == nil || !strings.Contains(err.Error(), "vxek") || strings.Contains(err.Error(), "checks nothing") {
		t.Errorf("error is %v", err)
	}
	q := attest.DefaultPolicy()
	q.TCB.Floors = attest.FloorSource{Name: "table", Table: &attest.FloorTable{Version: 1, Date: "2026-01-01", Floors: []attest.Floor{{CPUID: "19-01-01"}}}}
	if err := q.Validate(); err == nil || !strings.Contains(err.Error(), `cpuid is "19-01-01", expected family/model/stepping`) {
		t.Errorf("error is %v", err)
	}
}

// nodesOf counts what a YAML document consists of.
func nodesOf(n *yaml.Node) int {
	sum := 1
	for _, c := range n.Content {
		sum += nodesOf(c)
	}
	return sum
}

// The time to read a policy grows with the square of its values: so many, and not
// one more.
func TestPolicyValues(t *testing.T) {
	for n, good := range map[int]bool{8192: true, 8193: false} {
		with := func(zeros int) []byte { return edit(t, "vmpl: [0]", "vmpl: [0"+strings.Repeat(",0", zeros)+"]") }
		var doc yaml.Node
		if err := yaml.Unmarshal(attest.DefaultPolicyYAML(), &doc); err != nil {
			t.Fatal(err)
		}
		if _, err := attest.ParsePolicy(with(n-nodesOf(&doc)), "p"); (err == nil) != good {
			t.Errorf("%d values: %v", n, err)
		}
	}
}

// A policy that is written and read again accepts what it accepted, not more.
func TestProductsRoundTrip(t *testing.T) {
	for _, products := range []attest.NameList{nil, {"Genoa"}, {"Milan", "Turin"}} {
		p := attest.DefaultPolicy()
		p.Products = products
		text, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := attest.ParsePolicy(text, "p")
		if err != nil || !slices.Equal(again.Products, products) {
			t.Errorf("%v: found %v, %v", products, again, err)
		}
	}
}

// The text of a policy, before anything in it is looked at.
func TestPolicyText(t *testing.T) {
	good := attest.DefaultPolicyYAML()
	padded := func(n int) []byte {
		return append(append(bytes.Clone(good), '#'), bytes.Repeat([]byte("x"), n-len(good)-1)...)
	}
	with := func(tail string) []byte { return append(bytes.Clone(good), tail...) }
	for name, c := range map[string]struct {
		text []byte
		what string // of the error; empty if it is good
	}{
		"64 KiB":        {padded(64 << 10), ""},
		"a byte more":   {padded(64<<10 + 1), "found 65537 bytes, expected at most 65536"},
		"not UTF-8":     {with("# \xff\n"), "not UTF-8 text"},
		"NUL":           {with("# \x00\n"), "not UTF-8 text"},
		"NUL first":     {append([]byte{0}, good...), "not UTF-8 text"},
		"empty":         {nil, "the file is empty"},
		"comments only": {[]byte("# nothing\n"), "the file is empty"},
		"no YAML":       {[]byte("a: [\n"), "p: yaml:"},
	} {
		_, err := attest.ParsePolicy(c.text, "p")
		if (err == nil) != (c.what == "") || err != nil && !strings.Contains(err.Error(), c.what) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
