//go:build linux

// Command evtpm-agent runs in the guest and answers challenges with evidence:
// the SNP report behind the vTPM, the EK and an AK, a quote, the PCRs and the
// event log. It judges nothing.
//
// It runs as a service, or as the first process (/init) of an initramfs: then
// it also mounts what it needs, loads the kernel modules that the initramfs
// carries, and powers the machine off when the power button is pressed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/evtpm/evtpm/agent"
)

// version is set at link time.
var version = "dev"

const (
	// agentPort is the virtio-serial port between verifier and agent, svsmPort
	// the one between agent and simulated SVSM.
	agentPort = "org.evtpm.agent.0"
	svsmPort  = "org.evtpm.svsm.0"

	// portWait and tpmWait bound the wait for a device that the kernel is still
	// finding. Without its port the agent has nothing to do; without a TPM it
	// can still say so.
	portWait = 10 * time.Second
	tpmWait  = 2 * time.Second

	// idleTimeout closes network connections that ask nothing.
	idleTimeout = 5 * time.Minute
)

func main() {
	if os.Getpid() == 1 {
		runInit()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := serve(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, context.Canceled) {
		say("error: %v", err)
		os.Exit(1)
	}
}

// say prints one plain line on the console.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "evtpm-agent: "+format+"\n", args...)
}

// serve answers challenges on everything that the flags name until ctx ends.
func serve(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("evtpm-agent", flag.ContinueOnError)
	port := flags.String("port", agentPort, "virtio-serial port to serve; empty for none")
	vsock := flags.Uint("vsock", 0, "vsock port to listen on; 0 for none")
	tcp := flags.String("tcp", "", "address to listen on, such as :7070; empty for none")
	show := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("found argument %q, expected flags only", flags.Arg(0))
	}
	if *show {
		say("version %s", version)
		return nil
	}

	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	listen := func(l net.Listener, err error) error {
		if err == nil {
			say("serving %s %s", l.Addr().Network(), l.Addr())
			listeners = append(listeners, l)
		}
		return err
	}
	var errs []error
	if *port != "" {
		errs = append(errs, listen(listenPort(ctx, *port)))
	}
	if *vsock != 0 {
		if uint64(*vsock) > 1<<32-1 {
			return fmt.Errorf("vsock port %d: expected at most %d", *vsock, uint32(1<<32-1))
		}
		errs = append(errs, listen(agent.ListenVsock(uint32(*vsock))))
	}
	if *tcp != "" {
		errs = append(errs, listen((&net.ListenConfig{}).Listen(ctx, "tcp", *tcp)))
	}
	if len(listeners) == 0 {
		return errors.Join(append(errs, errors.New("nothing to serve on"))...)
	}
	for _, err := range errs {
		if err != nil {
			say("error: %v", err)
		}
	}
	tpm, closeTPM := openTPM(ctx)
	defer closeTPM()
	return serveAll(ctx, listeners, tpm)
}

// listenPort waits for the virtio-serial port to appear, and opens it.
func listenPort(ctx context.Context, name string) (net.Listener, error) {
	var device string
	err := await(ctx, portWait, func() (err error) {
		device, err = agent.FindPort(name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return agent.ListenPort(device)
}

// await calls f until it finds what it looks for, or the time is over.
func await(ctx context.Context, limit time.Duration, f func() error) error {
	for deadline := time.Now().Add(limit); ; {
		err := f()
		if !errors.Is(err, fs.ErrNotExist) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// serveAll runs one agent on all listeners, and ends with the first of them.
func serveAll(ctx context.Context, listeners []net.Listener, tpm transport.TPM) error {
	sources := []agent.Source{
		agent.SVSMPort(
			func() bool { _, err := agent.FindPort(svsmPort); return err == nil },
			func(ctx context.Context) (net.Conn, error) {
				device, err := agent.FindPort(svsmPort)
				if err != nil {
					return nil, err
				}
				return agent.DialPort(ctx, device)
			}),
		agent.NV(tpm),
	}
	if client, err := linuxtsm.MakeClient(); err == nil {
		sources = append([]agent.Source{agent.TSM(client)}, sources...)
	}
	a, err := agent.New(agent.Options{
		Version: version, TPM: tpm, Sources: sources,
		BootID: agent.BootID, EventLog: agent.EventLog,
	})
	if err != nil {
		return err
	}
	defer a.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, len(listeners))
	for _, l := range listeners {
		o := agent.ListenOptions{Report: func(err error) { say("connection ended: %v", err) }}
		if l.Addr().Network() != "virtio-serial" {
			o.IdleTimeout = idleTimeout
		}
		go func() { done <- a.ServeListener(ctx, l, o) }()
	}
	err = <-done
	cancel()
	for range listeners[1:] {
		if other := <-done; !errors.Is(other, context.Canceled) {
			err = errors.Join(err, other)
		}
	}
	return err
}

// openTPM opens the vTPM. Without one the agent still says why to whoever asks.
func openTPM(ctx context.Context) (transport.TPM, func()) {
	var tpm transport.TPMCloser
	err := await(ctx, tpmWait, func() (err error) {
		tpm, err = agent.OpenTPM()
		return err
	})
	if err != nil {
		say("error: no TPM: %v", err)
		return noTPM{err}, func() {}
	}
	return tpm, func() { tpm.Close() }
}

// noTPM stands for a TPM that could not be opened.
type noTPM struct{ err error }

func (t noTPM) Send([]byte) ([]byte, error) {
	return nil, fmt.Errorf("this guest has no TPM: %w", t.err)
}
