package amqpx

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
)

// hardStopGrace is how long handlers have to return once their contexts are
// cancelled. A handler that takes longer is left behind.
const hardStopGrace = time.Second

// errServerStopped is the cause of a handler's context that a hard stop cancelled.
var errServerStopped = errors.New("the server was stopped")

// drain finishes what was begun, within the time limit: consumers end, requests
// that no worker started go back to the queue, handlers finish, their answers are
// confirmed, their requests acknowledged.
func (s *Server) drain(cancelHandlers context.CancelCauseFunc) error {
	begun := time.Now()
	timer := time.NewTimer(s.cfg.drainTimeout)
	defer timer.Stop()
	if s.awaitIdle(timer.C) {
		s.cfg.logger.Info("drained", zap.Duration("took", time.Since(begun)))
		return nil
	}
	cut := s.Stats().InFlight
	sess := s.sup.current()
	s.cfg.logger.Warn("drain cut short", zap.Uint64("unfinished", cut), zap.Duration("took", time.Since(begun)),
		zap.Int("not_published", s.outbox.len()+s.direct.outbox.len()+s.isolated.outbox.len()),
		zap.Bool("blocked", sess != nil && sess.gate.opening() != nil))
	cancelHandlers(errServerStopped)
	grace := time.NewTimer(hardStopGrace)
	defer grace.Stop()
	select {
	case <-s.track.whenIdle():
	case <-grace.C:
	}
	if cut == 0 {
		return nil
	}
	return fmt.Errorf("amqpx: %w: %d unfinished", ErrDrainTimeout, cut)
}

// awaitIdle waits until nothing is under way; false means that the time is over, or that Close
// was called.
func (s *Server) awaitIdle(timeout <-chan time.Time) bool {
	updates, stop := s.sup.board.watch() // the status at once, and when the broker blocks publishing
	defer stop()
	idle := s.track.whenIdle()
	for {
		select {
		case <-idle:
			return true
		case <-updates:
			s.takeBackMoves()
		case <-timeout:
			return false
		case <-s.stopNow:
			return false
		}
	}
}

// giveBack returns a request that was not started to its queue, as a copy: the
// original would be marked as handed out, which it was not to any handler. One that
// has that mark already keeps it. It waits until the consumer has ended: before that
// the broker may hand it right back.
func (s *Server) giveBack(j *job) {
	consumers := []*consumer{j.from}
	if j.parcel != nil { // its copy goes to the request queue
		consumers = append(consumers, j.from.main)
	}
	for _, c := range consumers {
		select {
		case <-c.silent:
		case <-j.from.done:
			j.over() // the broker hands it out again
			return
		}
	}
	s.counts.returned.Add(1)
	msg, err := copyOf(j)
	if err == nil {
		err = fitFrame(&msg, j.from.sess.pub.frameSize())
	}
	if err != nil || j.delivery.Redelivered {
		j.requeue()
		return
	}
	s.move(j, j.queue, msg, j.settled)
}

// isDraining reports whether no further request may be started. That holds from the moment
// Close is called, before Serve has noticed.
func (s *Server) isDraining() bool {
	select {
	case <-s.draining:
		return true
	case <-s.stopNow:
		return true
	default:
		return false
	}
}
