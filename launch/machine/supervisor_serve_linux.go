package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/evtpm/evtpm/attest"
)

// maxClients bounds the connections to a supervisor at one time.
const maxClients = 16

// An outbox sends replies to the launcher without ever waiting for it. One that
// does not keep up is cut off.
type outbox struct {
	conn  *lineConn
	queue chan reply
	sent  chan struct{} // closed when nothing more will be sent
	done  chan struct{} // closed by close
}

func newOutbox(conn *lineConn) *outbox {
	o := &outbox{conn: conn, queue: make(chan reply, 1024), sent: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(o.sent)
		for {
			select {
			case r := <-o.queue:
				if conn.send(r) != nil {
					conn.Close()
					return
				}
				continue
			default:
			}
			select {
			case r := <-o.queue:
				if conn.send(r) != nil {
					conn.Close()
					return
				}
			case <-o.done:
				if len(o.queue) == 0 {
					return
				}
			}
		}
	}()
	return o
}

func (o *outbox) put(r reply) {
	select {
	case <-o.sent: // nobody is there any more
		return
	default:
	}
	select {
	case o.queue <- r:
	default:
		o.conn.Close()
	}
}

// close sends what was put, then closes the connection.
func (o *outbox) close() {
	close(o.done)
	<-o.sent
	o.conn.Close()
}

// watchLauncher waits for the launcher to release the machine. One that ends
// before, for whatever reason, takes the machine with it.
func (s *supervisor) watchLauncher() {
	defer close(s.launcherDone)
	for {
		var r request
		if err := s.launcher.conn.receive(&r, maxRequest); err != nil {
			s.cancel(errLauncherGone)
			return
		}
		if r.Op != opRelease {
			continue
		}
		s.mu.Lock()
		ok := !s.finishing || s.refused
		s.released = s.released || ok
		refused := s.refused
		s.mu.Unlock()
		if ok {
			if refused {
				<-s.ended // what comes next shall find it so
			}
			record := s.snapshot()
			s.launcher.put(reply{Done: true, Record: &record})
			return
		}
	}
}

// serve answers on control.sock.
func (s *supervisor) serve() {
	slots := make(chan struct{}, maxClients)
	for {
		conn, err := s.control.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors, most likely: it passes.
			time.Sleep(50 * time.Millisecond)
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		s.serving.Add(1)
		go func() {
			defer s.serving.Done()
			defer func() { <-slots }()
			defer conn.Close()
			s.answer(newLineConn(conn))
		}()
	}
}

// answer handles one connection: one request.
func (s *supervisor) answer(c *lineConn) {
	if c.SetReadDeadline(time.Now().Add(replyTimeout)) != nil {
		return
	}
	stop := context.AfterFunc(s.ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	var r request
	err := c.receive(&r, maxRequest)
	stop()
	if err != nil {
		_ = c.send(reply{Error: &wireError{Class: attest.ClassMisuse, Message: "request: " + err.Error()}})
		return
	}
	// From here on the client's end of the connection is its wish to end.
	if c.SetReadDeadline(time.Time{}) != nil {
		return
	}
	switch r.Op {
	case opStatus:
		record := s.snapshot()
		_ = c.send(reply{Record: &record})
	case opAttest:
		s.answerAttest(c)
	case opStop:
		s.stop(time.Duration(r.Grace))
		_ = c.send(reply{Done: true})
	case opConsole:
		s.answerConsole(c)
	default:
		_ = c.send(reply{Error: &wireError{Class: attest.ClassMisuse, Message: fmt.Sprintf("unknown operation %q", r.Op)}})
	}
}

func (s *supervisor) answerAttest(c *lineConn) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	go func() {
		// A client that leaves wants no answer.
		_, _ = io.Copy(io.Discard, c)
		cancel()
	}()
	a, err := s.attestAgain(ctx)
	if err != nil {
		_ = c.send(reply{Error: toWire(err)})
		return
	}
	_ = c.send(reply{Outcome: a})
}

// stop ends the VM: the guest is asked to shut down and given grace for it.
func (s *supervisor) stop(grace time.Duration) {
	s.update(func(r *Record) { r.State, r.Reason = StateStopping, "" })
	s.emit(Event{Kind: EventState, State: StateStopping})
	if grace > 0 && s.monitor() != nil {
		ctx, cancel := context.WithTimeout(s.ctx, grace)
		defer cancel()
		if s.vm.powerdown(ctx) == nil {
			<-ctx.Done()
		}
	}
	s.cancel(errStopped)
	<-s.ended
}

// answerConsole makes the connection the console's.
func (s *supervisor) answerConsole(c *lineConn) {
	s.mu.Lock()
	console := s.consoleIO
	s.mu.Unlock()
	if console == nil {
		_ = c.send(reply{Error: &wireError{Class: attest.ClassMisuse, Message: "this machine has no console"}})
		return
	}
	earlier, w := s.console.watch()
	defer s.console.unwatch(w)
	if c.send(reply{Done: true}) != nil {
		return
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(console, c)
	}()
	for p, ok := earlier, true; ok; {
		if c.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
			return
		}
		if _, err := c.Write(p); err != nil {
			return
		}
		select {
		case p, ok = <-w.C:
		case <-gone:
			return
		}
	}
}
