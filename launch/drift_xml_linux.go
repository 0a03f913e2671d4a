package launch

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// An xmlElement is an XML element without anything that needs an order.
type xmlElement struct {
	name  string // as it is written, qemu:arg
	attrs map[string]string
	text  string
	in    []*xmlElement
}

// maxElementDepth bounds how deep elements of a domain nest.
const maxElementDepth = 32

// parseElement reads a document's element.
func parseElement(doc []byte) (*xmlElement, error) {
	d := xml.NewDecoder(bytes.NewReader(doc))
	root := new(xmlElement)
	open := []*xmlElement{root}
	for {
		t, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		at := open[len(open)-1]
		switch t := t.(type) {
		case xml.StartElement:
			if len(open) > maxElementDepth {
				return nil, fmt.Errorf("elements nest deeper than %d", maxElementDepth)
			}
			e := &xmlElement{name: qualified(t.Name), attrs: map[string]string{}}
			for _, a := range t.Attr {
				e.attrs[qualified(a.Name)] = a.Value
			}
			at.in = append(at.in, e)
			open = append(open, e)
		case xml.EndElement:
			if len(open) == 1 || at.name != qualified(t.Name) {
				return nil, fmt.Errorf("found the end of <%s>", clip(qualified(t.Name)))
			}
			at.text = strings.TrimSpace(at.text)
			open = open[:len(open)-1]
		case xml.CharData:
			at.text += string(t)
		}
	}
	if len(open) != 1 || len(root.in) != 1 {
		return nil, errors.New("expected one element")
	}
	return root.in[0], nil
}

func qualified(n xml.Name) string {
	if n.Space == "" {
		return n.Local
	}
	return n.Space + ":" + n.Local
}

// child returns the first element of the name; nil when there is none.
func (e *xmlElement) child(name string) *xmlElement {
	for _, c := range e.in {
		if c.name == name {
			return c
		}
	}
	return nil
}

// CompareDomains holds a domain as libvirt runs it against the one that it was
// asked to run. All that was asked for must be there, as it was asked for; of
// devices, of what is loaded and of what goes past libvirt, nothing else may be.
func CompareDomains(asked, live []byte) error {
	a, err := parseElement(asked)
	if err != nil {
		return fmt.Errorf("domain: %w", err)
	}
	l, err := parseElement(live)
	if err != nil {
		return fmt.Errorf("libvirt's domain: %w", err)
	}
	c := new(domainComparison)
	c.element("domain", a, l)
	if found := l.child("devices"); found != nil && a.child("devices") != nil {
		c.devices(a.child("devices"), found)
	}
	for _, name := range []string{"launchSecurity", "qemu:commandline", "qemu:override", "qemu:deprecation", "sysinfo", "iothreads", "os/nvram"} {
		if found := l.find(name); found != nil && a.find(name) == nil {
			c.drift.differs = append(c.drift.differs, "domain/"+name+": found, expected none")
		}
	}
	return c.drift.err()
}

// find returns what a path of names leads to.
func (e *xmlElement) find(path string) *xmlElement {
	for name := range strings.SplitSeq(path, "/") {
		if e = e.child(name); e == nil {
			return nil
		}
	}
	return e
}

type domainComparison struct{ drift driftError }

// element compares attributes, text, and what is in it, of what was asked for.
func (c *domainComparison) element(path string, asked, live *xmlElement) {
	for _, name := range slices.Sorted(maps.Keys(asked.attrs)) {
		want := asked.attrs[name]
		if strings.HasPrefix(name, "xmlns") {
			continue
		}
		if found := live.attrs[name]; !sameValue(path+"@"+name, want, found) {
			c.drift.add(path+"@"+name, found, want)
		}
	}
	if path == "domain/memory" {
		if a, l := domainBytes(asked), domainBytes(live); a != l {
			c.drift.add(path, live.text, asked.text)
		}
		return
	}
	if !sameValue(path, asked.text, live.text) {
		c.drift.add(path, live.text, asked.text)
	}
	if path == "domain/devices" {
		return // in no order
	}
	seen := map[string]int{}
	for _, want := range asked.in {
		n := seen[want.name]
		seen[want.name]++
		below := path + "/" + want.name
		found := live.nth(want.name, n)
		if found == nil {
			c.drift.differs = append(c.drift.differs, below+": found none, expected one")
			continue
		}
		c.element(below, want, found)
	}
	// Arguments are QEMU's, each of them.
	if path == "domain/qemu:commandline" && len(live.in) != len(asked.in) {
		c.drift.add("arguments in "+path, len(live.in), len(asked.in))
	}
}

func (e *xmlElement) nth(name string, n int) *xmlElement {
	for _, c := range e.in {
		if c.name == name {
			if n == 0 {
				return c
			}
			n--
		}
	}
	return nil
}

// sameValue compares two values where libvirt may write one in its own way.
func sameValue(path, asked, live string) bool {
	switch path {
	case "domain/os/type@machine":
		// The machine q35 is the newest of its kind.
		return asked == live || asked == "q35" && strings.HasPrefix(live, "pc-q35-")
	case "domain/cpu@check", "domain/memory@unit", "domain/memoryBacking/hugepages/page@unit", "domain/memoryBacking/hugepages/page@size":
		return true // what libvirt found of it; or compared as one
	case "domain/launchSecurity/policy", "domain/launchSecurity/cbitpos", "domain/launchSecurity/reducedPhysBits":
		a, err1 := strconv.ParseUint(asked, 0, 64)
		l, err2 := strconv.ParseUint(live, 0, 64)
		return err1 == nil && err2 == nil && a == l
	}
	return asked == live
}

// domainBytes is a size in bytes; zero when it is none.
func domainBytes(e *xmlElement) uint64 {
	n, err := strconv.ParseUint(e.text, 10, 64)
	unit := map[string]uint64{"b": 1, "bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "": 1 << 10}[e.attrs["unit"]]
	if err != nil || unit != 0 && n > 1<<63/unit {
		return 0
	}
	return n * unit
}

// ownDevices are what libvirt gives a domain of its own accord, by element and
// the attribute that tells its kind.
var ownDevices = []string{
	"emulator", "console", "controller pci", "controller sata", "input mouse", "input keyboard", "watchdog itco",
}

// devices compares devices: each that was asked for is there once, and only
// libvirt's own are besides.
func (c *domainComparison) devices(asked, live *xmlElement) {
	rest := slices.Clone(live.in)
	for _, want := range asked.in {
		var best *domainComparison
		at := -1
		for i, found := range rest {
			if found.name != want.name {
				continue
			}
			try := new(domainComparison)
			try.element("domain/devices/"+want.name, want, found)
			if best == nil || len(try.drift.differs) < len(best.drift.differs) {
				best, at = try, i
			}
		}
		if best == nil {
			c.drift.differs = append(c.drift.differs, "domain/devices/"+want.name+": found none, expected one")
			continue
		}
		c.drift.differs = append(c.drift.differs, best.drift.differs...)
		rest = slices.Delete(rest, at, at+1)
	}
	for _, found := range rest {
		kind := found.attrs["type"]
		if found.name == "watchdog" {
			kind = found.attrs["model"]
		}
		if !slices.Contains(ownDevices, found.name) && !slices.Contains(ownDevices, found.name+" "+kind) {
			c.drift.differs = append(c.drift.differs, fmt.Sprintf("domain/devices: found a %s (%s), expected none", clip(found.name), clip(kind)))
		}
	}
}
