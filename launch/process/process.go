// Package process starts processes that end with the one that started them, and
// tells processes apart from later ones of the same number. It is Linux's own: of
// other systems it has the types alone.
package process

// A Process is a process, told apart from a later one of the same number by when
// it started.
type Process struct {
	Name string `json:"name,omitempty"`
	PID  int    `json:"pid"`
	// Start is the time when it started, in clock ticks since the system's boot:
	// field 22 of /proc/PID/stat.
	Start uint64 `json:"start"`
}
