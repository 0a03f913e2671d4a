package qmp

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	goqemu "github.com/digitalocean/go-qemu/qmp"
)

// monitorTimeout bounds a command run through go-qemu's interface, which has no
// contexts.
const monitorTimeout = time.Minute

// monitor shows a Client as go-qemu's interface.
type monitor struct{ c *Client }

// Monitor returns the client as go-qemu's [goqemu.Monitor]. Connect does
// nothing: the client is connected already. Each command is bounded by a minute.
// A refused command is an *[Error] with its class. Its events are those of
// [Client.Events]: each is seen by one reader.
func (c *Client) Monitor() goqemu.Monitor { return monitor{c} }

func (m monitor) Connect() error    { return nil }
func (m monitor) Disconnect() error { return m.c.Close() }

// Run takes a whole command object, and returns QEMU's whole reply object.
func (m monitor) Run(command []byte) ([]byte, error) {
	var request struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments"`
	}
	if err := json.Unmarshal(command, &request); err != nil {
		return nil, fmt.Errorf("qmp: command: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), monitorTimeout)
	defer cancel()
	var args any
	if request.Arguments != nil {
		args = request.Arguments
	}
	var result json.RawMessage
	if err := m.c.Execute(ctx, request.Execute, args, &result); err != nil {
		return nil, err
	}
	return json.Marshal(map[string]json.RawMessage{"return": result})
}

// Events passes the client's events on until ctx ends or the connection does.
func (m monitor) Events(ctx context.Context) (<-chan goqemu.Event, error) {
	out := make(chan goqemu.Event)
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case e, ok := <-m.c.Events():
				if !ok {
					return
				}
				select {
				case out <- e.goQEMU():
				case <-ctx.Done():
					return
				case <-m.c.Done():
					return
				}
			}
		}
	}()
	return out, nil
}

func (e Event) goQEMU() goqemu.Event {
	g := goqemu.Event{Event: e.Name}
	// Data that is no object cannot be shown in go-qemu's type; the event can.
	_ = json.Unmarshal(e.Data, &g.Data)
	g.Timestamp.Seconds = e.Time.Unix()
	g.Timestamp.Microseconds = int64(e.Time.Nanosecond() / 1000)
	return g
}
