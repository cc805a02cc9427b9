package report

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// watched reports the statuses that a test sends.
type watched struct {
	updates chan amqpx.Status
	ctx     context.Context //nolint:containedctx // the test looks whether it has ended.
}

func (w *watched) Watch(ctx context.Context) <-chan amqpx.Status {
	w.ctx = ctx
	return w.updates
}

func TestConnectionEvents(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	gone := errors.New("gone")
	ready := func(seconds int, generation uint64) amqpx.Status {
		return amqpx.Status{State: amqpx.StateReady, Generation: generation, Since: at(seconds), Broker: "h:1"}
	}
	blocked := amqpx.Status{State: amqpx.StateBlocked, Generation: 1, Reason: "low on memory", Since: at(3)}
	down := func(seconds int, state amqpx.State) amqpx.Status {
		return amqpx.Status{State: state, Generation: 1, Err: gone, Since: at(seconds)}
	}
	for name, c := range map[string]struct {
		statuses []amqpx.Status
		want     string
	}{
		"quiet":          {[]amqpx.Status{ready(-1, 1)}, ""},
		"reconnect":      {[]amqpx.Status{ready(-1, 1), down(2, amqpx.StateReconnecting), down(3, amqpx.StateConnecting), ready(4, 2)}, "2 lost gone, 4 reconnect h:1"},
		"missed":         {[]amqpx.Status{ready(-1, 1), ready(4, 3)}, "4 reconnect h:1"},
		"blocked":        {[]amqpx.Status{ready(-1, 1), blocked, ready(5, 1)}, "3 blocked low on memory, 5 unblocked "},
		"blocked, lost":  {[]amqpx.Status{ready(-1, 1), blocked, down(4, amqpx.StateReconnecting)}, "3 blocked low on memory, 4 unblocked , 4 lost gone"},
		"from the start": {[]amqpx.Status{{State: amqpx.StateConnecting, Since: at(-2)}, ready(3, 1)}, "0 lost no connection yet, 3 connect "},
		"before":         {[]amqpx.Status{ready(-9, 1), down(-8, amqpx.StateReconnecting), ready(-7, 2)}, ""},
		"never":          {[]amqpx.Status{down(-2, amqpx.StateReconnecting)}, "0 lost no connection yet: gone"},
		"afterwards":     {[]amqpx.Status{ready(-1, 1), down(99, amqpx.StateReconnecting)}, ""},
		"closed":         {[]amqpx.Status{ready(-1, 1), {State: amqpx.StateClosed, Generation: 1, Since: at(5)}}, ""},
	} {
		w := &watched{updates: make(chan amqpx.Status)}
		l := WatchConnection(w)
		for _, s := range c.statuses {
			w.updates <- s
		}
		l.End()
		var got []string
		for _, e := range l.during(start, 10*time.Second) {
			got = append(got, fmt.Sprintf("%v %s %s", e.At, e.Kind, e.Text))
		}
		if text := strings.Join(got, ", "); text != c.want || w.ctx.Err() == nil {
			t.Errorf("%s: got %q, want %q; context %v", name, text, c.want, w.ctx.Err())
		}
	}
}

// A connection that flaps for days takes no more memory than after an hour.
func TestConnectionEventsAreBounded(t *testing.T) {
	t.Parallel()
	w := &watched{updates: make(chan amqpx.Status)}
	l := WatchConnection(w)
	for generation := range uint64(1000) {
		w.updates <- amqpx.Status{State: amqpx.StateReady, Generation: generation + 1, Since: time.Now()}
	}
	l.End()
	if len(l.events) != maxEvents || l.omitted != 1000-maxEvents {
		t.Errorf("%d events kept, %d omitted", len(l.events), l.omitted)
	}
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	got := printable(map[string]string{"a": "plain", "b": "cut \xe2\x82"})
	if got["a"] != "plain" || got["b"] != "cut \uFFFD" {
		t.Errorf("got %q", got)
	}
}

func TestVersionsAreTold(t *testing.T) {
	t.Parallel()
	v := versions()
	for _, name := range []string{"go", "platform", "rpc-client"} {
		if v[name] == "" {
			t.Errorf("no %s in %v", name, v)
		}
	}
}
