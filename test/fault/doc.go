// Package fault injects every fault we can into running pairs of client and server,
// and proves from ledgers that every call settled and that what was said of it is
// true. docs/reliability.md tells how to run it and what it found.
package fault
