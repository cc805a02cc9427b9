package amqpx

import (
	"sync"

	"go.uber.org/zap"
)

// unknownMethods logs each method name that requests ask for and the server does not have.
// Safe for concurrent use.
type unknownMethods struct {
	mu     sync.Mutex
	logged loggedNames
}

// unimplemented makes the refusal of a request for a method that the server does not have.
// It names the server, so that the caller knows which ones refused.
func (s *Server) unimplemented(method string) *Error {
	s.unknown.mu.Lock()
	first := s.unknown.logged.add(method)
	s.unknown.mu.Unlock()
	if first {
		s.cfg.logger.Warn("request for a method that this server does not have",
			zap.String("method", truncate(method, maxShortString)), zap.String("queue", s.cfg.queue.Name))
	}
	e := refusal(CodeUnimplemented, "method %q is unknown to this server", method)
	e.server = s.self.id
	return e
}
