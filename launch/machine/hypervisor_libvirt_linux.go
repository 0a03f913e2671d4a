package machine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/libvirtd"
	"github.com/evtpm/evtpm/launch/process"
	"github.com/evtpm/evtpm/qmp"
)

// Sockets that the QEMU of a domain connects to, in the machine's folder.
const (
	sockConsole = "console.sock"
	sockSVSM    = "svsm.sock"
)

// A libvirtVM is a domain of libvirt's: a transient one, which libvirt destroys
// when the connection ends that this process made it through. Its UUID is new at
// every start, and everything is done by it: a domain of the same name that is
// not ours is never touched.
type libvirtVM struct {
	s    *supervisor
	uuid libvirt.UUID

	conn      *libvirtd.Conn // nil before there is one
	domain    libvirt.Domain
	asked     bool // libvirt was told to start it
	remote    bool
	process   *process.Process // QEMU; nil before it is known, and on another machine
	exited    chan struct{}
	mon       *libvirtd.Monitor
	inputs    map[string]string
	made      []*os.File // what QEMU loads from files of ours
	listeners []net.Listener

	stopped  chan struct{} // closed when libvirt says that the domain has ended
	stopOnce sync.Once
	how      libvirt.DomainEventStoppedDetailType // once stopped
}

func newLibvirtVM(s *supervisor) *libvirtVM {
	v := &libvirtVM{s: s, inputs: map[string]string{}, stopped: make(chan struct{}), exited: make(chan struct{})}
	_, _ = rand.Read(v.uuid[:]) // never fails
	// RFC 9562, section 5.4: version 4, variant 10.
	v.uuid[6] = v.uuid[6]&0x0f | 0x40
	v.uuid[8] = v.uuid[8]&0x3f | 0x80
	return v
}

