package attest

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"testing"
)

// PinRoot makes a root of the tests' own count as AMD's until the test ends: the
// parts that a simulated platform does not have (CRLs, the key distribution
// service) can be tested no other way.
func PinRoot(t testing.TB, root *x509.Certificate) {
	sum := sha256.Sum256(root.Raw)
	pinnedARKs["test"] = hex.EncodeToString(sum[:])
	t.Cleanup(func() { delete(pinnedARKs, "test") })
}

// EventDataFault is what re-hashing the data of a log's events finds.
func EventDataFault(l *EventLog) string {
	if c := checkEventData(l); c.Status == Failed {
		return c.Expected + ", found " + c.Found
	}
	if s := l.separatorFault(); s != "" {
		return "separator: " + s
	}
	return ""
}

// MaxSightings is the bound of a registry.
const MaxSightings = maxSightings
