package amqpxgrpc

import (
	"errors"
	"strings"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"rabbitmq-rpc/pkg/amqpx"
)

// callError is the error of a call: a status of gRPC, which [status.FromError] finds, around the
// error of package amqpx, of which [amqpx.OutcomeOf] and [errors.Is] find outcome and cause.
type callError struct {
	status *status.Status
	cause  error
}

// Error returns the same text as an error of gRPC.
func (e *callError) Error() string { return e.status.String() }

// GRPCStatus gives package status the status.
func (e *callError) GRPCStatus() *status.Status { return e.status }

// Unwrap gives [errors.Is] the error of gRPC with this status, and the error of package amqpx.
func (e *callError) Unwrap() []error { return []error{e.status.Err(), e.cause} }

// newCallError returns the error of a call that failed with an error of package amqpx, or with an
// error of the client's middleware.
func newCallError(err error) error {
	if err == nil {
		return nil
	}
	if hasStatus(err) {
		return err // middleware has made it
	}
	coded := codedError(err)
	if coded == nil {
		return &callError{status: status.FromContextError(err), cause: err}
	}
	code := fromCode(coded.Code())
	if errors.Is(coded, amqpx.ErrTooLarge) {
		code = codes.ResourceExhausted // the code for every message that is too large, as in grpc-go
	}
	s := &spb.Status{Code: int32(code), Message: strings.ToValidUTF8(coded.Message(), "\uFFFD")}
	for _, d := range coded.Details() {
		s.Details = append(s.Details, &anypb.Any{TypeUrl: d.TypeURL, Value: d.Value})
	}
	return &callError{status: status.FromProto(s), cause: err}
}

// refused returns the error of a call that was not sent.
func refused(code codes.Code, format string, args ...any) error {
	return newCallError(amqpx.Refuse(toCode(code), format, args...))
}

// localError returns the error of a call whose response this process could not use.
func localError(code codes.Code, format string, args ...any) error {
	return newCallError(amqpx.Errorf(toCode(code), format, args...))
}

// handlerError returns the error of a service in the form that reaches the caller unchanged: code,
// text and details of a status, an error of package amqpx as it is, the end of a context as its
// code, and any other error with code unknown and its text, as in gRPC.
func handlerError(err error) error {
	switch {
	case err == nil:
		return nil
	case hasStatus(err):
		s, _ := status.FromError(err)
		return statusError(s)
	case codedError(err) != nil:
		return err
	default:
		return statusError(status.FromContextError(err))
	}
}

// statusError returns the error with code, text and details of a status.
func statusError(s *status.Status) *amqpx.Error {
	if s.Code() == codes.OK {
		return amqpx.Errorf(amqpx.CodeInternal, "the method returned an error whose status is OK")
	}
	e := amqpx.Errorf(toCode(s.Code()), "%s", strings.ToValidUTF8(s.Message(), "\uFFFD"))
	for _, d := range s.Proto().GetDetails() {
		e = e.WithDetail(amqpx.AnyDetail{TypeURL: d.GetTypeUrl(), Value: d.GetValue()})
	}
	return e
}

// hasStatus reports whether an error of err's chain has a status.
func hasStatus(err error) bool {
	with, ok := errors.AsType[interface {
		error
		GRPCStatus() *status.Status
	}](err)
	return ok && with.GRPCStatus() != nil
}

// codedError returns the error of package amqpx in err's chain, or nil.
func codedError(err error) *amqpx.Error {
	coded, _ := errors.AsType[*amqpx.Error](err)
	return coded
}
