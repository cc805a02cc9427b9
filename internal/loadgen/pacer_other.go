//go:build !linux

package loadgen

// NewPacer returns a pacer that is as exact as the runtime's timers.
func NewPacer() Pacer { return Pacer{} }
