package amqpxtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// checkTime is the lease or the age of entries that a check of a store sees ending, and checkPause the
// pause between two looks at them.
const (
	checkTime  = 300 * time.Millisecond
	checkPause = 10 * time.Millisecond
)

// CheckDedupStore checks a store against the contract of [amqpx.DedupStore], and returns all
// deviations as one error. The keys of the check begin with prefix and must have no entries; entries
// that remain end within a minute. The check takes a second. Run it in the tests of a store:
//
//	if err := amqpxtest.CheckDedupStore(ctx, store, "test/"); err != nil {
//		t.Error(err)
//	}
func CheckDedupStore(ctx context.Context, store amqpx.DedupStore, prefix string) error {
	k := &storeCheck{ctx: ctx, store: store}
	for name, check := range map[string]func(key string){
		"claims": k.claims, "responses": k.responses, "without-a-claim": k.withoutAClaim,
		"lease": k.lease, "age": k.age, "at-once": k.atOnce, "ended-context": k.endedContext,
	} {
		k.key = prefix + name
		check(k.key)
	}
	return errors.Join(k.faults...)
}

// storeCheck is a check of a store.
type storeCheck struct {
	ctx    context.Context //nolint:containedctx // of one check.
	store  amqpx.DedupStore
	key    string
	faults []error
}

// The claims of two servers.
func checkClaims() (a, b amqpx.DedupClaim) {
	return amqpx.DedupClaim{Owner: "owner-a/1", Fingerprint: "print-a"}, amqpx.DedupClaim{Owner: "owner-b/1", Fingerprint: "print-b"}
}

func (k *storeCheck) failed(format string, args ...any) {
	k.faults = append(k.faults, fmt.Errorf("amqpxtest: key %q: "+format, append([]any{k.key}, args...)...))
}

// claim claims a key for a minute, and compares the entry.
func (k *storeCheck) claim(when, key string, claim, owner amqpx.DedupClaim, response string) {
	e, err := k.store.Claim(k.ctx, key, claim, time.Minute)
	if err != nil || e.DedupClaim != owner || string(e.Response) != response || (e.Response == nil) != (response == "") {
		k.failed("Claim by %s %s: entry of %q with fingerprint %q and response %q, error %v; want %q, %q, %q", claim.Owner, when, e.Owner,
			e.Fingerprint, e.Response, err, owner.Owner, owner.Fingerprint, response)
	}
}

func (k *storeCheck) complete(when, key string, claim amqpx.DedupClaim, response string, age time.Duration, want error) {
	if err := k.store.Complete(k.ctx, key, claim, []byte(response), age); !errors.Is(err, want) {
		k.failed("Complete by %s %s: error %v, want %v", claim.Owner, when, err, want)
	}
}

func (k *storeCheck) release(when, key string, claim amqpx.DedupClaim) {
	if err := k.store.Release(k.ctx, key, claim); err != nil {
		k.failed("Release by %s %s: %v", claim.Owner, when, err)
	}
}

func (k *storeCheck) claims(key string) {
	a, b := checkClaims()
	k.claim("of a free key", key, a, a, "")
	k.claim("of a claimed key", key, b, a, "")
	k.claim("again", key, a, a, "")
	k.release("of the claim of another", key, b)
	k.claim("after the release by another", key, b, a, "")
	k.release("of its claim", key, a)
	k.claim("after the release", key, b, b, "")
}

func (k *storeCheck) responses(key string) {
	a, b := checkClaims()
	response := strings.Repeat("\x00\xff\r\n", 1<<16)
	k.claim("of a free key", key, a, a, "")
	k.complete("without the claim", key, b, "other", time.Minute, amqpx.ErrDedupClaimLost)
	k.claim("after another's response was not stored", key, b, a, "")
	k.complete("with the claim", key, a, response, time.Minute, nil)
	k.claim("of a key with a response", key, b, a, response)
	k.claim("of a key with its own response", key, a, a, response)
	k.release("after its response", key, a)
	k.claim("after a release without effect", key, b, a, response)
	k.complete("over the response of another", key, b, "other", time.Minute, amqpx.ErrDedupClaimLost)
	k.complete("over its own response", key, a, "2", time.Minute, nil)
	k.claim("of the replaced response", key, b, a, "2")
}

func (k *storeCheck) withoutAClaim(key string) {
	a, b := checkClaims()
	k.release("of a free key", key, a)
	k.complete("of a free key", key, a, "1", time.Minute, nil)
	k.claim("of a key with a response", key, b, a, "1")
}

// lease checks that a claim ends with its lease, which a renewal begins again.
func (k *storeCheck) lease(key string) {
	a, b := checkClaims()
	var begun time.Time
	for range 2 {
		begun = time.Now()
		if _, err := k.store.Claim(k.ctx, key, a, checkTime); err != nil {
			k.failed("Claim: %v", err)
			return
		}
		k.pause(checkTime / 2)
	}
	k.ends("the lease", key, b, begun)
}

func (k *storeCheck) age(key string) {
	a, b := checkClaims()
	begun := time.Now()
	k.complete("for a while", key, a, "1", checkTime, nil)
	k.ends("the age", key, b, begun)
}

// ends checks that an entry ends at its time, and not before.
func (k *storeCheck) ends(what, key string, other amqpx.DedupClaim, begun time.Time) {
	for {
		e, err := k.store.Claim(k.ctx, key, other, time.Minute)
		took := time.Since(begun)
		switch {
		case err != nil:
			k.failed("Claim: %v", err)
			return
		case e.Owner == other.Owner && took < checkTime-checkPause: // the clocks may differ a little
			k.failed("%s ended after %v, want %v", what, took, checkTime)
			return
		case e.Owner == other.Owner:
			return
		case took > 20*checkTime || k.ctx.Err() != nil:
			k.failed("%s has not ended after %v, want %v", what, took, checkTime)
			return
		}
		k.pause(checkPause)
	}
}

func (k *storeCheck) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-k.ctx.Done():
	}
}

// atOnce checks that one of many claims at the same time gets the key.
func (k *storeCheck) atOnce(key string) {
	const claims = 32
	owners := make([]string, claims)
	var all sync.WaitGroup
	for i := range claims {
		all.Go(func() {
			e, err := k.store.Claim(k.ctx, key, amqpx.DedupClaim{Owner: fmt.Sprint("owner/", i), Fingerprint: "print"}, time.Minute)
			if err == nil {
				owners[i] = e.Owner
			}
		})
	}
	all.Wait()
	for _, owner := range owners {
		if owner == "" || owner != owners[0] {
			k.failed("claims at the same time got the entries of %q, want one owner", owners)
			return
		}
	}
}

func (k *storeCheck) endedContext(key string) {
	a, _ := checkClaims()
	ctx, cancel := context.WithCancel(k.ctx)
	cancel()
	if _, err := k.store.Claim(ctx, key, a, time.Minute); err == nil {
		k.failed("Claim with a context that has ended: no error")
	}
}
