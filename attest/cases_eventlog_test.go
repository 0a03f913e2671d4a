package attest_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
	"github.com/evtpm/evtpm/attest/evidence"
)

var (
	logMalformed = is(attest.CheckEventLogForm, attest.ReasonLogMalformed)
	logReplay    = is(attest.CheckEventLogReplay, attest.ReasonLogReplay)
	logSeparator = is(attest.CheckEventLogReplay, attest.ReasonLogSeparator)
	logData      = is(attest.CheckEventLogData, attest.ReasonLogData)
)

// withEvents is a machine whose log, but not whose PCRs, is changed.
func withEvents(edit func([]attesttest.Event) []attesttest.Event) *attesttest.Machine {
	m := genoa()
	m.Events = edit(m.Events)
	return m
}

// booted is a machine that booted with other events: log and PCRs agree.
func booted(events []attesttest.Event) *attesttest.Machine {
	m := genoa()
	m.TPM = attesttest.NewVTPM(3, false)
	m.Events = events
	m.TPM.Extend(events)
	return m
}

func TestV24_EventLogChanged(t *testing.T) {
	insert := attesttest.Event{PCR: 2, Type: attesttest.EvPostCode, Digest: bytes.Repeat([]byte{1}, 32), Data: []byte("x")}
	for name, edit := range map[string]func([]attesttest.Event) []attesttest.Event{
		"truncated":      func(e []attesttest.Event) []attesttest.Event { return e[:len(e)-1] },
		"reordered":      func(e []attesttest.Event) []attesttest.Event { e[0], e[1] = e[1], e[0]; return e },
		"inserted":       func(e []attesttest.Event) []attesttest.Event { return append(e, insert) },
		"digest swapped": func(e []attesttest.Event) []attesttest.Event { e[1].Digest = bytes.Repeat([]byte{1}, 32); return e },
		"other PCR":      func(e []attesttest.Event) []attesttest.Event { e[1].PCR = 3; return e },
		"hidden":         func(e []attesttest.Event) []attesttest.Event { e[1].Type = attesttest.EvNoAction; return e },
		"empty":          func([]attesttest.Event) []attesttest.Event { return nil },
	} {
		t.Run(name, func(t *testing.T) { want(t, judge(t, withEvents(edit)), logReplay) })
	}
	// An event of an unknown type is replayed like any other.
	m := booted(append(attesttest.DirectBoot(), attesttest.Event{PCR: 2, Type: 0x7FFFFFFF, Digest: bytes.Repeat([]byte{1}, 32), Data: []byte("x")}))
	want(t, judge(t, m))
	want(t, judge(t, withEvents(func(e []attesttest.Event) []attesttest.Event {
		return append(e, attesttest.Event{PCR: 2, Type: 0x7FFFFFFF, Digest: bytes.Repeat([]byte{1}, 32)})
	})), logReplay)
	// PCRs above 9 are extended without the log, by software that came later.
	late := genoa()
	late.TPM.Extend([]attesttest.Event{{PCR: 10, Data: []byte("IMA")}, {PCR: 11, Data: []byte("phase")}})
	want(t, judge(t, late))
	// PCRs 8 and 9 are not.
	for _, pcr := range []uint32{8, 9} {
		m := genoa()
		m.TPM.Extend([]attesttest.Event{{PCR: pcr, Data: []byte("hidden")}})
		want(t, judge(t, m), logReplay)
	}
	// No log at all.
	none := withEvidence(func(ev *evidence.Evidence) { ev.EventLog = nil })
	want(t, judge(t, none), is(attest.CheckEventLogForm, attest.ReasonLogMissing))
	want(t, judgeWith(t, none, func(p *attest.Policy) { p.VTPM.EventLog = attest.EventLogIfPresent }))
	// A log is judged when it is there, whatever the policy.
	want(t, judgeWith(t, withEvents(func(e []attesttest.Event) []attesttest.Event { return e[1:] }),
		func(p *attest.Policy) { p.VTPM.EventLog = attest.EventLogIfPresent }), logReplay)
	// Startup from locality 3 is PCR 0's first value.
	startup := attesttest.Event{PCR: 0, Type: attesttest.EvNoAction, Data: append([]byte("StartupLocality\x00"), 3)}
	m = genoa()
	m.Events = append([]attesttest.Event{startup}, m.Events...)
	want(t, judge(t, m), logReplay)
	m.TPM = attesttest.NewVTPM(3, false)
	m.TPM.PCRs[0][31] = 3
	m.TPM.Extend(m.Events)
	want(t, judge(t, m))
	// None of PCRs 0 to 9 in the quote.
	m = genoa()
	_, v := live(t, m, m.TPM, attest.ChallengeOptions{PCRs: []int{10, 11}})
	want(t, v, logReplay, is(attest.CheckPCRGolden, attest.ReasonPCRMissing))
}

