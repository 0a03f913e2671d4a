package attest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"strings"

	"github.com/evtpm/evtpm/attest/evidence"
)

// Bounds of an event log. A boot makes some hundred events in some 50 KiB.
const (
	maxEventLog   = 1 << 20
	maxEvents     = 8192
	maxEventData  = 256 << 10
	maxLogBanks   = 8
	maxDigestSize = 64
	firmwarePCRs  = 9 // PCRs 0 to this one are extended through the log alone
	pcrCount      = 24
	specIDName    = "Spec ID Event03"
	startupName   = "StartupLocality"
)

// Event types (TCG PC Client Platform Firmware Profile, 10.4.1).
const (
	evNoAction          = 0x00000003
	evSeparator         = 0x00000004
	evSCRTMVersion      = 0x00000008
	evEFIVariableDriver = 0x80000001
	evEFIGPT            = 0x80000006
	evEFIAction         = 0x80000007
	evEFIVariableBoot2  = 0x8000000C
)

// ErrEventLog is wrapped by every error about a malformed event log.
var ErrEventLog = errors.New("malformed event log")

// An Event is one entry of an event log. Only the digests were extended; type
// and data are claims, but for the types that [checkEventData] re-hashes.
type Event struct {
	PCR     int
	Type    uint32
	Digests map[string][]byte // by bank: "sha1", "sha256", "sha384", "sha512"
	Data    []byte
}

// An EventLog is a parsed TCG crypto-agile event log.
type EventLog struct {
	// Banks are the banks that every event has a digest for.
	Banks  []string
	Events []Event
	// StartupLocality is the locality of TPM2_Startup, which is PCR 0's initial
	// value.
	StartupLocality uint8
}

// bankNames maps algorithm identifiers to names and digest sizes.
var bankNames = map[uint16]struct {
	name string
	size int
}{
	algSHA1:   {"sha1", 20},
	algSHA256: {"sha256", 32},
	algSHA384: {"sha384", 48},
	algSHA512: {"sha512", 64},
}

// logReader reads little-endian fields; the first fault sticks, and what is read
// after it is zero.
type logReader struct {
	b   []byte
	err error
}

func (r *logReader) take(n uint64) []byte {
	if r.err != nil || n > uint64(len(r.b)) {
		if r.err == nil {
			r.err = fmt.Errorf("%w: truncated: %d bytes are missing", ErrEventLog, n-uint64(len(r.b)))
		}
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *logReader) u8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *logReader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *logReader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *logReader) fault(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrEventLog, fmt.Sprintf(format, args...))
	}
}

// ParseEventLog reads a crypto-agile event log (TCG PC Client Platform Firmware
// Profile, 10.2): first a TCG_PCR_EVENT with the Spec ID, then TCG_PCR_EVENT2
// up to the end of the bytes.
func ParseEventLog(b []byte) (*EventLog, error) {
	if len(b) > maxEventLog {
		return nil, fmt.Errorf("%w: found %d bytes, expected at most %d", ErrEventLog, len(b), maxEventLog)
	}
	r := &logReader{b: b}
	pcr, kind := r.u32(), r.u32()
	r.take(20) // SHA-1 digest of the first event, zero
	header := r.take(uint64(r.u32()))
	if pcr != 0 || kind != evNoAction {
		r.fault("first event is of type %#x in PCR %d, expected the Spec ID", kind, pcr)
	}
	sizes, log := parseSpecID(header, r)
	for r.err == nil && len(r.b) > 0 {
		if len(log.Events) == maxEvents {
			r.fault("more than %d events", maxEvents)
			break
		}
		parseEvent(r, log, sizes)
	}
	if r.err != nil {
		return nil, r.err
	}
	return log, nil
}

// parseSpecID reads the Spec ID event: which banks the log has.
func parseSpecID(b []byte, outer *logReader) (sizes map[uint16]int, log *EventLog) {
	sizes, log = map[uint16]int{}, new(EventLog)
	r := &logReader{b: b}
	name := r.take(16)
	r.take(8) // platform class, version, errata, size of UINTN
	n := r.u32()
	switch {
	case string(bytes.TrimRight(name, "\x00")) != specIDName:
		outer.fault("no Spec ID of a crypto-agile log")
		return sizes, log
	case n == 0 || n > maxLogBanks:
		outer.fault("%d banks, expected 1 to %d", n, maxLogBanks)
		return sizes, log
	}
	for range n {
		alg, size := r.u16(), int(r.u16())
		known, ok := bankNames[alg]
		_, again := sizes[alg]
		switch {
		case again:
			outer.fault("bank %#04x is listed twice", alg)
		case ok && size != known.size, size > maxDigestSize:
			outer.fault("bank %#04x has digests of %d bytes", alg, size)
		case ok:
			log.Banks = append(log.Banks, known.name)
		}
		sizes[alg] = size
	}
	r.take(uint64(r.u8())) // vendor information
	if r.err != nil || len(r.b) > 0 {
		outer.fault("the Spec ID's length does not fit")
	}
	return sizes, log
}

