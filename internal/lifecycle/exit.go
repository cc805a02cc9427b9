package lifecycle

import (
	"errors"
	"fmt"
	"io"
)

// Exit codes of the services.
const (
	// ExitOK: the work is done, or a signal ended the service and it drained.
	ExitOK = 0
	// ExitFailed: the work failed.
	ExitFailed = 1
	// ExitConfig: the service did not start, because of its configuration or its arguments.
	ExitConfig = 2
)

// configError is a failure to start that is caused by the configuration.
type configError struct{ error }

func (e configError) ExitCode() int { return ExitConfig }
func (e configError) Unwrap() error { return e.error }

// ConfigError marks err as an error of the configuration; the process exits with [ExitConfig].
// It returns nil for nil.
func ConfigError(err error) error {
	if err == nil {
		return nil
	}
	return configError{err}
}

// ExitCode returns the exit code for err: [ExitOK] for nil, the result of the method ExitCode
// of an error in err's chain, else [ExitFailed].
func ExitCode(err error) int {
	var coded interface{ ExitCode() int }
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &coded):
		return coded.ExitCode()
	default:
		return ExitFailed
	}
}

// Finish writes err, if any, to w as the last line of the service name, and returns the exit
// code.
func Finish(w io.Writer, name string, err error) int {
	if err != nil {
		_, _ = fmt.Fprintf(w, "%s: %v\n", name, err)
	}
	return ExitCode(err)
}
