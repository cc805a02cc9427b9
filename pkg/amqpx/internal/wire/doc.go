// Package wire is the codec of the wire contract, version 1: it converts requests, responses and
// the records of batches and of the control plane from and to AMQP messages. docs/protocol.md
// specifies the contract for programs in other languages.
//
// The package does no I/O, starts no goroutine and takes no lock. It does not know clients,
// servers and the errors of callers: package amqpx maps them to the values of this package.
package wire