// parseEvent reads one TCG_PCR_EVENT2.
func parseEvent(r *logReader, log *EventLog, sizes map[uint16]int) {
	e := Event{Digests: map[string][]byte{}}
	pcr := r.u32()
	e.Type = r.u32()
	n := r.u32()
	if int64(n) != int64(len(sizes)) {
		r.fault("event %d has %d digests, expected %d", len(log.Events), n, len(sizes))
		return
	}
	seen := map[uint16]bool{}
	for range n {
		alg := r.u16()
		size, ok := sizes[alg]
		if !ok || seen[alg] {
			r.fault("event %d has a digest of algorithm %#04x, repeated or not announced", len(log.Events), alg)
			return
		}
		seen[alg] = true
		digest := r.take(uint64(size))
		if known, ok := bankNames[alg]; ok {
			e.Digests[known.name] = digest
		}
	}
	size := r.u32()
	if size > maxEventData {
		r.fault("event %d has %d bytes of data, expected at most %d", len(log.Events), size, maxEventData)
		return
	}
	e.Data = r.take(uint64(size))
	// An event that extends nothing may name a PCR that does not exist.
	if pcr >= pcrCount && e.Type != evNoAction {
		r.fault("event %d extends PCR %d", len(log.Events), pcr)
		return
	}
	e.PCR = int(min(pcr, pcrCount))
	if e.Type == evNoAction {
		log.noteStartup(e, r)
	}
	log.Events = append(log.Events, e)
}

// noteStartup takes the locality of TPM2_Startup from its event.
func (l *EventLog) noteStartup(e Event, r *logReader) {
	if e.PCR != 0 || len(e.Data) != 17 || string(bytes.TrimRight(e.Data[:16], "\x00")) != startupName {
		return
	}
	switch loc := e.Data[16]; loc {
	case 0, 3, 4:
		l.StartupLocality = loc
	default:
		r.fault("startup locality is %d, expected 0, 3 or 4", loc)
	}
}

// hasBank reports whether every event has a digest for a bank.
func (l *EventLog) hasBank(bank string) bool {
	for _, b := range l.Banks {
		if b == bank {
			return true
		}
	}
	return false
}

// Replay computes the PCRs that a log's events give in a bank.
func (l *EventLog) Replay(bank string) (values [pcrCount][]byte, err error) {
	_, newHash, size, ok := bankHash(bank)
	if !ok || !l.hasBank(bank) {
		return values, fmt.Errorf("%w: no digests for bank %q", ErrEventLog, bank)
	}
	for i := range values {
		values[i] = make([]byte, size)
	}
	values[0][size-1] = l.StartupLocality
	for i := 17; i <= 22; i++ {
		// PCRs of a dynamic launch start as ones (PC Client Platform TPM Profile).
		for j := range values[i] {
			values[i][j] = 0xFF
		}
	}
	for _, e := range l.Events {
		if e.Type == evNoAction {
			continue
		}
		values[e.PCR] = extend(newHash, values[e.PCR], e.Digests[bank])
	}
	return values, nil
}

func extend(newHash func() hash.Hash, pcr, digest []byte) []byte {
	h := newHash()
	h.Write(pcr)
	h.Write(digest)
	return h.Sum(nil)
}

