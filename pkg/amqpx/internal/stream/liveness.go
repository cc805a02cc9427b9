package stream

import (
	"slices"
	"time"
)

// Liveness. Only a ping that the broker has confirmed counts: while the broker blocks publishing,
// no ping leaves, and the silence says nothing about the peer. RabbitMQ takes one more message from
// a connection that has published nothing since the alarm, while the answer of the peer is blocked:
// so a peer is gone only if a second ping, after the first was confirmed, has no answer either.

// watch starts the timer of tick, if it does not run. The caller holds mu.
func (l *Link) watch() {
	if l.timer == nil && !l.ended {
		l.timer = time.AfterFunc(l.table.cfg.KeepAlive/4, l.tick)
	}
}

// tick sends pings to the peers that are silent, and ends the streams of those that do not answer.
func (l *Link) tick() {
	t := l.table
	t.mu.Lock()
	defer t.unlock()
	watched := false
	silence := t.cfg.KeepAlive
	if t.cfg.Server { // the client asks first
		silence *= serverPatience
	}
	now := time.Now()
	for _, p := range l.peers {
		if len(p.streams) == 0 {
			continue
		}
		watched = true
		switch {
		case !p.pinged && !p.pingDue && now.Sub(p.heard) >= silence:
			p.pingDue = true
			p.kick()
		case !p.pinged || p.confirmed.IsZero() || now.Sub(p.confirmed) < deadAfter*t.cfg.KeepAlive/2:
		case !p.again:
			p.again, p.pingDue, p.confirmed = true, true, time.Time{}
			p.kick()
		default:
			l.lose(p, ReasonSilent, nil)
			l.forget(p)
		}
	}
	switch {
	case l.ended:
	case watched || len(l.opening) > 0:
		l.timer.Reset(t.cfg.KeepAlive / 4)
	default:
		l.timer = nil
	}
}

// probe is a question to a peer whose answer somebody waits for.
type probe struct {
	ping     uint64 // 0: it was not sent
	answered chan struct{}
}

// Probe sends a ping to the peer of an open stream. The channel is closed when the peer has answered:
// it has then handled the messages that the broker confirmed before Probe was called. The channel
// stays open if the stream ends before.
func (s *Stream) Probe() <-chan struct{} {
	s.table.mu.Lock()
	defer s.table.unlock()
	answered := make(chan struct{})
	if p := s.peer; s.stage == stageOpen && p != nil {
		p.probes = append(p.probes, probe{answered: answered})
		p.pingDue = true
		p.kick()
	}
	return answered
}

// probed notes that the ping with the number p.ping is sent. The caller holds mu.
func (p *peer) probed() {
	for i := range p.probes {
		if p.probes[i].ping == 0 {
			p.probes[i].ping = p.ping
		}
	}
}

// answered handles the answer to a ping. The caller holds mu.
func (p *peer) answered(pong uint64) {
	p.probes = slices.DeleteFunc(p.probes, func(q probe) bool {
		done := q.ping != 0 && q.ping <= pong && pong <= p.ping
		if done {
			close(q.answered)
		}
		return done
	})
}