func (v *libvirtVM) id() string {
	u := v.uuid
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// start implements hypervisor.
func (v *libvirtVM) start(ctx context.Context, tpm string) (string, error) {
	spec := v.s.plan.Spec
	place, err := libvirtd.ParseURI(spec.Libvirt.URI)
	if err != nil {
		return "", err
	}
	version, err := v.connect(ctx, place)
	if err != nil {
		return "", err
	}
	domain, err := v.render(place, tpm)
	if err != nil {
		return "", err
	}
	if err := v.follow(ctx); err != nil {
		return "", err
	}
	// Should this process and libvirt be killed together, what cleans up after
	// them finds the domain's QEMU by this.
	v.s.update(func(r *Record) { r.Domain = v.id() })
	if err := v.s.write(); err != nil {
		return "", err
	}
	v.asked = true
	err = v.conn.CallWithin(ctx, "start domain "+v.s.plan.Name, func(l *libvirt.Libvirt) (err error) {
		v.domain, err = l.DomainCreateXML(string(domain), libvirt.DomainStartPaused|libvirt.DomainStartAutodestroy|libvirt.DomainStartValidate)
		return err
	})
	if err != nil {
		return "", refusedByLibvirt(err)
	}
	v.s.update(func(r *Record) { r.Running = true })
	if v.domain.UUID != v.uuid {
		return "", fmt.Errorf("libvirt: started domain %x, expected %x", v.domain.UUID, v.uuid)
	}
	if v.mon, err = libvirtd.NewMonitor(ctx, v.conn, v.domain); err != nil {
		return "", err
	}
	if !v.remote {
		if err := v.findProcess(ctx); err != nil {
			return "", err
		}
	}
	if err := v.checkXML(ctx, domain); err != nil {
		return "", err
	}
	v.s.setMonitor(v.mon)
	go v.watch()
	return fmt.Sprintf("QEMU %s by libvirt %s, domain %s", v.mon.Version(), version, v.id()), nil
}

// connect connects to the daemon.
func (v *libvirtVM) connect(ctx context.Context, place libvirtd.Place) (version string, err error) {
	spec := v.s.plan.Spec
	var conn net.Conn
	if v.remote = place.Host != ""; v.remote {
		conn, err = place.DialSSH(v.s.spawner.Start, v.s.qemuLog)
	} else {
		conn, err = place.Dial(ctx, v.s.job.RuntimeDir)
	}
	if err == nil {
		v.conn, err = libvirtd.NewConn(ctx, conn, place.Driver)
	}
	var number uint64
	if err == nil {
		err = v.conn.Call(ctx, "version", func(l *libvirt.Libvirt) (err error) {
			number, err = l.ConnectGetLibVersion()
			return err
		})
	}
	if err != nil && ctx.Err() != nil && !errors.Is(err, context.DeadlineExceeded) {
		return "", err // the launch ended meanwhile: nothing is said about libvirt
	}
	if err != nil {
		if v.remote {
			err = v.sshSays(err)
		}
		return "", noLibvirt(spec.Libvirt.URI, err)
	}
	version = libvirtd.Version(number)
	if oldest := launch.OldestLibvirt(spec.Platform); number < oldest {
		return "", &classedError{class: attest.ClassHostNotCapable,
			err: fmt.Errorf("found libvirt %s, expected %s or later for platform %s", version, libvirtd.Version(oldest), spec.Platform)}
	}
	return version, nil
}

// sshSays adds what ssh has said, which is why there is no connection.
func (v *libvirtVM) sshSays(err error) error {
	for range 20 {
		if said := strings.TrimSpace(string(v.s.qemuLog.last(1024))); said != "" {
			return &sshError{said}
		}
		time.Sleep(10 * time.Millisecond) // it is on its way
	}
	return err
}

// sshError is an end of a connection that ssh explains.
type sshError struct{ said string }

func (e *sshError) Error() string { return "ssh: " + e.said }

// render makes the domain, and what its QEMU will connect to.
func (v *libvirtVM) render(place libvirtd.Place, tpm string) ([]byte, error) {
	s := v.s
	if v.remote {
		// What was measured here is what should lie there under the same names; the
		// launch digest tells.
		return s.plan.LibvirtDomain(launch.LibvirtOptions{Dir: s.claim.dir, UUID: v.id(), Console: "pty", File: v.path})
	}
	// QEMU opens the sealed copies through this process: it runs as the same
	// user.
	path := func(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }
	o := launch.LibvirtOptions{
		Dir: s.claim.dir, UUID: v.id(), TPM: tpm,
		File: func(in *launch.Input) string {
			v.inputs[in.Name] = path(in.File)
			return v.inputs[in.Name]
		},
	}
	if !place.Session {
		o.User = fmt.Sprintf("+%d:+%d", os.Geteuid(), os.Getegid())
	}
	var err error
	if s.plan.Spec.Console == launch.ConsoleLog {
		if o.Console, err = v.accept(sockConsole, s.takeConsole); err != nil {
			return nil, err
		}
	}
	if s.plan.Spec.Platform == launch.PlatformSim {
		if o.SVSM, err = v.accept(sockSVSM, s.platform.serve); err != nil {
			return nil, err
		}
	}
	sealed := func(name string, data []byte) (string, error) {
		f, err := launch.SealedFile(name, data)
		if err != nil {
			return "", err
		}
		v.made = append(v.made, f)
		return path(f), nil
	}
	_, page, err := s.plan.HashesPage()
	if err != nil {
		return nil, err
	}
	if page != nil {
		if o.HashesPage, err = sealed("kernel-hashes", page); err != nil {
			return nil, err
		}
	}
	o.ImageFile = func(name string) string { return v.inputs[name] }
	for _, image := range s.plan.ImageFiles() {
		if v.inputs[image.Name], err = sealed(image.Name, image.Data); err != nil {
			return nil, err
		}
	}
	return s.plan.LibvirtDomain(o)
}

// path says that QEMU opens an input where it came from.
func (v *libvirtVM) path(in *launch.Input) string {
	v.inputs[in.Name] = in.Path
	return in.Path
}

// accept listens for QEMU, which connects once.
func (v *libvirtVM) accept(name string, serve func(net.Conn)) (string, error) {
	path := filepath.Join(v.s.claim.dir, name)
	l, err := net.Listen("unix", path)
	if err != nil {
		return "", err
	}
	v.listeners = append(v.listeners, l)
	go func() {
		if conn, err := l.Accept(); err == nil {
			serve(conn)
		}
		l.Close() // the socket goes with it
	}()
	return path, nil
}

// follow has libvirt say when the domain ends.
func (v *libvirtVM) follow(ctx context.Context) error {
	var events <-chan libvirt.DomainEventLifecycleMsg
	err := v.conn.Call(ctx, "events of domains", func(l *libvirt.Libvirt) (err error) {
		// It ends with the connection.
		events, err = l.LifecycleEvents(context.Background())
		return err
	})
	if err != nil {
		return err
	}
	go func() {
		for e := range events {
			if e.Dom.UUID == v.uuid && libvirt.DomainEventType(e.Event) == libvirt.DomainEventStopped {
				v.stopOnce.Do(func() {
					v.how = libvirt.DomainEventStoppedDetailType(e.Detail)
					close(v.stopped)
				})
			}
		}
	}()
	return nil
}

// refusedByLibvirt gives libvirt's refusal its class.
func refusedByLibvirt(err error) error {
	var e libvirt.Error
	if errors.As(err, &e) && libvirt.ErrorNumber(e.Code) == libvirt.ErrConfigUnsupported {
		return &classedError{class: attest.ClassHostNotCapable, err: err}
	}
	return err
}

// findProcess finds the domain's QEMU, which is no child of this process or of
// libvirt's: its monitor names a thread of it, and its command line the domain.
func (v *libvirtVM) findProcess(ctx context.Context) error {
	cpus, err := qmp.Commands{Executor: v.mon}.QueryCPUsFast(ctx)
	if err != nil {
		return err
	}
	if len(cpus) == 0 {
		return errors.New("QEMU names no vCPU")
	}
	p, err := process.OfThread("qemu", cpus[0].Thread)
	if err == nil && !p.HasArg(v.id()) {
		err = fmt.Errorf("process %d: found another command line than that of domain %s", p.PID, v.id())
	}
	if err != nil {
		return fmt.Errorf("QEMU: %w", err)
	}
	v.adopt(p)
	return nil
}

// adopt notes which process QEMU is, and waits for its end.
func (v *libvirtVM) adopt(p process.Process) {
	v.process = &p
	v.s.noteChild(p)
	go func() {
		p.Wait()
		close(v.exited)
	}()
}

// watch ends the machine when the domain ends, or the connection: libvirt
// destroys the domain with it.
func (v *libvirtVM) watch() {
	select {
	case <-v.stopped:
	case <-v.exited:
		v.awaitReason()
	case <-v.conn.Ended():
		v.s.cancel(v.conn.Gone())
		return
	}
	err, clean := errVMEnded, v.s.hasShutDown()
	select {
	case <-v.stopped:
		err = fmt.Errorf("%w: %s", errVMEnded, stoppedHow(v.how))
		clean = clean || v.how == libvirt.DomainEventStoppedShutdown || v.how == libvirt.DomainEventStoppedDestroyed
	default:
	}
	v.mon.Finish()
	v.s.vmEnded(err, clean)
}

// awaitReason waits until QEMU or libvirt has said why QEMU has ended, if they do.
func (v *libvirtVM) awaitReason() {
	late := time.After(2 * time.Second)
	for !v.s.hasShutDown() {
		select {
		case <-v.stopped:
			return
		case <-v.conn.Ended():
			return
		case <-late:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stoppedHow says in words how a domain ended.
func stoppedHow(d libvirt.DomainEventStoppedDetailType) string {
	switch d {
	case libvirt.DomainEventStoppedShutdown:
		return "the domain was shut down"
	case libvirt.DomainEventStoppedDestroyed:
		return "the domain was destroyed through libvirt"
	case libvirt.DomainEventStoppedCrashed:
		return "the domain crashed"
	case libvirt.DomainEventStoppedFailed:
		return "the domain failed"
	}
	return fmt.Sprintf("libvirt's reason %d", d)
}

// checkXML holds the domain that runs against the one that was asked for.
func (v *libvirtVM) checkXML(ctx context.Context, asked []byte) error {
	var live string
	err := v.conn.Call(ctx, "read the domain back", func(l *libvirt.Libvirt) (err error) {
		live, err = l.DomainGetXMLDesc(v.domain, 0)
		return err
	})
	if err != nil {
		return err
	}
	return launch.CompareDomains(asked, []byte(live))
}

// opened implements hypervisor.
func (v *libvirtVM) opened() map[string]string { return v.inputs }

// resume implements hypervisor.
func (v *libvirtVM) resume(ctx context.Context) error {
	return v.conn.Call(ctx, "resume", func(l *libvirt.Libvirt) error { return l.DomainResume(v.domain) })
}

// powerdown implements hypervisor.
func (v *libvirtVM) powerdown(ctx context.Context) error {
	return v.conn.Call(ctx, "shutdown", func(l *libvirt.Libvirt) error {
		return l.DomainShutdownFlags(v.domain, libvirt.DomainShutdownAcpiPowerBtn)
	})
}

// end implements hypervisor.
func (v *libvirtVM) end() {
	for _, l := range v.listeners {
		l.Close()
	}
	if v.conn == nil {
		return
	}
	if v.mon != nil {
		// libvirt has QEMU end by itself, and kills it when it does not.
		ctx, cancel := context.WithTimeout(context.Background(), quitTimeout)
		_ = v.conn.Call(ctx, "destroy", func(l *libvirt.Libvirt) error { return l.DomainDestroyFlags(v.domain, 0) })
		cancel()
	}
	v.conn.Close() // and with it the domain, if it is still there
	if v.asked && v.process == nil && !v.remote {
		if p, ok := process.FindArg("qemu", v.id()); ok {
			v.adopt(p)
		}
	}
	if v.process != nil {
		// A libvirt that does not answer destroys nothing.
		if err := v.process.Kill(killWait); err != nil {
			v.s.emit(Event{Kind: EventWarning, Message: err.Error()})
		}
	}
	for _, f := range v.made {
		f.Close()
	}
}

// noLibvirt says that there is no libvirt, or that it wants nothing of this user,
// and what to do. One that falls silent or ends is another matter.
func noLibvirt(uri string, err error) error {
	err = fmt.Errorf("libvirt at %s: %w; see whether this works: virsh -c %[1]s version", uri, err)
	if errors.Is(err, libvirtd.ErrGone) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &classedError{class: attest.ClassHostNotCapable, err: err}
}
