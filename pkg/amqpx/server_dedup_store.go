package amqpx

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// Deduplication over servers. A server with a DedupStore claims the idempotency key of a request
// before it runs the handler, and stores the response before it sends it. The memory of the server
// (server_dedup.go) comes first: only a request that would run asks the store.
// docs/adr/0035-dedup-store.md has the reasons.

// DedupStore is a memory of idempotency keys for all servers that use it; see [WithDedupStore]. A
// key has no entry, or a claim, which ends with its lease, or a response, which ends with its age.
// Each method is one atomic step, for all programs that use the store.
//
// Module pkg/amqpxredis has a store in Redis, and package amqpxtest one in memory for tests, with a
// check for other stores. Keys, owners and fingerprints are ASCII without spaces, of at most 128 bytes;
// responses are bytes. Servers call the methods from several goroutines. A method must return when
// ctx ends. With an error the step may have been done or not.
type DedupStore interface {
	// Claim gives a claim the key for the time lease, if the key has no entry. If the key has a claim
	// of the same owner, the lease begins again. Otherwise the entry stays as it is. Claim returns
	// the entry as it is afterwards.
	Claim(ctx context.Context, key string, claim DedupClaim, lease time.Duration) (DedupEntry, error)
	// Complete stores the response of a claim for the time age, in place of any entry of the same
	// owner, and also if the key has no entry. If the key has an entry of another owner, it stays,
	// and the error is [ErrDedupClaimLost].
	Complete(ctx context.Context, key string, claim DedupClaim, response []byte, age time.Duration) error
	// Release removes the entry of the key if it is a claim of the same owner. Otherwise it does
	// nothing.
	Release(ctx context.Context, key string, claim DedupClaim) error
}

// DedupClaim says who claims a key, and for which request.
type DedupClaim struct {
	// Owner is a request in a server. No other request in any server has the same owner.
	Owner string
	// Fingerprint is a hash of the request's body.
	Fingerprint string
}

// DedupEntry is the entry of a key in a [DedupStore].
type DedupEntry struct {
	DedupClaim

	// Response is the stored response, which is not empty; nil for a claim.
	Response []byte
}

// ErrDedupClaimLost is returned by [DedupStore] when a response was not stored, because the lease of
// its claim had ended and another owner has the key.
var ErrDedupClaimLost = errors.New("another server has claimed the idempotency key")

// DefaultDedupLease is how long a claim in a [DedupStore] outlives its server.
const DefaultDedupLease = 15 * time.Second

const (
	// dedupStoreTime bounds a step of the store, so that its absence is noticed.
	dedupStoreTime = time.Second
	// renewals is how often a claim is renewed in the time of a lease.
	renewals = 3
	// claimPauseMin and claimPauseMax bound the pauses before the store is asked again for a key
	// that another server has claimed.
	claimPauseMin = 20 * time.Millisecond
	claimPauseMax = time.Second
	// maxLateEnds bounds the claims that end in the background; further claims end with their leases.
	maxLateEnds = 256
	// storeRetryAfter is the hint in the refusal of a request for which the store is away.
	storeRetryAfter = time.Second
	// storedFormat is the first byte of a stored response: the properties and the body of a message
	// follow, as on the wire.
	storedFormat = 1
)

// WithDedupStore lets servers share the memory of idempotency keys. A request with a key
// ([WithIdempotencyKey]) runs at most once over all servers that use the store, within the age of
// [WithDedup]; this server's memory comes first. The key belongs to the queue, the method and the
// owner as without a store ([WithDedupScope]); a key without an owner belongs to its reply_to.
// Brokers and virtual hosts with queues of equal names need separate stores, or separate prefixes
// in a store. The default, nil, is no store.
//
// While another server runs a request with the same key, a request waits, without a worker, until
// its deadline. The claim of a dead server ends with the lease ([WithDedupLease]): then the next
// request runs, although the first may have run. A method with [AtMostOnce] then answers a
// redelivered request with the stored response, or refuses the request. Like the memory, the
// store keeps only final results.
//
// If the store fails, or does not respond within a second, the server refuses the request with
// [CodeUnavailable], [DidNotRun] and a hint of a second, and a client tries again within the
// deadline and the retry budget. A one-way request waits for the store, until its deadline or the
// time limit of handlers. A response that cannot be stored is sent, and stored later; if the store
// stays away longer than the lease, another server may run the request again.
//
// Calls without a key or with only the key of [Idempotent], streams, and calls to all servers
// ([Client.CallAll]) do not use the store. The second request of a hedged call with a key
// ([WithHedge]) waits for the first.
func WithDedupStore(store DedupStore) ServerOption {
	return serverOption(func(c *serverConfig) { c.dedupStore = store })
}

