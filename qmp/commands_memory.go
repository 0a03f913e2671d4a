package qmp

import "context"

// PMemSave makes QEMU write size bytes of guest-physical memory at gpa to the
// file path, which QEMU itself opens. Encrypted memory is written as it is.
func (c Commands) PMemSave(ctx context.Context, gpa, size uint64, path string) error {
	args := struct {
		Val      uint64 `json:"val"`
		Size     uint64 `json:"size"`
		Filename string `json:"filename"`
	}{gpa, size, path}
	return c.Execute(ctx, "pmemsave", args, nil)
}

// HumanMonitor runs a command of the human monitor, such as "info registers",
// and returns its text. QEMU promises nothing about what it looks like.
func (c Commands) HumanMonitor(ctx context.Context, line string) (string, error) {
	return query[string](ctx, c, "human-monitor-command", map[string]string{"command-line": line})
}

// MemorySize is the answer to query-memory-size-summary, in bytes.
type MemorySize struct {
	Base    uint64 `json:"base-memory"`
	Plugged uint64 `json:"plugged-memory"`
}

// QueryMemorySizeSummary asks how much memory the guest has.
func (c Commands) QueryMemorySizeSummary(ctx context.Context) (MemorySize, error) {
	return query[MemorySize](ctx, c, "query-memory-size-summary", nil)
}
