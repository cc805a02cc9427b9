package wire

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

// DroppedBody describes a body that this process discarded on arrival. The reader of frames
// sets the description as the value of [HeaderDropped]; the decoders of requests and responses
// read it.
type DroppedBody struct {
	// Size is the size of the body in bytes.
	Size uint64
	// Limit is the size limit of a body in bytes.
	Limit int
	// NoRoom is true if the body is within the limit, and there was no room for it.
	NoRoom bool
}

// dropNonce is the prefix of the value of HeaderDropped. It is random, so that no other program
// can forge a message with a body dropped here.
var dropNonce = func() string { //nolint:gochecknoglobals // made once, constant.
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}()

// HeaderValue returns the value of [HeaderDropped].
func (d DroppedBody) HeaderValue() string {
	return fmt.Sprintf("%s %t %d %d", dropNonce, d.NoRoom, d.Size, d.Limit)
}

// TooLarge returns the error text for a body beyond the limit.
func (d DroppedBody) TooLarge() string {
	return fmt.Sprintf("%v: body of %d bytes, limit %d", ErrTooLarge, d.Size, d.Limit)
}

// DroppedBodyOf returns the description of a message's dropped body; ok is false if the body
// was not dropped.
func DroppedBodyOf(h amqp.Table) (d DroppedBody, ok bool) {
	value, _ := h[HeaderDropped].(string)
	value, ok = strings.CutPrefix(value, dropNonce)
	if !ok {
		return DroppedBody{}, false
	}
	return parseDroppedBody(value)
}

// parseDroppedBody reads the value of [HeaderDropped] after the nonce. It is a function of its
// own because its result is allocated, and nearly every message has its body.
func parseDroppedBody(value string) (d DroppedBody, ok bool) {
	_, err := fmt.Sscanf(value, "%t %d %d", &d.NoRoom, &d.Size, &d.Limit)
	return d, err == nil
}