func TestV25_EventDataChanged(t *testing.T) {
	for i, e := range attesttest.DirectBoot() {
		changed := func(events []attesttest.Event) []attesttest.Event {
			sum := events[i]
			if sum.Digest == nil {
				sum.Digest = digestOf(sum.Data)
			}
			sum.Data = append([]byte("other "), sum.Data...)
			events[i] = sum
			return events
		}
		v := judge(t, withEvents(changed))
		switch e.Type {
		case attesttest.EvSeparator:
			want(t, v, logSeparator, logData)
		case attesttest.EvCRTM, attesttest.EvAction:
			want(t, v, logData)
		default:
			want(t, v) // the data of these is a description, and nothing is read from it
		}
	}
	// UEFI variables, whose digest is that of the event's data.
	for _, kind := range []uint32{0x80000001, 0x8000000C, 0x80000006} {
		good := append(attesttest.DirectBoot(), attesttest.Event{PCR: 7, Type: kind, Data: []byte("SecureBoot is on")})
		want(t, judge(t, booted(good)))
		bad := append(attesttest.DirectBoot(), attesttest.Event{PCR: 7, Type: kind, Digest: digestOf([]byte("SecureBoot is off")), Data: []byte("SecureBoot is on")})
		want(t, judge(t, booted(bad)), logData)
	}
}

func digestOf(b []byte) []byte {
	return attesttest.Digest(b)
}

func TestV26_SeparatorsAndOrder(t *testing.T) {
	// Direct kernel boot: the kernel comes before the separators, without a
	// "Calling EFI Application". That is the order of every machine made here.
	want(t, judge(t, genoa()))
	separator := func(pcr uint32, data ...byte) attesttest.Event {
		return attesttest.Event{PCR: pcr, Type: attesttest.EvSeparator, Data: data}
	}
	// Twice in one PCR, where what is measured between could pass for firmware's.
	want(t, judge(t, booted(append(attesttest.DirectBoot(), separator(4, 0, 0, 0, 0)))), logSeparator)
	// One that records an error, or something else.
	for _, data := range [][]byte{{1, 0, 0, 0}, {0, 0, 0}, nil, {0xFF, 0xFF, 0xFF, 0xFE}} {
		events := attesttest.DirectBoot()
		for i := range events {
			if events[i].Type == attesttest.EvSeparator && events[i].PCR == 3 {
				events[i].Data = data
			}
		}
		want(t, judge(t, booted(events)), logSeparator)
	}
	events := attesttest.DirectBoot()
	for i := range events {
		if events[i].Type == attesttest.EvSeparator {
			events[i].Data = []byte{0xFF, 0xFF, 0xFF, 0xFF}
		}
	}
	want(t, judge(t, booted(events)))
}

