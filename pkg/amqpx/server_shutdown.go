package amqpx

import (
	"context"
	"errors"
)

// Shutdown ends Serve gracefully, like the end of its context: the server drains, within
// [WithDrainTimeout]. Shutdown returns when Serve has, with Serve's error. When ctx ends first,
// Shutdown ends Serve like [Server.Close] and returns ctx's error. A server that does not serve
// only refuses to serve from now on. Shutdown may be called several times.
func (s *Server) Shutdown(ctx context.Context) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	s.shutdownOnce.Do(func() { close(s.shutdown) })
	s.endUnserved()
	err := s.awaitServed(ctx)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		s.Close()
	}
	return err
}

// awaitServed waits until Serve has returned, and returns its error. It returns at once if Serve
// was not called.
func (s *Server) awaitServed(ctx context.Context) error {
	if !s.serving.Load() {
		return nil
	}
	if err := s.awaitEnd(ctx); err != nil || errors.Is(s.result, ErrClosed) { // Serve was called too late
		return err
	}
	return s.result
}

// awaitEnd waits until Serve has returned, if it was called. The error is that of ctx.
func (s *Server) awaitEnd(ctx context.Context) error {
	if !s.serving.Load() {
		return nil
	}
	select {
	case <-s.served:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isEnded reports whether Shutdown or Close has been called.
func (s *Server) isEnded() bool {
	select {
	case <-s.shutdown:
		return true
	case <-s.stopNow:
		return true
	default:
		return false
	}
}

// endUnserved shows a server that does not serve, and must not from now on, as closed.
func (s *Server) endUnserved() {
	if !s.serving.Load() {
		s.board.OnClosed()
	}
}

// end is called when Serve returns.
func (s *Server) end() {
	s.board.OnClosed()
	if c := s.cfg.shared; c != nil {
		c.removeServer(s)
	}
	close(s.served)
}
