package stream

import "time"

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
