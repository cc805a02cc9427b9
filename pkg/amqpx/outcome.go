package amqpx

// Outcome tells whether the server may have run a failed call. It decides
// whether calling again is safe.
type Outcome uint8

const (
	// MayHaveRun is the zero value and the honest default: the request left this
	// process and nothing proves what became of it.
	MayHaveRun Outcome = iota
	// DidNotRun is a guarantee: no handler was started for the call, and none will be.
	DidNotRun
	// Ran means that a handler ran and said how it ended.
	Ran
)

// String returns "may have run", "did not run" or "ran".
func (o Outcome) String() string {
	switch o {
	case DidNotRun:
		return "did not run"
	case Ran:
		return "ran"
	default:
		return "may have run"
	}
}
