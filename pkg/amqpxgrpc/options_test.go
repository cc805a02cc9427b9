package amqpxgrpc

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/status"

	"rabbitmq-rpc/pkg/amqpx"
)

// token is credentials of a call.
type token struct {
	credentials.PerRPCCredentials

	secure bool
	err    error
}

func (c token) RequireTransportSecurity() bool { return c.secure }

func (c token) GetRequestMetadata(_ context.Context, uri ...string) (map[string]string, error) {
	return map[string]string{"token": strings.Join(uri, " ")}, c.err
}

// interceptorOption is a call option of another package.
type interceptorOption struct{ grpc.EmptyCallOption }

func TestCallSettings(t *testing.T) {
	t.Parallel()
	s, err := newCallSettings([]grpc.CallOption{
		grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(1), grpc.MaxCallSendMsgSize(2),
		grpc.EmptyCallOption{},
		grpc.StaticMethod(),
		grpc.MaxRetryRPCBufferSize(3), grpc.UseCompressor(encoding.Identity),
		interceptorOption{},
		grpc.PerRPCCredentials(nil),
		CallOptions(amqpx.Idempotent()), grpc.CallContentSubtype("PROTO"),
	})
	if err != nil || !s.waitForReady || s.maxRecv != 1 || s.maxSend != 2 || len(s.options) != 1 || len(s.credentials) != 0 || s.codec.Name() != proto.Name {
		t.Errorf("got %+v, %v", s, err)
	}
	s, err = newCallSettings(nil)
	if err != nil || s.waitForReady || s.maxRecv != DefaultMaxMessageSize || s.maxSend != math.MaxInt32 || contentType(s.subtype) != "" {
		t.Errorf("the defaults are %+v, %v", s, err)
	}
	s, err = newCallSettings([]grpc.CallOption{grpc.ForceCodecV2(encoding.GetCodecV2(proto.Name)), grpc.CallContentSubtype("other")})
	if err != nil || contentType(s.subtype) != "application/grpc+other" {
		t.Errorf("got %+v, %v", s, err)
	}
}

// TestRefusedCallOptions: what has no effect is an error of a call that did not run.
func TestRefusedCallOptions(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		option grpc.CallOption
		code   codes.Code
	}{
		"compressor":  {grpc.UseCompressor("gzip"), codes.Unimplemented},
		"authority":   {grpc.CallAuthority("a"), codes.Unimplemented},
		"codec":       {grpc.CallCustomCodec(nil), codes.Unimplemented}, //nolint:staticcheck // that it is refused is tested.
		"subtype":     {grpc.CallContentSubtype("unknown"), codes.Internal},
		"credentials": {grpc.PerRPCCredentials(token{secure: true}), codes.Unauthenticated},
		"nil":         {nil, codes.InvalidArgument},
	} {
		var finished []error
		_, err := newCallSettings([]grpc.CallOption{c.option})
		if status.Code(err) != c.code || amqpx.OutcomeOf(err) != amqpx.DidNotRun {
			t.Errorf("%s: %v, outcome %v, want %v", name, err, amqpx.OutcomeOf(err), c.code)
		}
		cc := NewClientConn(nil)
		note := grpc.OnFinish(func(err error) { finished = append(finished, err) })
		err = cc.Invoke(t.Context(), "/a/b", nil, nil, note, c.option)
		_, streamErr := cc.NewStream(t.Context(), &grpc.StreamDesc{}, "/a/b", note, c.option)
		if status.Code(err) != c.code || status.Code(streamErr) != c.code || len(finished) != 2 || !errors.Is(finished[0], err) || !errors.Is(finished[1], streamErr) {
			t.Errorf("%s: call %v, stream %v, finished with %v", name, err, streamErr, finished)
		}
	}
}
