// Package qmp speaks the QEMU Machine Protocol to a running QEMU.
//
// It is a client of its own behind the interface of go-qemu's package qmp
// ([Client.Monitor]): every call takes a context, replies are matched by id,
// messages may be as long as QEMU makes them (query-qmp-schema answers with
// 200 KiB) up to a cap, unread events never hold up a reply, and errors keep
// their class.
//
// The protocol: https://www.qemu.org/docs/master/interop/qmp-spec.html
package qmp
