package amqpx

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Stored responses of a caller share what their requests have in common, and a stored body does
// not keep a large buffer of the handler.
func TestStoredResponsesAreSmall(t *testing.T) {
	t.Parallel()
	const body = "few bytes"
	e := newDedupCache(DefaultDedupBytes, DefaultDedupAge, false)
	m := &serverMethod{name: "m"}
	store := func(id string, body []byte) *storedResponse {
		in := &incoming{Request: wire.Request{ID: id, Body: []byte("request"), ReplyTo: strings.Clone("reply"), FollowsContract: true}, user: "guest"}
		r := &invocation{request: &inboundRequest{method: m, in: in}}
		known, _ := in.identity()
		_, x := e.begin(r, known, time.Now())
		e.end(x, response{body: body}, true, true, time.Now())
		return e.stored.get(x.stored)
	}
	first := store("1", append(make([]byte, 0, 64<<10), body...))
	second := store("2", []byte(body))
	wantSame(t, "body", string(first.body), body)
	wantSame(t, "a large buffer is kept", cap(first.body) > 2*maxSlack, false)
	wantSame(t, "origin is shared", first.origin == second.origin, true)
	if first.more == nil || second.more == nil || store(newID(), nil).more != nil {
		t.Error("only ids that are no UUIDs are kept as texts")
	}
	wantSame(t, "request", *first.request() == executedRequest{
		method: m, replyTo: "reply", idHash: first.idHash, bodyHash: first.bodyHash,
		id: identity{requestID: requestID{scope: "guest", replyTo: "reply", id: "1"}},
	}, true)
}

// Stored responses of a method share their content type, unless they have further properties.
func TestStoredResponsesShareTheirContentType(t *testing.T) {
	t.Parallel()
	e := newDedupCache(DefaultDedupBytes, DefaultDedupAge, false)
	m := &serverMethod{name: "m"}
	store := func(r response) storedResponse {
		in := &incoming{Request: wire.Request{ID: newID(), ReplyTo: "reply", FollowsContract: true}, user: "guest"}
		run := &invocation{request: &inboundRequest{method: m, in: in}}
		known, _ := in.identity()
		_, x := e.begin(run, known, time.Now())
		e.end(x, r, true, true, time.Now())
		return *e.stored.get(x.stored)
	}
	typed := func() *wire.Properties { return &wire.Properties{ContentType: "application/json"} }
	first, second := store(response{props: typed()}), store(response{props: typed()})
	wantSame(t, "origin is shared", first.origin == second.origin, true)
	for name, c := range map[string]struct {
		props  *wire.Properties
		shared bool
	}{
		"none":                {nil, true},
		"content type":        {typed(), true},
		"no content type":     {&wire.Properties{}, false},
		"content encoding":    {&wire.Properties{ContentType: "application/json", ContentEncoding: "gzip"}, false},
		"header":              {&wire.Properties{ContentType: "application/json", Header: map[string]any{"h": "x"}}, false},
		"trailer":             {&wire.Properties{ContentType: "application/json", Trailer: map[string]any{"t": "x"}}, false},
		"header alone":        {&wire.Properties{Header: map[string]any{"h": "x"}}, false},
		"another":             {&wire.Properties{ContentType: "application/xml"}, true},
		"type of another API": {&wire.Properties{ContentType: "application/json", Type: "error"}, false},
	} {
		stored := store(response{props: c.props, body: []byte("b")})
		if got := stored.response(); !reflect.DeepEqual(got.props, c.props) || string(got.body) != "b" {
			t.Errorf("%s: %q with %+v, want %+v", name, got.body, got.props, c.props)
		}
		wantSame(t, name+": nothing of its own", stored.more == nil, c.shared)
	}
	failed := store(response{props: typed(), err: Errorf(CodeAborted, "no")})
	if got := failed.response(); got.err == nil || !reflect.DeepEqual(got.props, typed()) {
		t.Errorf("an error: %v with %+v", got.err, got.props)
	}
}

// Responses with a common content type share their properties, so a response from the store has its own.
func TestStoredResponseHasPropertiesOfItsOwn(t *testing.T) {
	t.Parallel()
	stored := storedBy(t.Context(), []byte("{}"), nil, &wire.Properties{ContentType: "application/json"})
	first, err := readStored(stored)
	if err != nil || first.props == nil || first.props.ContentType != "application/json" {
		t.Fatalf("properties %+v, error %v", first.props, err)
	}
	second, err := readStored(stored)
	if err != nil || second.props == first.props {
		t.Errorf("two responses share %p, error %v", second.props, err)
	}
}
