package wire

import (
	"testing"
	"time"
)

func wantSame[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// readRequests decodes a batch of requests as a server does.
func readRequests(body []byte, replyTo string) (all []*Request, failed []error, err error) {
	records, err := AppendRecords(nil, body)
	for _, record := range records {
		r := &Request{}
		failed = append(failed, r.DecodeRecord(record, replyTo, func(name []byte) string { return string(name) }))
		all = append(all, r)
	}
	return all, failed, err
}

// decodedFrom returns the request that a receiver decodes from a record of req.
func decodedFrom(req Request, replyTo string, budget time.Duration) Request {
	req.ReplyTo, req.Budget, req.FollowsContract, req.Redelivered = replyTo, budget, true, req.Resent
	return req
}

// sentFields returns a decoded request without what only its decoder uses.
func sentFields(r *Request) Request {
	own := *r
	own.headerBytes = 0
	return own
}
