package amqpxgrpc

import (
	"slices"

	"google.golang.org/grpc/codes"

	"rabbitmq-rpc/pkg/amqpx"
)

// codeTable returns the codes of amqpx at the numbers of gRPC's codes. The names are the same
// (https://grpc.io/docs/guides/status-codes/); amqpx has no code for a success.
func codeTable() [codes.Unauthenticated + 1]amqpx.Code {
	return [...]amqpx.Code{
		codes.Canceled:           amqpx.CodeCanceled,
		codes.Unknown:            amqpx.CodeUnknown,
		codes.InvalidArgument:    amqpx.CodeInvalidArgument,
		codes.DeadlineExceeded:   amqpx.CodeDeadlineExceeded,
		codes.NotFound:           amqpx.CodeNotFound,
		codes.AlreadyExists:      amqpx.CodeAlreadyExists,
		codes.PermissionDenied:   amqpx.CodePermissionDenied,
		codes.ResourceExhausted:  amqpx.CodeResourceExhausted,
		codes.FailedPrecondition: amqpx.CodeFailedPrecondition,
		codes.Aborted:            amqpx.CodeAborted,
		codes.OutOfRange:         amqpx.CodeOutOfRange,
		codes.Unimplemented:      amqpx.CodeUnimplemented,
		codes.Internal:           amqpx.CodeInternal,
		codes.Unavailable:        amqpx.CodeUnavailable,
		codes.DataLoss:           amqpx.CodeDataLoss,
		codes.Unauthenticated:    amqpx.CodeUnauthenticated,
	}
}

// toCode returns the code of amqpx for a code of gRPC: [amqpx.CodeUnknown] for a number that gRPC
// does not define, and "" for a success.
func toCode(c codes.Code) amqpx.Code {
	table := codeTable()
	if int64(c) >= int64(len(table)) {
		return amqpx.CodeUnknown
	}
	return table[c]
}

// fromCode is the inverse of toCode, and [codes.Unknown] for any other text.
func fromCode(c amqpx.Code) codes.Code {
	table := codeTable()
	if i := slices.Index(table[1:], c); i >= 0 {
		return codes.Code(i + 1) //nolint:gosec // an index of the table.
	}
	return codes.Unknown
}
