package health

import (
	"context"
	"net/http"
	"time"
)

// Pinger makes round trips through the broker.
type Pinger interface {
	// Ping makes one and returns how long it took. It returns soon after ctx has ended.
	Ping(ctx context.Context) (time.Duration, error)
}

const (
	// pingLimit bounds one round trip.
	pingLimit = 2 * time.Second
	// pingPause is between two of them, however many ask: whoever may ask /pingz must not
	// be able to load the broker. Meanwhile the last result is told.
	pingPause = time.Second
)

// pings makes the round trips that are asked for. Safe for concurrent use.
type pings struct {
	pinger Pinger
	asks   chan chan<- pinged
	ended  chan struct{} // closed when run has ended
}

// pinged is what came of a round trip.
type pinged struct {
	took time.Duration
	err  error
	at   time.Time // when it ended; zero: none was made
}

// pingReport is the body of /pingz.
type pingReport struct {
	// State is "ok" or "failed".
	State string `json:"state"`
	// Reason says why it failed.
	Reason string `json:"reason,omitempty"`
	// TookMS is how long the round trip took, in milliseconds; absent if it failed.
	TookMS float64 `json:"took_ms,omitzero"`
	// AgeMS is how long ago it ended, in milliseconds.
	AgeMS float64 `json:"age_ms"`
}

func newPings(pinger Pinger) *pings {
	return &pings{pinger: pinger, asks: make(chan chan<- pinged), ended: make(chan struct{})}
}

// run answers those who ask until ctx ends, one after the other: who asks while a ping
// is under way waits for it, and finds its result fresh enough.
func (p *pings) run(ctx context.Context) {
	defer close(p.ended)
	var last pinged
	for {
		select {
		case <-ctx.Done():
			return
		case answer := <-p.asks:
			if last.at.IsZero() || time.Since(last.at) >= pingPause {
				last = p.ping(ctx)
			}
			if ctx.Err() != nil {
				return // the ping was cut short, which says nothing about the broker
			}
			answer <- last // it has room
		}
	}
}

func (p *pings) ping(ctx context.Context) pinged {
	ctx, cancel := context.WithTimeout(ctx, pingLimit)
	defer cancel()
	took, err := p.pinger.Ping(ctx)
	return pinged{took: took, err: err, at: time.Now()}
}

// ServeHTTP answers GET /pingz.
func (p *pings) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := make(chan pinged, 1) // so that nobody waits for one who has gone
	asks := p.asks
	for {
		select {
		case asks <- answer:
			asks = nil
		case result := <-answer:
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

// milliseconds keeps the microseconds, and no more.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
