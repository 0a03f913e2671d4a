package main

import (
	"bufio"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

// maxMatrix bounds the rows of a matrix.
const maxMatrix = 4 << 20

// matrixAxes are the axes of --matrix with the names of their values.
type matrixAxes struct {
	ovmf.Axes
	cpus   []string // names, one for each of sigs
	sigs   []int    // index into Axes.Signatures
	hashes []string // "on" or "off", one for each of Axes.Hashes
}

func (u *ui) measureMatrix(c *cli.Context, l *launchInput) error {
	if l.svsm != nil || l.Options.Mode != measure.ModeSNP || l.Firmware == nil {
		return errors.New("--matrix: expected --mode snp, or a spec without an SVSM image")
	}
	if len(l.Append) > 0 {
		return errors.New("--matrix: expected platform snp: on the simulated one there is no fleet")
	}
	axes, err := parseMatrix(c.String("matrix"), l)
	if err != nil {
		return fmt.Errorf("--matrix: %w", err)
	}
	rows := len(axes.VCPUs) * len(axes.cpus) * len(axes.Features) * len(axes.Hashes)
	if rows > maxMatrix {
		return fmt.Errorf("--matrix: found %d combinations, expected at most %d", rows, maxMatrix)
	}
	// Models of one signature have one digest: computed once, printed for each.
	digests := make([]measure.Digest, len(axes.VCPUs)*len(axes.Signatures)*len(axes.Features)*len(axes.Hashes))
	at := func(cell ovmf.Cell) int {
		return ((cell.Hashes*len(axes.Features)+cell.Features)*len(axes.Signatures)+cell.Signature)*len(axes.VCPUs) + cell.VCPUs
	}
	err = l.Firmware.Matrix(l.Options, axes.Axes, func(cell ovmf.Cell, d measure.Digest) { digests[at(cell)] = d })
	if err != nil {
		return err
	}
	json := c.String("output-format") == "json"
	w := bufio.NewWriterSize(u.out, 1<<16)
	u.say("host profile: %s", l.profile())
	if json {
		fmt.Fprintf(w, "{\n  \"schema\": \"evtpm.matrix/v1\",\n  \"host_profile\": %q,\n  \"rows\": [", l.profile())
	}
	separator := "\n"
	for h := range axes.Hashes {
		for f, features := range axes.Features {
			for m, name := range axes.cpus {
				for v, n := range axes.VCPUs {
					d := digests[at(ovmf.Cell{VCPUs: v, Signature: axes.sigs[m], Features: f, Hashes: h})]
					if json {
						fmt.Fprintf(w, `%s    {"vcpus": %d, "cpu": %q, "guest_features": "0x%x", "kernel_hashes": %q, "launch_digest": "%x"}`,
							separator, n, name, features, axes.hashes[h], d[:])
						separator = ",\n"
					} else {
						fmt.Fprintf(w, "%d\t%s\t0x%x\t%s\t%x\n", n, name, features, axes.hashes[h], d[:])
					}
				}
			}
		}
	}
	if json {
		fmt.Fprint(w, "\n  ]\n}\n")
	}
	return w.Flush()
}

// parseMatrix reads "vcpus=1..512,cpu=all,kernel-hashes=on,off": a word without
// "=" is one more value of the axis before it.
func parseMatrix(text string, l *launchInput) (*matrixAxes, error) {
	values := make(map[string][]string)
	axis := ""
	for _, word := range strings.Split(text, ",") {
		if name, value, ok := strings.Cut(word, "="); ok {
			axis, word = name, value
			if values[axis] != nil {
				return nil, fmt.Errorf("axis %q: found twice", axis)
			}
		}
		switch axis {
		case "vcpus", "cpu", "guest-features", "kernel-hashes":
		default:
			return nil, fmt.Errorf("found axis %q, expected vcpus, cpu, guest-features or kernel-hashes", axis)
		}
		values[axis] = append(values[axis], word)
	}
	a := new(matrixAxes)
	if err := a.vcpus(values["vcpus"], l); err != nil {
		return nil, err
	}
	if err := a.models(values["cpu"], l); err != nil {
		return nil, err
	}
	for _, v := range values["guest-features"] {
		n, err := strconv.ParseUint(v, 0, 64)
		if err != nil {
			return nil, fmt.Errorf("guest-features: found %q, expected a number", v)
		}
		a.Features = append(a.Features, n)
	}
	if len(a.Features) == 0 {
		a.Features = []uint64{l.Options.GuestFeatures}
	}
	return a, a.kernelHashes(values["kernel-hashes"], l)
}

func (a *matrixAxes) vcpus(values []string, l *launchInput) error {
	for _, v := range values {
		from, to, isRange := strings.Cut(v, "..")
		first, err := strconv.Atoi(from)
		last := first
		if err == nil && isRange {
			last, err = strconv.Atoi(to)
		}
		if err != nil || first < 1 || last < first || last > measure.MaxVCPUs {
			return fmt.Errorf("vcpus: found %q, expected numbers or ranges such as 1..%d", v, measure.MaxVCPUs)
		}
		for n := first; n <= last; n++ {
			a.VCPUs = append(a.VCPUs, n)
		}
	}
	if len(a.VCPUs) == 0 {
		if l.Options.VCPUs == 0 {
			return errors.New("vcpus: expected them as an axis, or as --vcpus")
		}
		a.VCPUs = []int{l.Options.VCPUs}
	}
	return nil
}

func (a *matrixAxes) models(values []string, l *launchInput) error {
	add := func(name string, sig uint32) {
		i := slices.Index(a.Signatures, sig)
		if i < 0 {
			i = len(a.Signatures)
			a.Signatures = append(a.Signatures, sig)
		}
		a.cpus, a.sigs = append(a.cpus, name), append(a.sigs, i)
	}
	for _, v := range values {
		if v == "all" {
			for _, m := range measure.CPUModels() {
				add(m.Name, m.Signature())
			}
			continue
		}
		sig, err := cpuSignature(v)
		if err != nil {
			n, numErr := strconv.ParseUint(v, 0, 32)
			if numErr != nil {
				return fmt.Errorf("cpu: %w", err)
			}
			sig = uint32(n)
		}
		add(v, sig)
	}
	if len(a.cpus) == 0 {
		name := l.CPUModel
		if name == "" {
			name = fmt.Sprintf("0x%x", l.Options.CPUSignature)
		}
		if l.Options.CPUSignature == 0 && l.CPUModel == "" && l.Options.VMM == measure.VMMQEMU {
			return errors.New("cpu: expected models as an axis, or --vcpu-type")
		}
		add(name, l.Options.CPUSignature)
	}
	return nil
}

func (a *matrixAxes) kernelHashes(values []string, l *launchInput) error {
	var on *measure.KernelHashes
	if l.Boot != nil {
		cmdline, err := measure.HashCmdline(l.Boot.Cmdline)
		if err != nil {
			return err
		}
		on = &measure.KernelHashes{Kernel: l.Boot.Kernel, Initrd: l.Boot.Initrd, Cmdline: cmdline}
	}
	if len(values) == 0 {
		values = []string{map[bool]string{true: "on", false: "off"}[on != nil]}
	}
	for _, v := range values {
		switch v {
		case "on":
			if on == nil {
				return errors.New("kernel-hashes=on: expected --kernel")
			}
			a.Hashes = append(a.Hashes, on)
		case "off":
			a.Hashes = append(a.Hashes, nil)
		default:
			return fmt.Errorf("kernel-hashes: found %q, expected on or off", v)
		}
		a.hashes = append(a.hashes, v)
	}
	return nil
}
