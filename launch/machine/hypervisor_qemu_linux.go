package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"

	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/process"
	"github.com/evtpm/evtpm/qmp"
)

// A qemuVM is a QEMU process of the supervisor's own.
type qemuVM struct {
	s       *supervisor
	process *child      // nil before there is one
	mon     *qmp.Client // nil before it answers
	inputs  map[string]string
}

// start implements hypervisor.
func (v *qemuVM) start(ctx context.Context, tpm string) (string, error) {
	var sandboxErr error
	for _, noSandbox := range []bool{false, true} {
		q, conn, err := v.spawn(tpm, noSandbox)
		if err != nil {
			return "", err
		}
		v.process = q
		v.s.noteChild(q.Process)
		v.s.update(func(r *Record) { r.Running = true })
		// QEMU's end closes its side of the pair, so a QEMU that dies is noticed
		// at once and not when the deadline comes.
		mon, err := qmp.NewClient(ctx, conn)
		if err == nil {
			v.mon = mon
			v.s.setMonitor(mon)
			go v.watch(q)
			return "QEMU " + mon.Version().String(), nil
		}
		err = q.explain(err)
		q.kill()
		if !noSandbox && q.lacksSandbox() {
			v.s.emit(Event{Kind: EventWarning, Message: "this QEMU was built without sandbox support; it runs without"})
			sandboxErr = err
			continue
		}
		return "", errors.Join(sandboxErr, err)
	}
	return "", sandboxErr
}

// opened implements hypervisor.
func (v *qemuVM) opened() map[string]string { return v.inputs }

// resume implements hypervisor.
func (v *qemuVM) resume(ctx context.Context) error { return v.mon.Cont(ctx) }

// powerdown implements hypervisor.
func (v *qemuVM) powerdown(ctx context.Context) error { return v.mon.SystemPowerdown(ctx) }

// end implements hypervisor.
func (v *qemuVM) end() {
	if v.process == nil {
		return
	}
	if v.mon != nil {
		defer v.mon.Close()
		ctx, cancel := context.WithTimeout(context.Background(), quitTimeout)
		defer cancel()
		if v.mon.Quit(ctx) == nil {
			select {
			case <-v.process.exited:
			case <-ctx.Done():
			}
		}
	}
	v.process.kill()
}

// watch ends the machine when QEMU ends.
func (v *qemuVM) watch(q *child) {
	<-q.exited
	v.s.vmEnded(q.explain(errVMEnded), q.clean())
}

// spawn starts a QEMU process.
func (v *qemuVM) spawn(tpm string, noSandbox bool) (_ *child, monitor net.Conn, err error) {
	s := v.s
	var open []io.Closer
	defer func() {
		if err != nil {
			for _, c := range open {
				c.Close()
			}
		}
	}()
	var files []*os.File
	pass := func(f *os.File) int {
		files = append(files, f)
		return 2 + len(files)
	}
	o := launch.QEMUOptions{Dir: s.claim.dir, TPM: tpm, NoSandbox: noSandbox}
	v.inputs = map[string]string{}
	o.File = func(in *launch.Input) string {
		v.inputs[in.Name] = fmt.Sprintf("/proc/self/fd/%d", pass(in.File))
		return v.inputs[in.Name]
	}
	theirs := []*os.File{}
	pair := func(name string) (net.Conn, string, error) {
		conn, other, err := process.SocketPair(name)
		if err != nil {
			return nil, "", err
		}
		open = append(open, conn)
		theirs = append(theirs, other)
		return conn, fmt.Sprintf("socket,fd=%d", pass(other)), nil
	}
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	if monitor, o.Monitor, err = pair("monitor"); err != nil {
		return nil, nil, err
	}
	var console, svsm net.Conn
	if s.plan.Spec.Console == launch.ConsoleLog {
		if console, o.Console, err = pair("console"); err != nil {
			return nil, nil, err
		}
	}
	if s.plan.Spec.Platform == launch.PlatformSim {
		if svsm, o.SVSM, err = pair("svsm"); err != nil {
			return nil, nil, err
		}
	}
	if _, page, err := s.plan.HashesPage(); err != nil {
		return nil, nil, err
	} else if page != nil {
		f, err := launch.SealedFile("kernel-hashes", page)
		if err != nil {
			return nil, nil, err
		}
		theirs = append(theirs, f)
		o.HashesPage = fmt.Sprintf("/proc/self/fd/%d", pass(f))
	}
	o.ImageFile = func(name string) string { return v.inputs[name] }
	for _, image := range s.plan.ImageFiles() {
		f, err := launch.SealedFile(image.Name, image.Data)
		if err != nil {
			return nil, nil, err
		}
		theirs = append(theirs, f)
		v.inputs[image.Name] = fmt.Sprintf("/proc/self/fd/%d", pass(f))
	}
	line, err := s.plan.QEMUCommand(o)
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(line.Binary, line.Args...)
	cmd.ExtraFiles = files
	cmd.Dir = "/"
	q, err := s.spawnChild("qemu", cmd, s.qemuLog)
	if err != nil {
		return nil, nil, err
	}
	if console != nil {
		s.takeConsole(console)
	}
	if svsm != nil {
		s.platform.serve(svsm)
	}
	return q, monitor, nil
}
