//go:build unix

package inputfile

import "syscall"

// openFlags keeps the open from waiting for a pipe's writer, and from making a
// terminal ours.
const openFlags = syscall.O_NONBLOCK | syscall.O_NOCTTY
