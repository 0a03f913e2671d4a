package sev

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestStatus: the fields lie where the kernel's header has them.
func TestStatus(t *testing.T) {
	b := [statusSize]byte{0: 1, 1: 55, 2: 1, 3: 1, 8: 1}
	binary.LittleEndian.PutUint32(b[4:], 40)
	binary.LittleEndian.PutUint32(b[12:], 7)
	binary.LittleEndian.PutUint64(b[16:], 0x0102030405060708)
	binary.LittleEndian.PutUint64(b[24:], 0x1112131415161718)
	want := Status{
		APIMajor: 1, APIMinor: 55, Build: 40, Initialized: true, RMP: true, MaskChipID: true, Guests: 7,
		CurrentTCB: 0x0102030405060708, ReportedTCB: 0x1112131415161718,
	}
	if diff := cmp.Diff(want, parseStatus(b)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(Status{}, parseStatus([statusSize]byte{2: 2, 3: 0xfe, 8: 0xfe})); diff != "" {
		t.Error(diff)
	}
}

func TestID(t *testing.T) {
	two := bytes.Repeat([]byte{1}, 64)
	two = append(two, bytes.Repeat([]byte{2}, 64)...)
	for name, c := range map[string]struct {
		length uint32
		want   []byte
		fault  string
	}{
		"one socket":  {64, two[:64], ""},
		"two sockets": {128, two[:64], ""},
		"Turin":       {8, append(bytes.Clone(two[:8]), make([]byte, 56)...), ""},
		"none":        {0, nil, "found an id of 0 bytes"},
		"short":       {7, nil, "found an id of 7 bytes"},
		"long":        {129, nil, "found an id of 129 bytes"},
	} {
		id, err := parseID(two, c.length)
		if !bytes.Equal(id, c.want) || (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%s: %x, %v", name, id, err)
		}
	}
	if id, err := parseID(make([]byte, maxIDs), 64); err == nil || !strings.Contains(err.Error(), "zeros") {
		t.Errorf("zeros: %x, %v", id, err)
	}
}

// A file that is no such device refuses the request instead of filling it in.
func TestNoDevice(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if s, err := PlatformStatus(f); err == nil || !strings.HasPrefix(err.Error(), "SNP_PLATFORM_STATUS: ") {
		t.Errorf("found %+v, %v", s, err)
	}
	if id, err := ChipID(f); err == nil || !strings.HasPrefix(err.Error(), "GET_ID: ") {
		t.Errorf("found %x, %v", id, err)
	}
}
