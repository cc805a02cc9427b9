package health

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// fakePinger makes round trips of a fixed duration, and counts them.
type fakePinger struct {
	took  time.Duration
	err   error
	count atomic.Int64
}

func (f *fakePinger) Ping(ctx context.Context) (time.Duration, error) {
	f.count.Add(1)
	select {
	case <-time.After(f.took):
		return f.took, f.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// running starts pings that end with the test.
func running(t *testing.T, pinger Pinger) (p *pings, stop func()) {
	t.Helper()
	p = newPings(pinger)
	ctx, cancel := context.WithCancel(t.Context())
	go p.run(ctx) // ends with ctx
	return p, func() {
		cancel()
		<-p.ended
	}
}

// ping requests /pingz and returns the response.
func ping(ctx context.Context, t *testing.T, p *pings) (int, pingReport) {
	t.Helper()
	recorder := httptest.NewRecorder()
	p.ServeHTTP(recorder, httptest.NewRequestWithContext(ctx, http.MethodGet, "/pingz", http.NoBody))
	var body pingReport
	if recorder.Body.Len() > 0 {
		if err := json.Unmarshal(recorder.Body.Bytes(), &body); err != nil {
			t.Errorf("the body is %s: %v", recorder.Body, err)
		}
	}
	return recorder.Code, body
}

func TestPingTellsHowLongItTook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		pinger := &fakePinger{took: 1500 * time.Microsecond}
		p, stop := running(t, pinger)
		defer stop()
		recorder := httptest.NewRecorder()
		p.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/pingz", http.NoBody))
		if got := recorder.Body.String(); recorder.Code != 200 || got != `{"state":"ok","took_ms":1.5,"age_ms":0}`+"\n" {
			t.Errorf("%d %s", recorder.Code, got)
		}
		if got := recorder.Header().Get("Cache-Control"); got != "no-store" {
			t.Errorf("Cache-Control is %q", got)
		}
	})
}

func TestPingTellsWhyItFailed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, stop := running(t, &fakePinger{took: time.Millisecond, err: errors.New("no queue")})
		defer stop()
		code, body := ping(t.Context(), t, p)
		if want := (pingReport{State: "failed", Reason: "no queue"}); code != 503 || body != want {
			t.Errorf("%d %+v, want %+v", code, body, want)
		}
	})
}

func TestPingIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, stop := running(t, &fakePinger{took: time.Hour})
		defer stop()
		begun := time.Now()
		code, body := ping(t.Context(), t, p)
		if took := time.Since(begun); code != 503 || took != pingLimit || body.Reason != context.DeadlineExceeded.Error() {
			t.Errorf("%d %+v after %v", code, body, took)
		}
	})
}

func TestPingsAreSharedAndPaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		pinger := &fakePinger{took: 100 * time.Millisecond}
		p, stop := running(t, pinger)
		defer stop()
		together := func(age float64) {
			var all sync.WaitGroup
			for range 50 {
				all.Go(func() {
					if code, body := ping(t.Context(), t, p); code != 200 || body.TookMS != 100 || body.AgeMS != age {
						t.Errorf("%d %+v, want an age of %v", code, body, age)
					}
				})
			}
			all.Wait()
		}
		together(0)
		if n := pinger.count.Load(); n != 1 {
			t.Errorf("50 who ask at once caused %d pings", n)
		}
		pass(t, pingPause-time.Millisecond)
		together(999)
		if n := pinger.count.Load(); n != 1 {
			t.Errorf("%d pings within a second", n)
		}
		pass(t, time.Millisecond)
		together(0)
		if n := pinger.count.Load(); n != 2 {
			t.Errorf("%d pings after a second, want 2", n)
		}
	})
}

// pass lets time pass.
func pass(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

// The first client may disconnect: all other clients still get the result.
func TestPingOutlivesWhoAskedForIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		pinger := &fakePinger{took: time.Second}
		p, stop := running(t, pinger)
		defer stop()
		first, leave := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() { ping(first, t, p) })
		synctest.Wait()
		all.Go(func() {
			if code, body := ping(t.Context(), t, p); code != 200 || body.State != "ok" {
				t.Errorf("%d %+v", code, body)
			}
		})
		gone, leaveToo := context.WithCancel(t.Context())
		all.Go(func() { ping(gone, t, p) })
		synctest.Wait()
		leave()
		leaveToo()
		all.Wait()
		if n := pinger.count.Load(); n != 1 {
			t.Errorf("%d pings, want 1", n)
		}
	})
}

func TestStopEndsAPing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, stop := running(t, &fakePinger{took: time.Hour})
		var all sync.WaitGroup
		for range 2 { // the first pings, the second waits
			all.Go(func() {
				code, body := ping(t.Context(), t, p)
				if want := (pingReport{State: "failed", Reason: "shutting down"}); code != 503 || body != want {
					t.Errorf("%d %+v, want %+v", code, body, want)
				}
			})
		}
		synctest.Wait()
		begun := time.Now()
		stop()
		all.Wait()
		if time.Since(begun) != 0 {
			t.Errorf("that took %v", time.Since(begun))
		}
		if code, body := ping(t.Context(), t, p); code != 503 || body.Reason != "shutting down" {
			t.Errorf("afterwards: %d %+v", code, body)
		}
	})
}

func TestServiceAnswersPings(t *testing.T) {
	t.Parallel()
	s := start(t, "127.0.0.1:0", status{State: amqpx.StateReady}, WithPinger(&fakePinger{}))
	code, body, _ := get(t, s, "/pingz", "")
	if code != 200 || !strings.HasPrefix(body, `{"state":"ok",`) {
		t.Errorf("%d %s", code, body)
	}
	s.Stop(t.Context())
}