// checkEventLog reads and replays the event log: form, replay, data.
func checkEventLog(ev *evidence.Evidence, p *Policy) []Check {
	if len(ev.EventLog) == 0 {
		if p.VTPM.EventLog != EventLogRequired {
			note := "the evidence has no event log, and the policy does not ask for one"
			return []Check{skip(CheckEventLogForm, note), skip(CheckEventLogReplay, note), skip(CheckEventLogData, note)}
		}
		c := fail(CheckEventLogForm, ReasonLogMissing, "an event log", "none")
		return []Check{c, notMade(CheckEventLogReplay, c), notMade(CheckEventLogData, c)}
	}
	log, err := ParseEventLog(ev.EventLog)
	if err != nil {
		c := fail(CheckEventLogForm, ReasonLogMalformed, "a TCG crypto-agile event log", oneLine(err))
		return []Check{c, notMade(CheckEventLogReplay, c), notMade(CheckEventLogData, c)}
	}
	if !log.hasBank(ev.PCRBank) {
		c := fail(CheckEventLogForm, ReasonLogBank, "bank "+ev.PCRBank, strings.Join(log.Banks, ", "))
		return []Check{c, notMade(CheckEventLogReplay, c), notMade(CheckEventLogData, c)}
	}
	form := pass(CheckEventLogForm, fmt.Sprintf("%d events, banks %s", len(log.Events), strings.Join(log.Banks, ", ")))
	return []Check{form, checkReplay(log, ev), checkEventData(log)}
}

// checkReplay compares the quoted PCRs with the log's. What later software
// extends by itself (IMA into PCR 10, systemd from 11 on) is in no firmware log,
// so only PCRs 0 to 9 are judged.
func checkReplay(log *EventLog, ev *evidence.Evidence) Check {
	if fault := log.separatorFault(); fault != "" {
		return fail(CheckEventLogReplay, ReasonLogSeparator, "one separator of 00000000 or FFFFFFFF a PCR", fault)
	}
	values, err := log.Replay(ev.PCRBank)
	if err != nil {
		return fail(CheckEventLogReplay, ReasonLogReplay, "bank "+ev.PCRBank, oneLine(err))
	}
	var wants, finds []string
	var judged []int
	for _, p := range ev.PCRs {
		if p.PCR < 0 || p.PCR > firmwarePCRs {
			continue
		}
		judged = append(judged, p.PCR)
		if !bytes.Equal(p.Value, values[p.PCR]) {
			wants = append(wants, fmt.Sprintf("%d: %x", p.PCR, p.Value))
			finds = append(finds, fmt.Sprintf("%d: %x", p.PCR, values[p.PCR]))
		}
	}
	if len(finds) > 0 {
		return fail(CheckEventLogReplay, ReasonLogReplay, strings.Join(wants, "\n"), strings.Join(finds, "\n"))
	}
	if len(judged) == 0 {
		return fail(CheckEventLogReplay, ReasonLogReplay, "PCRs 0 to 9", "none of them were quoted")
	}
	return pass(CheckEventLogReplay, "PCRs "+intList(judged))
}

// separatorFault looks for PCRs with two separators, or with one that records an
// error. That an EFI application is measured before "Calling EFI Application" is
// no fault: direct kernel boot does so.
func (l *EventLog) separatorFault() string {
	var seen [pcrCount]bool
	for _, e := range l.Events {
		if e.Type != evSeparator {
			continue
		}
		if seen[e.PCR] {
			return fmt.Sprintf("PCR %d has two", e.PCR)
		}
		seen[e.PCR] = true
		if !bytes.Equal(e.Data, []byte{0, 0, 0, 0}) && !bytes.Equal(e.Data, []byte{0xFF, 0xFF, 0xFF, 0xFF}) {
			return fmt.Sprintf("PCR %d has %x", e.PCR, clip(e.Data, 16))
		}
	}
	return ""
}

// hashesData reports whether an event's digest is that of its data, by type
// (TCG PC Client Platform Firmware Profile, table of events). Authorities of
// variables are not among them: shim logs more than it hashes.
func hashesData(kind uint32) bool {
	switch kind {
	case evSeparator, evSCRTMVersion, evEFIAction, evEFIVariableDriver, evEFIVariableBoot2, evEFIGPT:
		return true
	}
	return false
}

// checkEventData re-hashes the data of events whose digest is that of their
// data, in every bank that can be computed.
func checkEventData(log *EventLog) Check {
	n := 0
	for i, e := range log.Events {
		if !hashesData(e.Type) {
			continue
		}
		for _, bank := range log.Banks {
			_, newHash, _, ok := bankHash(bank)
			if !ok {
				continue
			}
			h := newHash()
			h.Write(e.Data)
			if got := h.Sum(nil); !bytes.Equal(got, e.Digests[bank]) {
				return fail(CheckEventLogData, ReasonLogData,
					fmt.Sprintf("event %d (type %#x, PCR %d): %x", i, e.Type, e.PCR, e.Digests[bank]), fmt.Sprintf("%x", got))
			}
		}
		n++
	}
	return pass(CheckEventLogData, fmt.Sprintf("%d of %d events have data that was hashed", n, len(log.Events)))
}
