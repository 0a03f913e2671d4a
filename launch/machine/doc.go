// Package machine starts VMs from plans, attests them and looks after them: the
// run directory, a supervisor process for each machine, QEMU as its child or as a
// domain of libvirt's, the first attestation and those after it, the end.
//
// [Start] is the launching side, [Supervise] the whole of a supervisor's process,
// [Home] what others ask about machines. The files of the run directory are
// described in docs/machines.md.
package machine
