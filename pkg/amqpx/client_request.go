package amqpx

import (
	"crypto/rand"
	"maps"
	"sync"
	"time"

	"github.com/google/uuid"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// callRequest is the part of a request that a call keeps until its last attempt.
type callRequest struct {
	method string
	id     uuid.UUID // the correlation id, unless isText
	body   []byte
	more   *requestOptions // nil if the request has no such options

	hash       uint32 // of the id, in the pending table
	isText     bool   // the correlation id is not a UUID, and is in more
	keyIsID    bool   // the idempotency key is the correlation id
	idempotent bool
	traits     requestTraits
}

// requestTraits are properties of a request in one octet: a call would not fit in its size class
// with a field for each.
type requestTraits uint8

const (
	traitWaitForServer requestTraits = 1 << iota // see WaitForServer
	traitUnsampled                               // see Request.Unsampled
	traitKeyed                                   // the call uses requestOptions.shard, see WithShardKey
	traitOneWay                                  // the request wants no response, see Client.Send
)

// has reports whether t has a trait.
func (t requestTraits) has(trait requestTraits) bool { return t&trait != 0 }

// traitsOf returns the traits of a request.
func traitsOf(req *Request) (t requestTraits) {
	if req.sent.waitForServer {
		t |= traitWaitForServer
	}
	if req.Unsampled {
		t |= traitUnsampled
	}
	if req.sent.keyed {
		t |= traitKeyed
	}
	if req.sent.oneWay {
		t |= traitOneWay
	}
	return t
}

// requestOptions has the parts of a call's request that few calls have.
type requestOptions struct {
	info                         *CallInfo      // set when the call ends; nil if the caller does not want it
	header                       map[string]any // of the application
	contentType, contentEncoding string
	key                          string // the idempotency key, if it is not the correlation id
	id                           string // the correlation id, if middleware has set one that is not a UUID
	shard                        uint8  // the shard of the call's key
	priority                     uint8
	// expires is when a one-way request expires; the zero time: it does not.
	expires time.Time

	acceptEncoding string           // the content encodings that the response may have
	content        *receivedContent // set when the call ends; nil if nobody wants it
}

// setRequest sets the request of the call, with headers of AMQP's types, or returns the reason
// why the request cannot be sent. A header map that middleware has seen is copied, because
// middleware may change the map again.
func (k *call) setRequest(req *Request, maxBody int) error {
	header, err := wire.EncodeHeader(req.Header)
	if err != nil {
		return err
	}
	if !req.sent.ours {
		header = maps.Clone(header)
	}
	k.req = callRequest{
		method: req.Method, body: req.Body, more: k.req.more,
		idempotent: req.Idempotent, traits: traitsOf(req),
	}
	if req.sent.info != nil || len(header) > 0 || req.ContentType != "" || req.ContentEncoding != "" {
		*k.req.options() = requestOptions{info: req.sent.info, header: header, contentType: req.ContentType, contentEncoding: req.ContentEncoding}
	}
	if req.sent.keyed {
		k.req.options().shard = req.sent.shard
	}
	if req.Priority > 0 {
		k.req.options().priority = req.Priority
	}
	if !req.sent.expires.IsZero() {
		k.req.options().expires = req.sent.expires
	}
	if req.sent.acceptEncoding != "" || req.sent.content != nil {
		k.req.options().acceptEncoding, k.req.options().content = req.sent.acceptEncoding, req.sent.content
	}
	if req.sent.ours {
		k.req.id = newUUID()
		k.req.setKey(req.IdempotencyKey, req.Idempotent && req.IdempotencyKey == "")
	} else {
		k.req.setID(req.CorrelationID)
		k.req.setKey(req.IdempotencyKey, req.IdempotencyKey == req.CorrelationID)
	}
	if req.sent.ours && req.IdempotencyKey == "" && k.req.isPlain() {
		return wire.CheckCall(req.Method, req.Body, maxBody)
	}
	checked := k.req.measured()
	return checked.Check(maxBody)
}

// isPlain reports whether the request has only a method and a body, a new id and possibly a key.
func (r *callRequest) isPlain() bool {
	m := r.more
	return m == nil || len(m.header) == 0 && m.contentType == "" && m.contentEncoding == "" && m.acceptEncoding == ""
}

// options returns the options of the request, for a change.
func (r *callRequest) options() *requestOptions {
	if r.more == nil {
		r.more = &requestOptions{}
	}
	return r.more
}

// shard returns the shard of the call's key, if the call has one.
func (r *callRequest) shard() (i int, keyed bool) {
	if !r.traits.has(traitKeyed) {
		return 0, false
	}
	return int(r.more.shard), true
}

// isOneWay reports whether the request wants no response.
func (r *callRequest) isOneWay() bool { return r.traits.has(traitOneWay) }

// expires returns when a one-way request expires; the zero time: it does not.
func (r *callRequest) expires() time.Time {
	if r.more == nil {
		return time.Time{}
	}
	return r.more.expires
}

// text returns the correlation id as it travels.
func (r *callRequest) text() string {
	if r.isText {
		return r.more.id
	}
	return r.id.String()
}

// setID sets the correlation id.
func (r *callRequest) setID(text string) {
	t := tableIDOf([]byte(text))
	r.id, r.isText = t.uuid, t.isText
	if r.isText {
		r.options().id = t.text
	}
}

// tableID returns the correlation id as the pending table knows it.
func (r *callRequest) tableID() tableID {
	if r.isText {
		return tableID{isText: true, text: r.more.id}
	}
	return tableID{uuid: r.id}
}

// has reports whether the request has a correlation id.
func (r *callRequest) has(t *tableID) bool {
	return r.id == t.uuid && r.isText == t.isText && (!t.isText || r.more.id == t.text)
}

// key returns the idempotency key; "" if the request has none.
func (r *callRequest) key() string {
	switch {
	case r.keyIsID:
		return r.text()
	case r.more != nil:
		return r.more.key
	default:
		return ""
	}
}

// setKey sets the idempotency key, which is ignored if isID says that it is the correlation id.
func (r *callRequest) setKey(key string, isID bool) {
	if r.keyIsID = isID; isID {
		key = ""
	}
	if key != "" || r.more != nil {
		r.options().key = key
	}
}

// noteContent sets the receivedContent of a call that has a response, if the caller wants it.
func (k *call) noteContent(limit int) {
	m := k.req.more
	if m == nil || m.content == nil || !k.responded {
		return
	}
	*m.content = receivedContent{limit: limit}
	if p := k.response.Properties; p != nil {
		m.content.contentType, m.content.contentEncoding = p.ContentType, p.ContentEncoding
	}
}

// info returns the CallInfo that the caller wants; nil if the caller wants none.
func (r *callRequest) info() *CallInfo {
	if r.more == nil {
		return nil
	}
	return r.more.info
}

// onWire returns the request without the fields that differ from one attempt to the next.
func (r *callRequest) onWire() wire.Request { return r.withID(r.text()) }

// someUUID has the length of all UUIDs. It is no text, so that no idempotency key is equal to it.
const someUUID = "\xff\xff\xff\xff\xff\xff\xff\xff-\xff\xff\xff\xff-\xff\xff\xff\xff-\xff\xff\xff\xff-\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"

// measured returns the request like onWire, for a check of its size, but does not make the text of
// the id.
func (r *callRequest) measured() wire.Request {
	if r.isText {
		return r.onWire()
	}
	return r.withID(someUUID)
}

// withID returns the request with the text of its correlation id.
func (r *callRequest) withID(id string) wire.Request {
	req := wire.Request{Method: r.method, Body: r.body, ID: id, Idempotent: r.idempotent, Unsampled: r.traits.has(traitUnsampled)}
	if r.keyIsID {
		req.Key = id
	}
	if m := r.more; m != nil {
		req.Header, req.ContentType, req.ContentEncoding, req.WantsTimes = m.header, m.contentType, m.contentEncoding, m.info != nil && !r.isOneWay()
		req.AcceptEncoding, req.Priority = m.acceptEncoding, m.priority
		if !r.keyIsID {
			req.Key = m.key
		}
	}
	return req
}

// newID returns a correlation id, a UUID of version 4 (RFC 9562 section 5.4). The id must not
// be guessable: a party that knows a call's key can obtain its response. Safe for concurrent
// use.
func newID() string {
	id := newUUID()
	return id.String()
}

// newUUID is newID without the text.
func newUUID() uuid.UUID {
	s, _ := idSources.Get().(*idSource)
	id := s.next()
	idSources.Put(s)
	return id
}

// idSources are the idle sources of random bytes.
//
//nolint:gochecknoglobals // every caller may use every source.
var idSources = sync.Pool{New: func() any { return &idSource{used: idBytes} }}

// idBytes is the number of random bytes fetched at once: a system call for each id would take
// longer than all other work for the id.
const idBytes = 64 * len(uuid.UUID{})

// idSource makes ids for one goroutine at a time.
type idSource struct {
	used  int
	bytes [idBytes]byte
}

func (s *idSource) next() (id uuid.UUID) {
	if s.used == len(s.bytes) {
		_, _ = rand.Read(s.bytes[:]) // never returns an error
		s.used = 0
	}
	s.used += copy(id[:], s.bytes[s.used:])
	id[6] = id[6]&0x0f | 0x40 // version 4
	id[8] = id[8]&0x3f | 0x80 // variant of the RFC
	return id
}

// tableID is a correlation id as the pending table compares ids: a UUID in the form that newID
// makes takes 16 bytes instead of a text of 36. Any other id is from middleware, or from another
// program.
type tableID struct {
	uuid   uuid.UUID // zero if isText
	text   string    // of an id that is not such a UUID
	isText bool
}

// tableIDOf returns the tableID of an id as it travels.
func tableIDOf(id []byte) (t tableID) {
	if parseUUID(&t.uuid, id) {
		return t
	}
	return tableID{text: string(id), isText: true}
}

// parseUUID parses a UUID in the form that newID makes, and in no other form.
func parseUUID(to *uuid.UUID, text []byte) bool {
	if len(text) != len(someUUID) {
		return false
	}
	n := 0
	for i := 0; i < len(text); i++ {
		switch i {
		case 8, 13, 18, 23:
			if text[i] != '-' {
				return false
			}
			continue
		}
		high, low := hexDigits[text[i]], hexDigits[text[i+1]]
		if high|low > 0xf {
			return false
		}
		to[n] = high<<4 | low
		n, i = n+1, i+1
	}
	return true
}

// hexDigits has the values of the digits of newID, and 0xff for any other character.
//
//nolint:gochecknoglobals // it never changes.
var hexDigits = func() (values [256]byte) {
	for i := range values {
		values[i] = 0xff
	}
	for value, digit := range []byte("0123456789abcdef") {
		values[digit] = byte(value)
	}
	return values
}()
