package wire

// Kinds of control messages (app_id).
const (
	ControlCancel = "cancel"
	ControlPing   = "ping"
	ControlInfo   = "info"
	ControlStats  = "stats"
)

// Cancellation names a call that its caller canceled.
type Cancellation struct {
	// ID is the id of the call (correlation_id).
	ID string
	// Method is the method of the call.
	Method string
	// Key is the idempotency key of the call; may be "", or the id.
	Key string
}

// AppendTo appends the record of the cancellation to the body of a message with app_id
// [ControlCancel] and content type [ContentTypeRequests]. A server decodes the record with
// [Request.DecodeRecord].
func (c *Cancellation) AppendTo(b []byte) []byte {
	b, start := beginRecord(b)
	b = appendText(b, requestID, c.ID)
	b = appendText(b, requestMethod, c.Method)
	if c.Key != c.ID {
		b = appendText(b, requestMessageID, c.Key)
	}
	return endRecord(b, start)
}
