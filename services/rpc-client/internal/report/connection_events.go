package report

import (
	"context"
	"strings"
	"sync"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// Watcher is the part of [amqpx.Client] that reports the state of the connection.
type Watcher interface {
	Watch(ctx context.Context) (updates <-chan amqpx.Status)
}

// maxEvents limits the recorded events if the connection fails again and again.
const maxEvents = 200

// ConnectionEvents records the changes of the connection during a run.
type ConnectionEvents struct {
	stop    chan struct{}
	stopped sync.WaitGroup

	// Only the goroutine uses these fields until it has stopped.
	seen    bool
	last    amqpx.Status
	events  []connectionEvent
	omitted int
}

// connectionEvent is a change of the connection.
type connectionEvent struct {
	at   time.Time
	kind EventKind
	text string
}

// WatchConnection watches until End is called.
func WatchConnection(w Watcher) *ConnectionEvents {
	l := &ConnectionEvents{stop: make(chan struct{})}
	ctx, unwatch := context.WithCancel(context.Background()) //nolint:forbidigo // it ends with End.
	updates := w.Watch(ctx)
	l.stopped.Go(func() { // ends with the watch
		defer unwatch()
		for {
			select {
			case s, ok := <-updates:
				if !ok {
					return
				}
				l.note(s)
			case <-l.stop:
				select { // the last status may be unread
				case s, ok := <-updates:
					if ok {
						l.note(s)
					}
				default:
				}
				return
			}
		}
	})
	return l
}

// End stops watching.
func (l *ConnectionEvents) End() {
	close(l.stop)
	l.stopped.Wait()
}

// note compares a status with the previous status. States in between may be missing, because a
// watch reports only the newest status.
func (l *ConnectionEvents) note(s amqpx.Status) {
	up := s.State == amqpx.StateReady || s.State == amqpx.StateBlocked
	wasUp := l.last.State == amqpx.StateReady || l.last.State == amqpx.StateBlocked
	if l.last.State == amqpx.StateBlocked && s.State != amqpx.StateBlocked {
		l.add(s.Since, EventUnblocked, "")
	}
	switch {
	case up || s.State == amqpx.StateClosed:
	case wasUp:
		l.add(s.Since, EventLost, errorText(s.Err))
	case !l.seen:
		l.add(s.Since, EventLost, strings.TrimSuffix("no connection yet: "+errorText(s.Err), ": "))
	}
	switch {
	case !up || s.Generation == l.last.Generation:
	case s.Generation == 1:
		l.add(s.Since, EventConnect, "")
	default:
		l.add(s.Since, EventReconnect, s.Broker)
	}
	if s.State == amqpx.StateBlocked && l.last.State != amqpx.StateBlocked {
		l.add(s.Since, EventBlocked, s.Reason)
	}
	l.last, l.seen = s, true
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (l *ConnectionEvents) add(at time.Time, kind EventKind, text string) {
	if len(l.events) >= maxEvents {
		l.omitted++
		return
	}
	l.events = append(l.events, connectionEvent{at, kind, text})
}

// during returns the events of a run. Of earlier events, only a state that still holds at the
// start is included: the broker blocks, or the connection is down.
func (l *ConnectionEvents) during(start time.Time, length time.Duration) []Event {
	list := []Event{}
	var before *Event
	for _, e := range l.events {
		offset := e.at.Sub(start)
		shown := Event{At: Seconds(max(offset, 0)), Kind: e.kind, Text: e.text}
		switch {
		case offset > length:
		case offset >= 0:
			if before != nil {
				list, before = append(list, *before), nil
			}
			list = append(list, shown)
		case e.kind == EventBlocked || e.kind == EventLost:
			before = &shown
		default:
			before = nil
		}
	}
	if before != nil {
		list = append(list, *before)
	}
	return list
}