func TestV27_EventLogMalformed(t *testing.T) {
	le := binary.LittleEndian
	good := attesttest.Log(attesttest.DirectBoot())
	spec := 32                             // the Spec ID's data
	first := 32 + len(attesttest.SpecID()) // the first TCG_PCR_EVENT2
	at := func(off int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint32(b[off:], v); return b }
	}
	for name, edit := range map[string]func([]byte) []byte{
		"49 bytes":                   func(b []byte) []byte { return b[:49] },
		"one byte":                   func(b []byte) []byte { return b[:1] },
		"first event not in PCR 0":   at(0, 1),
		"first event not no-action":  at(4, 4),
		"Spec ID of two gigabytes":   at(28, 1<<31),
		"Spec ID of another format":  func(b []byte) []byte { copy(b[spec:], "Spec ID Event02"); return b },
		"Spec ID missing":            func(b []byte) []byte { return append(bytes.Clone(b[:28]), 0, 0, 0, 0) },
		"no banks":                   at(spec+24, 0),
		"nine banks":                 at(spec+24, 9),
		"four billion banks":         at(spec+24, 0xFFFFFFFF),
		"digest size of bank":        func(b []byte) []byte { le.PutUint16(b[spec+30:], 31); return b },
		"vendor information too big": func(b []byte) []byte { b[spec+32] = 200; return b },
		"no digests":                 at(first+8, 0),
		"65535 digests":              at(first+8, 65535),
		"unknown algorithm":          func(b []byte) []byte { le.PutUint16(b[first+12:], 0x1234); return b },
		"event of two gigabytes":     at(first+12+34, 1<<31),
		"event of 300 KiB":           at(first+12+34, 300<<10),
		"PCR 24":                     at(first, 24),
		"PCR of four billion":        at(first, 0xFFFFFFFF),
		"a megabyte of zeros":        func(b []byte) []byte { return append(b, make([]byte, 1<<20)...) },
		"zeros behind the last":      func(b []byte) []byte { return append(b, make([]byte, 64)...) },
		"bytes behind the last":      func(b []byte) []byte { return append(b, 1) },
		"startup locality 2": func([]byte) []byte {
			return attesttest.Log([]attesttest.Event{{PCR: 0, Type: attesttest.EvNoAction, Data: append([]byte("StartupLocality\x00"), 2)}})
		},
		"9000 events": func([]byte) []byte {
			return attesttest.Log(make([]attesttest.Event, 9000))
		},
		"bank twice":       func([]byte) []byte { return twoBanks(0x0B, 32, 0x0B, 32) },
		"bank of 65 bytes": func([]byte) []byte { return twoBanks(0x0B, 32, 0x12, 65) },
	} {
		t.Run(name, func(t *testing.T) {
			log := edit(bytes.Clone(good))
			m := withEvidence(func(ev *evidence.Evidence) { ev.EventLog = log })
			want(t, judge(t, m), logMalformed)
		})
	}
	// Truncation anywhere is noticed, if not by the form then by the replay.
	for n := 1; n < len(good); n += 7 {
		m := withEvidence(func(ev *evidence.Evidence) { ev.EventLog = good[:n] })
		if v := judge(t, m); v.Trusted() {
			t.Errorf("trusted with %d of %d bytes of the log", n, len(good))
		}
	}
	// The first fault is the one that is named.
	for what, log := range map[string][]byte{
		"truncated: 3 bytes are missing":                good[:1],
		"truncated: 11 bytes are missing":               good[:first-11],
		"first event is of type 0x4 in PCR 0":           at(4, 4)(bytes.Clone(good)),
		"no Spec ID of a crypto-agile log":              append(bytes.Clone(good[:28]), 0, 0, 0, 0),
		"0 banks, expected 1 to 8":                      at(spec+24, 0)(bytes.Clone(good)),
		"9 banks, expected 1 to 8":                      at(spec+24, 9)(bytes.Clone(good)),
		"the Spec ID's length does not fit":             func() []byte { b := bytes.Clone(good); b[spec+32] = 200; return b }(),
		"event 0 has 2 digests, expected 1":             at(first+8, 2)(bytes.Clone(good)),
		"event 0 has a digest of algorithm 0x1234":      func() []byte { b := bytes.Clone(good); le.PutUint16(b[first+12:], 0x1234); return b }(),
		"event 0 has 262145 bytes of data, expected":    at(first+12+34, 256<<10+1)(bytes.Clone(good)),
		"truncated: 1 bytes are missing":                good[:len(good)-1],
		"more than 8192 events":                         attesttest.Log(make([]attesttest.Event, 8193)),
		"found 1048577 bytes, expected at most 1048576": make([]byte, 1<<20+1),
	} {
		if _, err := attest.ParseEventLog(log); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("error is %v, expected %q", err, what)
		}
	}
	// A Spec ID that ends before the size of the vendor information.
	short := bytes.Clone(good)
	le.PutUint32(short[28:], uint32(len(attesttest.SpecID())-1))
	if _, err := attest.ParseEventLog(append(short[:first-1], short[first:]...)); err == nil {
		t.Error("a Spec ID cut short was accepted")
	}
	// The bounds themselves.
	big := func(n int) []byte {
		return attesttest.Log([]attesttest.Event{{Data: make([]byte, 256<<10)}, {Data: make([]byte, 256<<10)}, {Data: make([]byte, 256<<10)}, {Data: make([]byte, n)}})
	}
	most := big(1<<20 - len(big(0)))
	if l, err := attest.ParseEventLog(most); err != nil || len(l.Events) != 4 || len(most) != 1<<20 {
		t.Errorf("a log of %d bytes: %v", len(most), err)
	}
	if l, err := attest.ParseEventLog(attesttest.Log(make([]attesttest.Event, 8192))); err != nil || len(l.Events) != 8192 {
		t.Errorf("8192 events: %v", err)
	}
	// A log without the quoted bank.
	other := twoBanks(0x04, 20, 0x0C, 48)
	m := withEvidence(func(ev *evidence.Evidence) { ev.EventLog = other })
	want(t, judge(t, m), is(attest.CheckEventLogForm, attest.ReasonLogBank))
	// A bank that nobody knows, of a size that fits, is passed over.
	if _, err := attest.ParseEventLog(twoBanks(0x0B, 32, 0x12, 32)); err != nil {
		t.Errorf("a log with SM3: %v", err)
	}
	// The real log of 49 bytes.
	if _, err := attest.ParseEventLog(readFile(t, filepath.Join(dataDir(t), "eventlogs", "short_no_action_eventlog"))); err == nil {
		t.Error("the log of 49 bytes was accepted")
	}
}