// WithDedupLease sets how long a claim in the store of [WithDedupStore] lasts without renewal; the
// server renews a claim three times in d while the handler runs. The keys of a server that dies, or
// is cut off from the store, are free after d at the latest. The default is [DefaultDedupLease];
// less than a second is an error of [NewServer]. A server that stands still for longer than the
// lease loses all claims.
func WithDedupLease(d time.Duration) ServerOption {
	return serverOption(func(c *serverConfig) { c.dedupLease = d })
}

// dedupStoreFault returns an error for invalid settings of the store.
func (c *serverConfig) dedupStoreFault() error {
	switch {
	case c.dedupLease < time.Second:
		return fmt.Errorf("dedup lease %v: want at least 1s", c.dedupLease)
	case c.dedupStore != nil && c.replayAge < time.Second:
		return fmt.Errorf("stored responses for %v: want at least 1s with a dedup store", c.replayAge)
	default:
		return nil
	}
}

// sharesKey reports whether the store decides about a request: its caller has chosen a key. The key
// of any other idempotent call is its correlation id.
func (s *Server) sharesKey(req *inboundRequest) bool {
	return s.cfg.dedupStore != nil && req.in.Key != "" && req.in.Key != req.in.ID && !req.delivery.consumer.all
}

// storeAnswers reports whether a request that may have run can be left to the store, which has the
// response or else refuses it.
func (s *Server) storeAnswers(req *inboundRequest) bool {
	_, identified := req.in.identity()
	return identified && s.sharesKey(req)
}

// sharedKey is the key of a request in the store.
type sharedKey struct {
	server     *Server
	of         *invocation // nil in the background, where the request has ended
	method, id string      // of the request
	key        string
	claim      DedupClaim
}

// sharedKeyOf returns the key of a request with an identity. All executions of the request have the
// same owner, so that middleware can run the handler again, except after a claim that ends later.
func (s *Server) sharedKeyOf(r *invocation, id *identity) *sharedKey {
	r.mu.Lock()
	if r.claims == 0 {
		r.claims = s.claims.Add(1)
	}
	number := r.claims
	r.mu.Unlock()
	replyTo := ""
	if !id.shared {
		replyTo = r.request.in.ReplyTo
	}
	var named []byte
	for _, part := range [...]string{s.cfg.queue.Name, r.request.method.name, strconv.Itoa(int(id.kind)), id.scope, replyTo, id.id} {
		named = append(strconv.AppendQuote(named, part), ' ')
	}
	return &sharedKey{
		server: s, of: r, method: r.request.method.name, id: r.request.in.ID, key: hashText(named),
		claim: DedupClaim{Owner: s.self.id + "/" + strconv.FormatUint(number, 10), Fingerprint: hashText(r.request.in.Body)},
	}
}

