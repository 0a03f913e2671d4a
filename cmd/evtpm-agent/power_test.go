//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// attr makes a netlink attribute: length and type u16, value, padding.
func attr(kind uint16, value ...[]byte) []byte {
	v := bytes.Join(value, nil)
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(v)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, v...)
	return append(b, make([]byte, -len(b)&3)...)
}

// genl makes a generic netlink message.
func genl(kind uint16, attrs ...[]byte) []byte {
	body := bytes.Join(attrs, nil)
	b := make([]byte, 20, 20+len(body))
	binary.NativeEndian.PutUint32(b, uint32(20+len(body)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	return append(b, body...)
}

func u32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// acpi makes an event as drivers/acpi/event.c sends it.
func acpi(class string) []byte {
	event := make([]byte, 44)
	copy(event, class)
	copy(event[20:], "LNXPWRBN:00")
	return genl(29, attr(acpiAttrEvent, event))
}

func TestPowerButton(t *testing.T) {
	for name, tc := range map[string]struct {
		msg  []byte
		want bool
	}{
		"pressed":        {acpi("button/power"), true},
		"lid":            {acpi("button/lid"), false},
		"longer name":    {acpi("button/power2"), false},
		"full name":      {acpi("button/power12345678"), false},
		"other kind":     {genl(29, attr(2, []byte("button/power\x00\x00\x00\x00\x00\x00\x00\x00"))), false},
		"short event":    {genl(29, attr(acpiAttrEvent, []byte("button/power"))), false},
		"cut":            {acpi("button/power")[:30], false},
		"nothing":        {nil, false},
		"attribute of 0": {genl(29, []byte{0, 0, 1, 0}, attr(acpiAttrEvent)), false},
	} {
		if got := isPowerButton(tc.msg); got != tc.want {
			t.Errorf("%s: %v, expected %v", name, got, tc.want)
		}
	}
}

func TestACPIGroup(t *testing.T) {
	group := func(i uint16, name string, id uint32) []byte {
		return attr(i, attr(unix.CTRL_ATTR_MCAST_GRP_ID, u32(id)), attr(unix.CTRL_ATTR_MCAST_GRP_NAME, []byte(name+"\x00")))
	}
	answer := genl(unix.GENL_ID_CTRL, attr(unix.CTRL_ATTR_FAMILY_NAME, []byte("acpi_event\x00")),
		attr(unix.CTRL_ATTR_MCAST_GROUPS|0x8000, group(1, "other", 5), group(2, acpiGroup, 7)))
	if id, err := groupOf(answer, acpiGroup); err != nil || id != 7 {
		t.Errorf("group %d, %v; expected 7", id, err)
	}
	if _, err := groupOf(answer, "none"); err == nil || !strings.Contains(err.Error(), `no group "none"`) {
		t.Errorf("no such group: %v", err)
	}
	if _, err := groupOf(genl(unix.NLMSG_ERROR), acpiGroup); err == nil || !strings.Contains(err.Error(), "not known") {
		t.Errorf("no such family: %v", err)
	}
	for i := range answer {
		groupOf(answer[:i], acpiGroup) // must not panic
	}
	if want := genl(unix.GENL_ID_CTRL, attr(unix.CTRL_ATTR_FAMILY_NAME, []byte("acpi_event\x00"))); !bytes.Equal(getFamily(acpiFamily)[20:], want[20:]) {
		t.Errorf("request % x", getFamily(acpiFamily))
	}
}