// twoBanks is a log without events that announces two banks.
func twoBanks(a, aSize, b, bSize uint16) []byte {
	return banksLog(nil, [][2]uint16{{a, aSize}, {b, bSize}})
}

// banksLog is the first event of a log with banks, and with bytes at the end of
// the Spec ID that nothing announces.
func banksLog(tail []byte, banks [][2]uint16) []byte {
	le := binary.LittleEndian
	spec := bytes.Clone(attesttest.SpecID()[:24])
	spec = le.AppendUint32(spec, uint32(len(banks)))
	for _, b := range banks {
		spec = le.AppendUint16(le.AppendUint16(spec, b[0]), b[1])
	}
	spec = append(append(spec, 0), tail...)
	out := le.AppendUint32(make([]byte, 0, 64), 0)
	out = le.AppendUint32(out, attesttest.EvNoAction)
	out = append(out, make([]byte, 20)...)
	out = le.AppendUint32(out, uint32(len(spec)))
	return append(out, spec...)
}

// Banks of a log: how many, which sizes, and which digests an event must have.
func TestEventLogBanks(t *testing.T) {
	le := binary.LittleEndian
	many := func(n int) (list [][2]uint16) {
		for i := range n {
			list = append(list, [2]uint16{uint16(0x100 + i), 32})
		}
		return list
	}
	both := [][2]uint16{{0x04, 20}, {0x0B, 32}}
	event := func(digests ...uint16) []byte {
		b := le.AppendUint32(le.AppendUint32(nil, 1), 4)
		b = le.AppendUint32(b, uint32(len(digests)))
		for _, alg := range digests {
			b = append(le.AppendUint16(b, alg), make([]byte, map[uint16]int{0x04: 20, 0x0B: 32}[alg])...)
		}
		return le.AppendUint32(b, 0)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	// A digest of a bank that nobody knows is passed over, event by event.
	odd := le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, 1), 4), 2)
	odd = append(le.AppendUint16(odd, 0x0B), make([]byte, 32)...)
	odd = le.AppendUint32(append(le.AppendUint16(odd, 0x99), make([]byte, 48)...), 0)
	l, err := attest.ParseEventLog(join(banksLog(nil, [][2]uint16{{0x0B, 32}, {0x99, 48}}), odd))
	if err != nil || len(l.Events) != 1 || len(l.Events[0].Digests) != 1 {
		t.Errorf("%+v, %v", l, err)
	}
	// An event that extends nothing may name any PCR.
	l, err = attest.ParseEventLog(attesttest.Log([]attesttest.Event{{PCR: 0xFFFFFFFF, Type: attesttest.EvNoAction}}))
	if err != nil || len(l.Events) != 1 {
		t.Fatalf("%+v, %v", l, err)
	}
	if values, err := l.Replay("sha256"); err != nil || !bytes.Equal(values[0], make([]byte, 32)) {
		t.Errorf("%x, %v", values[0], err)
	}
	for name, c := range map[string]struct {
		log  []byte
		what string // of the error; empty if the log is good
	}{
		"eight banks":             {banksLog(nil, many(8)), ""},
		"nine banks":              {banksLog(nil, many(9)), "9 banks, expected 1 to 8"},
		"unknown, of 64 bytes":    {banksLog(nil, [][2]uint16{{0x0B, 32}, {0x99, 64}}), ""},
		"unknown, of 65 bytes":    {banksLog(nil, [][2]uint16{{0x0B, 32}, {0x99, 65}}), "bank 0x0099 has digests of 65 bytes"},
		"SHA-256 of 31 bytes":     {banksLog(nil, [][2]uint16{{0x0B, 31}}), "bank 0x000b has digests of 31 bytes"},
		"twice":                   {banksLog(nil, [][2]uint16{{0x0B, 32}, {0x0B, 32}}), "bank 0x000b is listed twice"},
		"a byte behind":           {banksLog([]byte{0}, both), "the Spec ID's length does not fit"},
		"both digests":            {join(banksLog(nil, both), event(0x04, 0x0B)), ""},
		"both, the other way":     {join(banksLog(nil, both), event(0x0B, 0x04)), ""},
		"one digest":              {join(banksLog(nil, both), event(0x0B)), "event 0 has 1 digests, expected 2"},
		"three digests":           {join(banksLog(nil, both), event(0x0B, 0x04, 0x0B)), "event 0 has 3 digests, expected 2"},
		"the same digest twice":   {join(banksLog(nil, both), event(0x0B, 0x0B)), "event 0 has a digest of algorithm 0x000b, repeated or not announced"},
		"a digest of another":     {join(banksLog(nil, both), event(0x0B, 0x00)), "event 0 has a digest of algorithm 0x0000, repeated or not announced"},
		"the second event, again": {join(banksLog(nil, both), event(0x04, 0x0B), event(0x04)), "event 1 has 1 digests, expected 2"},
	} {
		l, err := attest.ParseEventLog(c.log)
		switch {
		case c.what == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.what != "" && (err == nil || !strings.Contains(err.Error(), c.what)):
			t.Errorf("%s: error is %v, expected %q", name, err, c.what)
		case c.what == "" && strings.HasPrefix(name, "both") && (!slices.Equal(l.Banks, []string{"sha1", "sha256"}) || len(l.Events[0].Digests["sha1"]) != 20 || len(l.Events[0].Digests["sha256"]) != 32):
			t.Errorf("%s: %+v", name, l)
		case name == "unknown, of 64 bytes" && !slices.Equal(l.Banks, []string{"sha256"}):
			t.Errorf("%s: banks are %q", name, l.Banks)
		}
	}
}

