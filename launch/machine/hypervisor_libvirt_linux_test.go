package machine

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/launchtest"
	"github.com/evtpm/evtpm/launch/libvirtd"
	"github.com/evtpm/evtpm/launch/libvirtd/libvirtdtest"
)

// TestL26LibvirtConnect: what a daemon can do wrong when a launch connects to it,
// and whose fault each is.
func TestL26LibvirtConnect(t *testing.T) {
	longest := make([]byte, 4)
	binary.BigEndian.PutUint32(longest, 32<<20+4+1)
	shortest := make([]byte, 4)
	binary.BigEndian.PutUint32(shortest, 28-1)
	for name, c := range map[string]struct {
		platform string
		daemon   libvirtdtest.Daemon
		class    attest.Class // 0: none
		says     string
	}{
		"sim":           {launch.PlatformSim, libvirtdtest.Daemon{Version: 9_000_000}, 0, ""},
		"snp":           {launch.PlatformSNP, libvirtdtest.Daemon{Version: 10_005_000}, 0, ""},
		"old for sim":   {launch.PlatformSim, libvirtdtest.Daemon{Version: 8_999_999}, 9, "found libvirt 8.999.999, expected 9.0.0 or later for platform sim"},
		"old for snp":   {launch.PlatformSNP, libvirtdtest.Daemon{Version: 10_004_000}, 9, "found libvirt 10.4.0, expected 10.5.0 or later for platform snp"},
		"not allowed":   {launch.PlatformSim, libvirtdtest.Daemon{Refuse: map[uint32]string{libvirtdtest.ProcOpen: "access denied"}}, 9, "access denied; see whether this works: virsh -c qemu:///session version"},
		"hangs up":      {launch.PlatformSim, libvirtdtest.Daemon{Cut: map[uint32]bool{libvirtdtest.ProcOpen: true}}, 8, "the connection to libvirt has ended"},
		"hangs up soon": {launch.PlatformSim, libvirtdtest.Daemon{Cut: map[uint32]bool{libvirtdtest.ProcAuthList: true}}, 8, "the connection to libvirt has ended"},
		"silent":        {launch.PlatformSim, libvirtdtest.Daemon{Silent: map[uint32]bool{libvirtdtest.ProcLibVersion: true}}, 10, "version: no end within"},
		"too long":      {launch.PlatformSim, libvirtdtest.Daemon{Answer: map[uint32][]byte{libvirtdtest.ProcLibVersion: longest}}, 8, "found a message of 33554437 bytes, expected 28 to 33554436"},
		"too short":     {launch.PlatformSim, libvirtdtest.Daemon{Answer: map[uint32][]byte{libvirtdtest.ProcOpen: shortest}}, 8, "found a message of 27 bytes"},
		"garbage":       {launch.PlatformSim, libvirtdtest.Daemon{Answer: map[uint32][]byte{libvirtdtest.ProcOpen: []byte("HTTP/1.1 200 OK\r\n\r\n")}}, 8, "found a message of 1213486160 bytes"},
		"half":          {launch.PlatformSim, libvirtdtest.Daemon{Answer: map[uint32][]byte{libvirtdtest.ProcLibVersion: {0, 0, 0, 36, 0x20}}}, 10, "no end within"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, path := launchtest.SpecDir(t, "platform: "+c.platform, "backend: libvirt", "libvirt: {uri: 'qemu:///session'}")
			spec, err := launch.ReadSpec(path, launch.SpecFileOptions{})
			if err != nil {
				t.Fatal(err)
			}
			s := &supervisor{job: &job{RuntimeDir: c.daemon.Listen(t)}, plan: &launch.Plan{Spec: spec}}
			v := newLibvirtVM(s)
			place, err := libvirtd.ParseURI(spec.Libvirt.URI)
			if err != nil {
				t.Fatal(err)
			}
			limit := 30 * time.Second
			if c.class == 10 {
				limit = 200 * time.Millisecond
			}
			ctx, cancel := context.WithTimeoutCause(t.Context(), limit, &timeoutError{limit})
			defer cancel()
			_, err = v.connect(ctx, place)
			if v.conn != nil {
				defer v.conn.Close()
			}
			var pe *PhaseError
			switch {
			case c.class == 0:
				if err != nil {
					t.Error(err)
				}
			case err == nil || !errors.As(s.failedIn(ctx, PhaseStart, err), &pe) || pe.Class != c.class || !strings.Contains(err.Error(), c.says):
				t.Errorf("found class %v: %v, expected %v: %s", pe, err, c.class, c.says)
			}
		})
	}
}

// TestLibvirtRefusesForWantOfHardware: what libvirt says about what a host lacks is
// told from its other refusals.
func TestLibvirtRefusesForWantOfHardware(t *testing.T) {
	if err := refusedByLibvirt(libvirt.Error{Code: uint32(libvirt.ErrConfigUnsupported)}); classOf(err) != attest.ClassHostNotCapable {
		t.Errorf("found class %d", classOf(err))
	}
	if err := refusedByLibvirt(libvirt.Error{Code: uint32(libvirt.ErrOperationFailed)}); classOf(err) != attest.ClassLaunch {
		t.Errorf("found class %d", classOf(err))
	}
}

// TestLibvirtIsNotBlamed: a launch that ends for another reason while libvirt is
// asked says that reason, and nothing about libvirt.
func TestLibvirtIsNotBlamed(t *testing.T) {
	daemon := libvirtdtest.Daemon{Silent: map[uint32]bool{libvirtdtest.ProcLibVersion: true}}
	_, path := launchtest.SpecDir(t, "backend: libvirt", "libvirt: {uri: 'qemu:///session'}")
	spec, err := launch.ReadSpec(path, launch.SpecFileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	v := newLibvirtVM(&supervisor{job: &job{RuntimeDir: daemon.Listen(t)}, plan: &launch.Plan{Spec: spec}})
	place, err := libvirtd.ParseURI(spec.Libvirt.URI)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the vTPM's process (swtpm) ended")
	time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
	_, err = v.connect(ctx, place)
	if v.conn != nil {
		defer v.conn.Close()
	}
	if !errors.Is(err, why) || classOf(err) != attest.ClassLaunch || strings.Contains(err.Error(), "virsh") {
		t.Errorf("found class %d: %v, expected class %d: %v", classOf(err), err, attest.ClassLaunch, why)
	}
}