// hashText returns a hash of b as text.
func hashText(b []byte) string {
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// ask makes one step in the store, and logs its failure. The store is code of the application, which
// may panic. If ctx has ended, the failure is not the store's.
func (k *sharedKey) ask(ctx context.Context, step string, do func(context.Context, DedupStore) error) (err error) {
	s := k.server
	limited, cancel := context.WithTimeout(ctx, min(dedupStoreTime, s.cfg.dedupLease/renewals))
	defer cancel()
	defer func() {
		if v := recover(); v != nil {
			err = &panicError{panicText(v)}
		}
		if err != nil && ctx.Err() == nil {
			s.logs.dedupStore.of(s.cfg.logger).Warn("the store of idempotency keys failed", zap.String("step", step), zap.Error(err))
		}
	}()
	return do(limited, s.cfg.dedupStore)
}

// tryClaim claims the key, or renews the claim.
func (k *sharedKey) tryClaim(ctx context.Context) (entry DedupEntry, err error) {
	err = k.ask(ctx, "claim", func(ctx context.Context, store DedupStore) error {
		entry, err = store.Claim(ctx, k.key, k.claim, k.server.cfg.dedupLease)
		return err
	})
	return entry, err
}

// runShared runs the handler of a request if no other server runs the request or has run it;
// otherwise it waits for the other server, and returns the stored response.
func (s *Server) runShared(ctx context.Context, r *invocation, x *execution, h Handler, req *Request) (body []byte, err error) {
	k := s.sharedKeyOf(r, &x.id)
	entry, refused := s.awaitClaim(ctx, r, k)
	switch {
	case refused != nil:
		return nil, r.refuse(refused)
	case entry.Owner != k.claim.Owner:
		return s.replayStored(r, entry.Response)
	case !s.regainWorker(ctx, r):
		k.end(ctx, nil)
		return nil, ctx.Err()
	case x == &r.first && r.request.method.atMostOnce && r.request.wasDeliveredBefore():
		k.end(ctx, nil)
		return nil, r.refuse(leftToStore(deliveredOnceError(r.request.method.name)))
	}
	err = errGoexit
	stop := k.keep(ctx)
	defer func() {
		stop()
		k.end(ctx, s.storedFormOf(ctx, r, body, err))
	}()
	return req.runHandler(ctx, h)
}

// leftToStore marks an error that requests which wait for the same execution in this server do not
// take: they ask the store themselves.
func leftToStore(e *Error) *Error {
	e.refused = true
	return e
}

// awaitClaim claims a key. While another server has a claim, and for a one-way request also while
// the store fails, it waits, and another worker takes the place of the request's worker. The
// result is an entry of this request, or a response; or else the reason why the request does not run.
// Polling notices a response as well as the end of a lease.
func (s *Server) awaitClaim(ctx context.Context, r *invocation, k *sharedKey) (DedupEntry, *Error) {
	for tries := 0; ; tries++ {
		entry, err := k.tryClaim(ctx)
		switch {
		case err != nil && (ctx.Err() != nil || !r.request.in.OneWay):
			k.endLater(ctx, nil) // the claim may have been made
			if ctx.Err() != nil {
				return entry, endedWhileWaiting(ctx)
			}
			away := Refuse(CodeUnavailable, "the store of idempotency keys is away").WithRetryAfter(storeRetryAfter)
			if tries > 0 { // another server may have run it
				away.outcome = MayHaveRun
			}
			return entry, away
		case err != nil:
		case entry.Owner == k.claim.Owner:
			return entry, nil
		case entry.Fingerprint != k.claim.Fingerprint:
			return entry, leftToStore(s.duplicateRefusal(r, dedupConflict))
		case entry.Response != nil:
			return entry, nil
		}
		if tries == 0 {
			if s.claimWaits.Add(1) > maxWaitingDuplicates {
				s.claimWaits.Add(-1)
				return entry, leftToStore(s.duplicateRefusal(r, dedupTooMany))
			}
			defer s.claimWaits.Add(-1)
			defer s.waits(r)() //nolint:contextcheck // the other worker outlives this request.
		}
		xsync.Sleep(ctx, xsync.GrowingPause(claimPauseMin, claimPauseMax, tries))
		if ctx.Err() != nil {
			return entry, endedWhileWaiting(ctx)
		}
	}
}

// keep renews the claim until the result is called. A handler that ends before the first renewal
// needs no goroutine.
func (k *sharedKey) keep(ctx context.Context) (stop func()) {
	over, ended := make(chan struct{}), make(chan struct{})
	ctx = context.WithoutCancel(ctx)
	pause := k.server.cfg.dedupLease / renewals
	timer := time.AfterFunc(pause, func() {
		defer close(ended)
		next := time.NewTicker(pause)
		defer next.Stop()
		for k.renew(ctx) {
			select {
			case <-next.C:
			case <-over:
				return
			}
		}
	})
	return func() {
		close(over)
		if !timer.Stop() {
			<-ended // or a late renewal would claim the key again
		}
	}
}

// renew renews the claim, and returns false if it is lost. A claim is renewed again after a failure
// of the store.
func (k *sharedKey) renew(ctx context.Context) (held bool) {
	entry, err := k.tryClaim(ctx)
	if err == nil && entry.Owner != k.claim.Owner {
		k.lost()
		return false
	}
	return true
}

// lost logs that another server has the key of a request that runs, or has run, here.
func (k *sharedKey) lost() {
	s := k.server
	s.logs.dedupClaim.of(s.cfg.logger).Warn("another server has the idempotency key of a request that ran here",
		zap.String("method", k.method), zap.String("correlation_id", k.id))
}

// end ends the claim: it stores a response, or releases the key if response is nil. If the store
// fails, end goes on in the background.
func (k *sharedKey) end(ctx context.Context, response []byte) {
	if err := k.tryEnd(context.WithoutCancel(ctx), response); err != nil {
		k.endLater(ctx, response)
	}
}

// endLater is end in the background, until it succeeds, the entry would have ended anyway, or Serve
// returns. Further executions of the request have another owner, whose claims it does not end.
func (k *sharedKey) endLater(ctx context.Context, response []byte) {
	s := k.server
	k.of.mu.Lock()
	k.of.claims = 0
	k.of.mu.Unlock()
	late := *k
	late.of = nil
	if s.lateEnds.Add(1) > maxLateEnds {
		s.lateEnds.Add(-1)
		return
	}
	limit := s.cfg.dedupLease
	if response != nil {
		limit = s.cfg.replayAge
	}
	until, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	go func() {
		defer s.lateEnds.Add(-1)
		defer cancel()
		for tries := 0; late.tryEnd(until, response) != nil; tries++ {
			pause := time.NewTimer(xsync.GrowingPause(claimPauseMin, claimPauseMax, tries))
			select {
			case <-pause.C:
			case <-until.Done():
				pause.Stop()
				return
			case <-s.served:
				pause.Stop()
				return
			}
		}
	}()
}

// tryEnd ends the claim once.
func (k *sharedKey) tryEnd(ctx context.Context, response []byte) error {
	if response == nil {
		return k.ask(ctx, "release", func(ctx context.Context, store DedupStore) error { return store.Release(ctx, k.key, k.claim) })
	}
	return k.ask(ctx, "complete", func(ctx context.Context, store DedupStore) error {
		err := store.Complete(ctx, k.key, k.claim, response, k.server.cfg.replayAge)
		if errors.Is(err, ErrDedupClaimLost) {
			k.lost()
			return nil
		}
		return err
	})
}

// storedFormOf returns the result of a handler as the store keeps it, or nil if the result is not
// final. The caller of a response beyond the size limit gets an error, which is final.
func (s *Server) storedFormOf(ctx context.Context, r *invocation, body []byte, err error) []byte {
	res, final, _ := responseOf(ctx, body, err)
	switch {
	case !final:
		return nil
	case len(res.body) > s.cfg.maxMessageSize:
		res = response{err: s.responseTooLarge(len(res.body))}
	}
	w := (&reply{body: res.body, failed: res.err, props: r.response.Load()}).toWire(nil)
	msg := w.Publishing(&wire.Request{}, false)
	stored, err := transport.AppendContent([]byte{storedFormat}, &msg)
	if err != nil {
		s.cfg.logger.Error("a response cannot be stored", zap.String("method", r.request.method.name), zap.Error(err))
		return nil
	}
	return stored
}

// replayStored returns a response from the store.
func (s *Server) replayStored(r *invocation, stored []byte) ([]byte, error) {
	res, err := readStored(stored)
	if err != nil {
		s.cfg.logger.Error("a stored response cannot be read", zap.String("method", r.request.method.name), zap.Error(err))
		e := leftToStore(Errorf(CodeUnavailable, "the stored response cannot be read"))
		e.outcome = MayHaveRun
		return nil, r.refuse(e)
	}
	return s.replay(r, &execution{response: res})
}

// errStoredFormat is the error of a response of another format, as of a later version.
var errStoredFormat = errors.New("unknown format")

// readStored is the inverse of storedFormOf.
func readStored(stored []byte) (response, error) {
	if len(stored) == 0 || stored[0] != storedFormat {
		return response{}, errStoredFormat
	}
	msg, err := transport.ReadContent(stored[1:])
	if err != nil {
		return response{}, err
	}
	w := wire.DecodeResponse(&msg)
	res := response{body: w.Body, props: w.Properties}
	if res.props != nil {
		header, failed := wire.EncodeHeader(res.props.Header)
		trailer, failedToo := wire.EncodeHeader(res.props.Trailer)
		if err = errors.Join(failed, failedToo); err != nil {
			return response{}, err
		}
		props := *res.props // which responses share
		props.Header, props.Trailer = header, trailer
		res.props = &props
	}
	if w.Failure != nil {
		res.err = errorOf(w.Failure)
		res.err.remote, res.err.outcome = false, Ran // as of this server's handler
	}
	return res, nil
}
