//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The kernel tells of the power button by generic netlink: family "acpi_event",
// group "acpi_mc_group" (Linux drivers/acpi/event.c). An event is
//
//	0   device class, 20 bytes, NUL-padded: "button/power"
//	20  bus id, 15 bytes
//	36  type u32
//	40  data u32
//
// Numbers in netlink messages are in the machine's byte order.
const (
	acpiFamily      = "acpi_event"
	acpiGroup       = "acpi_mc_group"
	acpiAttrEvent   = 1
	acpiClassSize   = 20
	powerButton     = "button/power"
	genlHeaderSize  = 4
	attrHeaderSize  = 4
	nlHeaderSize    = unix.SizeofNlMsghdr
	netlinkReadSize = 32 << 10
	nlaTypeMask     = 0x3fff // without the flags NLA_F_NESTED and NLA_F_NET_BYTEORDER
)

// waitForPowerButton returns nil when the power button was pressed.
func waitForPowerButton() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	if err := unix.Sendto(fd, getFamily(acpiFamily), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	buf := make([]byte, netlinkReadSize)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	group, err := groupOf(buf[:n], acpiGroup)
	if err != nil {
		return fmt.Errorf("generic netlink family %s: %w", acpiFamily, err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(group)); err != nil {
		return fmt.Errorf("generic netlink group %s: %w", acpiGroup, err)
	}
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOBUFS) {
			continue
		}
		if err != nil {
			return fmt.Errorf("netlink: %w", err)
		}
		if isPowerButton(buf[:n]) {
			return nil
		}
	}
}

// getFamily makes a CTRL_CMD_GETFAMILY request.
func getFamily(name string) []byte {
	attr := append([]byte(name), 0)
	b := make([]byte, nlHeaderSize, 64)
	b = append(b, unix.CTRL_CMD_GETFAMILY, 1, 0, 0)
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeaderSize+len(attr)))
	b = binary.NativeEndian.AppendUint16(b, unix.CTRL_ATTR_FAMILY_NAME)
	b = append(b, attr...)
	b = append(b, make([]byte, -len(b)&3)...)
	binary.NativeEndian.PutUint32(b[0:], uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.GENL_ID_CTRL)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	return b
}

// groupOf finds a multicast group's number in the answer to getFamily.
func groupOf(msg []byte, group string) (uint32, error) {
	kind, payload, err := message(msg)
	if err != nil {
		return 0, err
	}
	if kind == unix.NLMSG_ERROR {
		return 0, errors.New("not known to this kernel")
	}
	for _, groups := range attributes(payload, unix.CTRL_ATTR_MCAST_GROUPS) {
		for i := uint16(1); ; i++ {
			entry := attributes(groups, i)
			if len(entry) == 0 {
				break
			}
			name := attributes(entry[0], unix.CTRL_ATTR_MCAST_GRP_NAME)
			id := attributes(entry[0], unix.CTRL_ATTR_MCAST_GRP_ID)
			if len(name) > 0 && string(bytes.TrimRight(name[0], "\x00")) == group && len(id) > 0 && len(id[0]) == 4 {
				return binary.NativeEndian.Uint32(id[0]), nil
			}
		}
	}
	return 0, fmt.Errorf("found no group %q", group)
}

// isPowerButton says whether a message is about the power button.
func isPowerButton(msg []byte) bool {
	_, payload, err := message(msg)
	if err != nil {
		return false
	}
	for _, event := range attributes(payload, acpiAttrEvent) {
		if len(event) >= acpiClassSize {
			class, _, _ := bytes.Cut(event[:acpiClassSize], []byte{0})
			if string(class) == powerButton {
				return true
			}
		}
	}
	return false
}

// message returns the type of a generic netlink message and its attributes.
func message(b []byte) (kind uint16, payload []byte, err error) {
	if len(b) < nlHeaderSize {
		return 0, nil, fmt.Errorf("message of %d bytes", len(b))
	}
	n := binary.NativeEndian.Uint32(b)
	if n < nlHeaderSize+genlHeaderSize || uint64(n) > uint64(len(b)) {
		return 0, nil, fmt.Errorf("message says %d bytes of %d", n, len(b))
	}
	return binary.NativeEndian.Uint16(b[4:]), b[nlHeaderSize+genlHeaderSize : n], nil
}

// attributes returns the values of the attributes of one type.
func attributes(b []byte, kind uint16) [][]byte {
	var out [][]byte
	for len(b) >= attrHeaderSize {
		n := int(binary.NativeEndian.Uint16(b))
		if n < attrHeaderSize || n > len(b) {
			break
		}
		if binary.NativeEndian.Uint16(b[2:])&nlaTypeMask == kind {
			out = append(out, b[attrHeaderSize:n])
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return out
}
