package libvirtd

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/evtpm/evtpm/qmp"
)

// A Monitor is QEMU's monitor through libvirt.
type Monitor struct {
	conn   *Conn
	domain libvirt.Domain
	qemu   qmp.Version
	events chan qmp.Event
	over   chan struct{}
	once   sync.Once
}

// monitorQueue is how many events wait for a reader before the oldest goes.
const monitorQueue = 256

func NewMonitor(ctx context.Context, conn *Conn, d libvirt.Domain) (*Monitor, error) {
	m := &Monitor{conn: conn, domain: d, events: make(chan qmp.Event, monitorQueue), over: make(chan struct{})}
	var events <-chan libvirt.DomainEvent
	err := conn.Call(ctx, "events of QEMU", func(l *libvirt.Libvirt) (err error) {
		// It ends with the connection. By name, for want of another way: the events
		// say whose they are.
		events, err = l.SubscribeQEMUEvents(context.Background(), d.Name)
		return err
	})
	if err != nil {
		return nil, err
	}
	go m.pump(events)
	m.qemu, err = qmp.Commands{Executor: m}.QueryVersion(ctx)
	return m, err
}

// pump passes events on until the domain or the connection has ended; go-libvirt
// must never be kept waiting.
func (m *Monitor) pump(events <-chan libvirt.DomainEvent) {
	defer func() {
		close(m.events)
		for range events {
		}
	}()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return
			}
			if e.Domain.UUID != m.domain.UUID {
				continue
			}
			m.publish(qmp.Event{Name: e.Event, Data: e.Details, Time: time.Unix(int64(e.Seconds), int64(e.Microseconds)*1000)})
		case <-m.over:
			return
		}
	}
}

// publish queues an event, at the cost of the oldest when the queue is full.
func (m *Monitor) publish(e qmp.Event) {
	for {
		select {
		case m.events <- e:
			return
		default:
		}
		select {
		case <-m.events:
		default:
		}
	}
}

// Finish says that the domain has ended: what QEMU said last has a moment to
// come in.
func (m *Monitor) Finish() {
	m.once.Do(func() { time.AfterFunc(100*time.Millisecond, func() { close(m.over) }) })
}

// Events implements the monitor of a machine.
func (m *Monitor) Events() <-chan qmp.Event { return m.events }

// Version implements the monitor of a machine.
func (m *Monitor) Version() qmp.Version { return m.qemu }

// Execute implements qmp.Executor.
func (m *Monitor) Execute(ctx context.Context, command string, args, out any) error {
	request, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return fmt.Errorf("qmp: %s: arguments: %w", command, err)
	}
	var answer string
	err = m.conn.Call(ctx, command, func(l *libvirt.Libvirt) (err error) {
		answer, err = l.QEMUDomainMonitorCommand(m.domain, string(request), 0)
		return err
	})
	if err != nil {
		return err
	}
	return qmp.DecodeReply(command, []byte(answer), out)
}
