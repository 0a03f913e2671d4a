package qmp

import "context"

// Status is the answer to query-status.
type Status struct {
	Running bool `json:"running"`
	// Status is the run state: "prelaunch", "running", "paused", "shutdown",
	// "guest-panicked", "internal-error" and others.
	Status string `json:"status"`
}

// QueryStatus asks for the run state.
func (c *Client) QueryStatus(ctx context.Context) (Status, error) {
	var s Status
	return s, c.Execute(ctx, "query-status", nil, &s)
}

// Cont starts or resumes the vCPUs.
func (c *Client) Cont(ctx context.Context) error { return c.Execute(ctx, "cont", nil, nil) }

// Stop pauses the vCPUs.
func (c *Client) Stop(ctx context.Context) error { return c.Execute(ctx, "stop", nil, nil) }

// Quit ends QEMU.
func (c *Client) Quit(ctx context.Context) error { return c.Execute(ctx, "quit", nil, nil) }

// SystemPowerdown presses the power button.
func (c *Client) SystemPowerdown(ctx context.Context) error {
	return c.Execute(ctx, "system_powerdown", nil, nil)
}

// SEV is the answer to query-sev.
type SEV struct {
	Enabled bool `json:"enabled"`
	// State is "uninit", "launch-update", "launch-secret", "running" and others.
	State string `json:"state"`
	// Type is "sev" or "sev-snp".
	Type string `json:"sev-type"`
	// SNPPolicy is the guest policy given to SNP_LAUNCH_START.
	SNPPolicy uint64 `json:"snp-policy"`
	APIMajor  int    `json:"api-major"`
	APIMinor  int    `json:"api-minor"`
	BuildID   int    `json:"build-id"`
}

// QuerySEV asks what QEMU knows of the launch.
func (c *Client) QuerySEV(ctx context.Context) (SEV, error) {
	var s SEV
	return s, c.Execute(ctx, "query-sev", nil, &s)
}

// PMemSave makes QEMU write size bytes of guest-physical memory at gpa to the
// file path, which QEMU itself opens.
func (c *Client) PMemSave(ctx context.Context, gpa, size uint64, path string) error {
	return c.Execute(ctx, "pmemsave", map[string]any{"val": gpa, "size": size, "filename": path}, nil)
}

// HumanMonitor runs a command of the human monitor and returns its text.
func (c *Client) HumanMonitor(ctx context.Context, line string) (string, error) {
	var text string
	return text, c.Execute(ctx, "human-monitor-command", map[string]string{"command-line": line}, &text)
}

// CPU is one element of the answer to query-cpus-fast.
type CPU struct {
	Index   int    `json:"cpu-index"`
	QOMPath string `json:"qom-path"`
	// Thread is the host's thread identifier.
	Thread int `json:"thread-id"`
}

// QueryCPUsFast lists the vCPUs without stopping them.
func (c *Client) QueryCPUsFast(ctx context.Context) ([]CPU, error) {
	var cpus []CPU
	return cpus, c.Execute(ctx, "query-cpus-fast", nil, &cpus)
}

// QOMGet reads a property of an object into out.
func (c *Client) QOMGet(ctx context.Context, path, property string, out any) error {
	return c.Execute(ctx, "qom-get", map[string]string{"path": path, "property": property}, out)
}

// named is an element of the lists that QOM commands answer with.
type named struct {
	Name string `json:"name"`
}

func names(list []named) []string {
	out := make([]string, len(list))
	for i, n := range list {
		out[i] = n.Name
	}
	return out
}

// QOMListTypes lists the types that implement another, abstract ones left out.
func (c *Client) QOMListTypes(ctx context.Context, implements string) ([]string, error) {
	var list []named
	err := c.Execute(ctx, "qom-list-types", map[string]any{"implements": implements, "abstract": false}, &list)
	return names(list), err
}

// QOMListProperties lists the properties of a type.
func (c *Client) QOMListProperties(ctx context.Context, typename string) ([]string, error) {
	var list []named
	err := c.Execute(ctx, "qom-list-properties", map[string]string{"typename": typename}, &list)
	return names(list), err
}

// DeviceListProperties lists the properties of a device type.
func (c *Client) DeviceListProperties(ctx context.Context, typename string) ([]string, error) {
	var list []named
	err := c.Execute(ctx, "device-list-properties", map[string]string{"typename": typename}, &list)
	return names(list), err
}
