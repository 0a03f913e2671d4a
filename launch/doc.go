// Package launch turns a description of a confidential VM into a plan of its
// launch, and the plan into a QEMU command line or a libvirt domain.
//
// A [Spec] is the user's YAML. [Resolve] makes a [Plan] of it: every input is
// opened once, copied into a sealed memory file and hashed, the firmware parsed,
// the launch digest and the other golden values computed. What was measured is,
// byte for byte, what the VM is started with.
//
// Package machine starts a VM from a plan, and from nothing else; package doctor
// looks whether a host can.
package launch