// TestRealEventLogs replays logs of real machines. The values are those of the
// machines' own PCRs as go-tpm-tools' tests have them (internal/test and
// server/eventlog_test.go).
func TestRealEventLogs(t *testing.T) {
	dir := filepath.Join(dataDir(t), "eventlogs")
	const separatorOnly = "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969"
	for name, want := range map[string]map[int]string{
		"ubuntu-2404-amd-sevsnp.bin": {
			0: "50597a27846e91d025eef597abbc89f72bff9af849094db97b0684d8bc4c515e",
			1: "57344e1cc8c6619413df33013a7cd67915459f967395af41db21c1fa7ca9c307",
			2: separatorOnly, 3: separatorOnly,
		},
		"cos-101-amd-sev.bin": {
			0:  "0f35c214608d93c7a6e68ae7359b4a8be5a0e99eea9107ece427c4dea4e439cf",
			1:  "6eb40f5b6bfafcb9914d486ce59404acd24bc13a6a3c45cda3b44c9d7053d638",
			2:  separatorOnly,
			3:  separatorOnly,
			4:  "6d9f1a1d461cf77517e8d4c488c53f338a71c5a8e2b81ab7011c14f72cbc9a80",
			5:  "d1a1ab23a5c3d98fbacff3891bad42d8e9257d61e1f683f42c6c9fa949bf96c5",
			6:  separatorOnly,
			7:  "2bc6edaa921f953cec0ffb28dad4f87114886603d6a782036502d28e69d97a48",
			8:  "ebb7c847c4ade99849bcffca236d32331224a530087a7ae4cb9f7db4c2e571b5",
			9:  "b5ad662e5eb9165825ee39ad66e851a67a193e0b87b27858f25ac58afa72ac57",
			14: "d0d95459205afae879514db7b85630f5d6b8272ed8c731bf92933dbc9fe99969",
		},
		"ubuntu-1804-amd-sev.bin": nil,
		"crypto_agile_eventlog":   nil,
		"sb_cert_eventlog":        nil,
	} {
		log, err := attest.ParseEventLog(readFile(t, filepath.Join(dir, name)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		values, err := log.Replay("sha256")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for pcr, v := range want {
			if got := hex.EncodeToString(values[pcr]); got != v {
				t.Errorf("%s: PCR %d is %s, expected %s", name, pcr, got, v)
			}
		}
		if fault := attest.EventDataFault(log); fault != "" {
			t.Errorf("%s: %s", name, fault)
		}
	}
	// A log of TPM 1.2's form, with SHA-1 alone, is none that could be judged.
	if _, err := attest.ParseEventLog(readFile(t, filepath.Join(dir, "ebs_event_missing_eventlog"))); err == nil {
		t.Error("a log of the old form was accepted")
	}
}

// The locality of TPM2_Startup is PCR 0's first value; nothing but its own event
// says it.
func TestStartupLocality(t *testing.T) {
	name := "StartupLocality\x00"
	for what, c := range map[string]struct {
		event attesttest.Event
		loc   uint8
	}{
		"its event":        {attesttest.Event{Type: attesttest.EvNoAction, Data: append([]byte(name), 3)}, 3},
		"locality 4":       {attesttest.Event{Type: attesttest.EvNoAction, Data: append([]byte(name), 4)}, 4},
		"another PCR":      {attesttest.Event{PCR: 1, Type: attesttest.EvNoAction, Data: append([]byte(name), 3)}, 0},
		"another type":     {attesttest.Event{Type: 4, Data: append([]byte(name), 3)}, 0},
		"a byte more":      {attesttest.Event{Type: attesttest.EvNoAction, Data: append([]byte(name), 3, 3)}, 0},
		"a byte less":      {attesttest.Event{Type: attesttest.EvNoAction, Data: []byte(name)}, 0},
		"another name":     {attesttest.Event{Type: attesttest.EvNoAction, Data: append([]byte("StartupLocalitY\x00"), 3)}, 0},
		"a name cut short": {attesttest.Event{Type: attesttest.EvNoAction, Data: []byte("Startup")}, 0},
	} {
		l, err := attest.ParseEventLog(attesttest.Log([]attesttest.Event{c.event}))
		if err != nil || l.StartupLocality != c.loc {
			t.Errorf("%s: locality %d, %v", what, l.StartupLocality, err)
		}
	}
}

// Only a bank that the log has, and that can be computed, is replayed.
func TestReplayOfBank(t *testing.T) {
	l, err := attest.ParseEventLog(twoBanks(0x04, 20, 0x0B, 32))
	if err != nil {
		t.Fatal(err)
	}
	for bank, ok := range map[string]bool{"sha256": true, "sha384": false, "sha1": false, "md5": false, "": false} {
		if _, err := l.Replay(bank); (err == nil) != ok {
			t.Errorf("%q: %v", bank, err)
		}
	}
}

// Without a log that can be read, what depends on it is not made.
func TestWhatDependsOnTheEventLog(t *testing.T) {
	for reason, log := range map[attest.Reason][]byte{
		attest.ReasonLogMissing: nil, attest.ReasonLogMalformed: {1}, attest.ReasonLogBank: twoBanks(0x04, 20, 0x0C, 48),
	} {
		v := judge(t, withEvidence(func(ev *evidence.Evidence) { ev.EventLog = log }))
		want(t, v, is(attest.CheckEventLogForm, reason))
		for _, name := range []attest.CheckName{attest.CheckEventLogReplay, attest.CheckEventLogData} {
			if c := check(t, v, name); c.Reason != string(attest.ReasonNotMade) || !strings.Contains(c.Note, "event-log-form failed: "+string(reason)) {
				t.Errorf("%+v", c)
			}
		}
	}
}

// What a replay compared is shown PCR by PCR.
func TestReplayInWords(t *testing.T) {
	good := judge(t, genoa())
	if c := check(t, good, attest.CheckEventLogReplay); c.Found != "PCRs 0-9" {
		t.Errorf("%+v", c)
	}
	n := 0
	for _, e := range attesttest.DirectBoot() {
		if e.Type == attesttest.EvSeparator {
			n++
		}
	}
	if c := check(t, good, attest.CheckEventLogData); n == 0 || !strings.HasSuffix(c.Found, fmt.Sprintf(" of %d events have data that was hashed", len(attesttest.DirectBoot()))) || strings.HasPrefix(c.Found, "0 ") {
		t.Errorf("%+v", c)
	}
	ones, twos := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	m := genoa()
	v := judge(t, withEvidence(func(ev *evidence.Evidence) { ev.PCRs[4].Value, ev.PCRs[9].Value = ones, twos }))
	c := check(t, v, attest.CheckEventLogReplay)
	if c.Expected != fmt.Sprintf("4: %x\n9: %x", ones, twos) || c.Found != fmt.Sprintf("4: %x\n9: %x", m.TPM.PCRs[4], m.TPM.PCRs[9]) {
		t.Errorf("%+v", c)
	}
	// A bank that the log has and nobody should use.
	v = judge(t, withEvidence(func(ev *evidence.Evidence) { ev.PCRBank, ev.EventLog = "sha1", twoBanks(0x04, 20, 0x0B, 32) }))
	if c := check(t, v, attest.CheckEventLogReplay); c.Reason != string(attest.ReasonLogReplay) || !strings.Contains(c.Found, `no digests for bank "sha1"`) {
		t.Errorf("%+v", c)
	}
	// PCRs of a dynamic launch start as ones.
	l, err := attest.ParseEventLog(attesttest.Log(nil))
	if err != nil {
		t.Fatal(err)
	}
	values, err := l.Replay("sha256")
	if err != nil {
		t.Fatal(err)
	}
	for i, value := range values {
		first := byte(0)
		if i >= 17 && i <= 22 {
			first = 0xFF
		}
		if !bytes.Equal(value, bytes.Repeat([]byte{first}, 32)) {
			t.Errorf("PCR %d starts as %x", i, value)
		}
	}
}
