// Package fault injects many kinds of faults into running pairs of client and server. Ledgers
// prove a settled result and a true outcome for every call. docs/reliability.md describes the
// usage and the results.
package fault
