package qmp

import "context"

// An Executor is a way to QEMU's monitor: a [Client], or another that carries
// commands and their answers. Execute is as [Client.Execute].
type Executor interface {
	Execute(ctx context.Context, command string, args, out any) error
}

// Commands are QEMU's commands as methods, whatever way they go.
type Commands struct{ Executor }

// Status is the answer to query-status.
type Status struct {
	Running bool `json:"running"`
	// Status is the run state: "prelaunch", "running", "paused", "shutdown",
	// "guest-panicked", "internal-error" and others.
	Status string `json:"status"`
}

// QueryStatus asks for the run state.
func (c Commands) QueryStatus(ctx context.Context) (Status, error) {
	return query[Status](ctx, c, "query-status", nil)
}

// Cont starts or resumes the vCPUs.
func (c Commands) Cont(ctx context.Context) error { return c.Execute(ctx, "cont", nil, nil) }

// Stop pauses the vCPUs.
func (c Commands) Stop(ctx context.Context) error { return c.Execute(ctx, "stop", nil, nil) }

// Quit ends QEMU.
func (c Commands) Quit(ctx context.Context) error { return c.Execute(ctx, "quit", nil, nil) }

// SystemPowerdown presses the power button.
func (c Commands) SystemPowerdown(ctx context.Context) error {
	return c.Execute(ctx, "system_powerdown", nil, nil)
}

// QueryVersion asks for QEMU's version.
func (c Commands) QueryVersion(ctx context.Context) (Version, error) {
	v, err := query[wireVersion](ctx, c, "query-version", nil)
	return v.version(), err
}

// CPU is one element of the answer to query-cpus-fast.
type CPU struct {
	Index   int    `json:"cpu-index"`
	QOMPath string `json:"qom-path"`
	// Thread is the host's thread identifier.
	Thread int `json:"thread-id"`
}

// QueryCPUsFast lists the vCPUs without stopping them.
func (c Commands) QueryCPUsFast(ctx context.Context) ([]CPU, error) {
	return query[[]CPU](ctx, c, "query-cpus-fast", nil)
}

// query runs a command and decodes what it returns.
func query[T any](ctx context.Context, c Executor, command string, args any) (T, error) {
	var out T
	err := c.Execute(ctx, command, args, &out)
	return out, err
}
