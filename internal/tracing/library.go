package tracing

import (
	"errors"

	"github.com/go-logr/logr"
)

// libraryLog receives the SDK's log. Debug and info lines are dropped, and so are the values
// and errors in error lines, because they quote settings, such as a header with a token.
type libraryLog struct{ complaints *complaints }

func newLibraryLog(c *complaints) logr.Logger { return logr.New(libraryLog{c}) }

// Init implements [logr.LogSink].
func (libraryLog) Init(logr.RuntimeInfo) {}

// Enabled implements [logr.LogSink]: only errors are logged.
func (libraryLog) Enabled(int) bool { return false }

// Info implements [logr.LogSink].
func (libraryLog) Info(int, string, ...any) {}

// Error implements [logr.LogSink]. The message names the SDK's failed operation.
func (l libraryLog) Error(_ error, message string, _ ...any) { l.complaints.hear(errors.New(message)) }

// WithValues implements [logr.LogSink].
func (l libraryLog) WithValues(...any) logr.LogSink { return l }

// WithName implements [logr.LogSink].
func (l libraryLog) WithName(string) logr.LogSink { return l }
