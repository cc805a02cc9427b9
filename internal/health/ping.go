package health

import (
	"context"
	"net/http"
	"time"
)

// Pinger makes round trips through the broker.
type Pinger interface {
	// Ping makes one round trip and returns its duration. It returns soon after ctx has ended.
	Ping(ctx context.Context) (time.Duration, error)
}

const (
	// pingLimit limits one round trip.
	pingLimit = 2 * time.Second
	// pingPause is the minimum time between two round trips, for any number of requests, so
	// that clients of /pingz cannot load the broker. In between, /pingz returns the last
	// result.
	pingPause = time.Second
)

// pings makes round trips on request. It is safe for concurrent use.
type pings struct {
	pinger Pinger
	asks   chan chan<- pinged
	ended  chan struct{} // closed when run has ended
}

// pinged is the result of a round trip.
type pinged struct {
	took time.Duration
	err  error
	at   time.Time // end of the round trip; zero: no round trip yet
}

// pingReport is the body of /pingz.
type pingReport struct {
	// State is "ok" or "failed".
	State string `json:"state"`
	// Reason is the reason of a failure.
	Reason string `json:"reason,omitempty"`
	// TookMS is the duration of the round trip in milliseconds; absent after a failure.
	TookMS float64 `json:"took_ms,omitzero"`
	// AgeMS is the time since the end of the round trip, in milliseconds.
	AgeMS float64 `json:"age_ms"`
}

func newPings(pinger Pinger) *pings {
	return &pings{pinger: pinger, asks: make(chan chan<- pinged), ended: make(chan struct{})}
}

// run handles requests one after the other until ctx ends. A request that arrives during a
// round trip waits, and then receives the result, which is recent enough.
func (p *pings) run(ctx context.Context) {
	defer close(p.ended)
	var last pinged
	for {
		select {
		case <-ctx.Done():
			return
		case response := <-p.asks:
			if last.at.IsZero() || time.Since(last.at) >= pingPause {
				last = p.ping(ctx)
			}
			if ctx.Err() != nil {
				return // the canceled ping says nothing about the broker
			}
			response <- last // never blocks: the channel is buffered
		}
	}
}

func (p *pings) ping(ctx context.Context) pinged {
	ctx, cancel := context.WithTimeout(ctx, pingLimit)
	defer cancel()
	took, err := p.pinger.Ping(ctx)
	return pinged{took: took, err: err, at: time.Now()}
}

// ServeHTTP responds to GET /pingz.
func (p *pings) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	response := make(chan pinged, 1) // buffered, so that run never waits for a client that has gone
	asks := p.asks
	for {
		select {
		case asks <- response:
			asks = nil
		case result := <-response:
			code, body := result.report()
			write(w, code, body)
			return
		case <-p.ended:
			write(w, http.StatusServiceUnavailable, pingReport{State: "failed", Reason: "shutting down"})
			return
		case <-r.Context().Done():
			return
		}
	}
}

func (p pinged) report() (code int, body pingReport) {
	body = pingReport{State: "ok", TookMS: milliseconds(p.took), AgeMS: milliseconds(time.Since(p.at))}
	if p.err == nil {
		return http.StatusOK, body
	}
	body.State, body.Reason, body.TookMS = "failed", p.err.Error(), 0
	return http.StatusServiceUnavailable, body
}

// milliseconds returns d in milliseconds, truncated to microseconds.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
