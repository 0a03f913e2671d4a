package launch

// source remembers where the fields of a spec stand in its file.
type source struct {
	name  string
	lines map[string]int
}
