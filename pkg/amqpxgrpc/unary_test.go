package amqpxgrpc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fullstorydev/grpchan/grpchantesting"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"rabbitmq-rpc/pkg/amqpx"
)

// The full names of methods.
const (
	unaryMethod  = "/grpchantesting.TestService/Unary"
	serverMethod = "/grpchantesting.TestService/ServerStream"
	bidiMethod   = "/grpchantesting.TestService/BidiStream"
)

// service is a service whose methods are functions.
type service struct {
	grpchantesting.UnimplementedTestServiceServer

	unary  func(context.Context, *grpchantesting.Message) (*grpchantesting.Message, error)
	client func(grpchantesting.TestService_ClientStreamServer) error
	server func(*grpchantesting.Message, grpchantesting.TestService_ServerStreamServer) error
	bidi   func(grpchantesting.TestService_BidiStreamServer) error
}

func (s *service) Unary(ctx context.Context, m *grpchantesting.Message) (*grpchantesting.Message, error) {
	return s.unary(ctx, m)
}

func (s *service) ClientStream(x grpchantesting.TestService_ClientStreamServer) error {
	return s.client(x)
}

func (s *service) ServerStream(m *grpchantesting.Message, x grpchantesting.TestService_ServerStreamServer) error {
	return s.server(m, x)
}

func (s *service) BidiStream(x grpchantesting.TestService_BidiStreamServer) error { return s.bidi(x) }

// with returns a setup with the service.
func (s *service) with(more setup) setup {
	more.register = func(r grpc.ServiceRegistrar) { grpchantesting.RegisterTestServiceServer(r, s) }
	return more
}

// TestMetadataBothWays: several values of one key arrive in their order, alone and in batches.
func TestMetadataBothWays(t *testing.T) {
	t.Parallel()
	sent := metadata.MD{"one": {"a"}, "several": {"a", "", "b"}, "x-bin": {"\x00\xff"}, "y-bin": {"\x00", "\xff"}, "rpc-code": {"ours"}}
	s := &service{unary: func(ctx context.Context, m *grpchantesting.Message) (*grpchantesting.Message, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		for key, values := range md { // one by one, as interceptors do
			for _, value := range values {
				if err := errors.Join(grpc.SetHeader(ctx, metadata.Pairs(key, value)), grpc.SetTrailer(ctx, metadata.Pairs(key, value))); err != nil {
					return nil, err
				}
			}
		}
		return m, nil
	}}
	f := start(t, s.with(setup{}))
	client := grpchantesting.NewTestServiceClient(f)
	call := func() {
		var header, trailer metadata.MD
		ctx := metadata.NewOutgoingContext(t.Context(), sent)
		if _, err := client.Unary(ctx, &grpchantesting.Message{}, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil {
			t.Error(err)
		}
		if !reflect.DeepEqual(header, sent) || !reflect.DeepEqual(trailer, sent) {
			t.Errorf("got headers %v and trailers %v, want %v", header, trailer, sent)
		}
	}
	call()
	var calls sync.WaitGroup
	for range 100 {
		calls.Go(call)
	}
	calls.Wait()
	if f.client.Stats().Batched == 0 {
		t.Error("no call was sent in a batch")
	}
}

// TestHeadersOfAFailure: headers, trailers and details come with an error too.
func TestHeadersOfAFailure(t *testing.T) {
	t.Parallel()
	s := &service{unary: func(ctx context.Context, _ *grpchantesting.Message) (*grpchantesting.Message, error) {
		failed, err := status.New(codes.NotFound, "no order").WithDetails(&errdetails.ErrorInfo{Reason: "GONE"}, &errdetails.RequestInfo{RequestId: "7"})
		return nil, errors.Join(grpc.SetHeader(ctx, metadata.Pairs("a", "1")), grpc.SetTrailer(ctx, metadata.Pairs("b", "2")), err, failed.Err())
	}}
	f := start(t, s.with(setup{}))
	var header, trailer metadata.MD
	var from peer.Peer
	_, err := grpchantesting.NewTestServiceClient(f).Unary(t.Context(), &grpchantesting.Message{}, grpc.Header(&header), grpc.Trailer(&trailer), grpc.Peer(&from))
	got := status.Convert(err)
	if got.Code() != codes.NotFound || !strings.HasSuffix(got.Message(), "no order") || !slices.Equal(header["a"], []string{"1"}) || !slices.Equal(trailer["b"], []string{"2"}) {
		t.Errorf("got %v, headers %v, trailers %v", err, header, trailer)
	}
	details := got.Details()
	if len(details) != 2 {
		t.Fatalf("%d details, want 2: %v", len(details), details)
	}
	info, first := details[0].(*errdetails.ErrorInfo)
	request, second := details[1].(*errdetails.RequestInfo)
	if !first || !second || info.GetReason() != "GONE" || request.GetRequestId() != "7" {
		t.Errorf("got details %v", details)
	}
	if from.Addr == nil || from.Addr.Network() != "amqp" || from.Addr.String() == "unknown" {
		t.Errorf("the server is %v, want its id", from.Addr)
	}
	var own amqpx.ErrorInfo
	if amqpx.OutcomeOf(err) != amqpx.Ran || amqpx.CodeOf(err) != amqpx.CodeNotFound || !amqpx.Detail(err, &own) || own.Reason != "GONE" {
		t.Errorf("for package amqpx: outcome %v, code %v, detail %v", amqpx.OutcomeOf(err), amqpx.CodeOf(err), own)
	}
	if !errors.Is(err, got.Err()) {
		t.Errorf("%v does not match the error of its status", err)
	}
}

// okError is an error with a status of code OK.
type okError struct{}

func (okError) Error() string              { return "no error" }
func (okError) GRPCStatus() *status.Status { return status.New(codes.OK, "") }

// TestErrorsOfHandlers: what a method returns, and what its caller gets.
func TestErrorsOfHandlers(t *testing.T) {
	t.Parallel()
	var fails error
	s := &service{unary: func(context.Context, *grpchantesting.Message) (*grpchantesting.Message, error) { return nil, fails }}
	client := grpchantesting.NewTestServiceClient(start(t, s.with(setup{})))
	for name, c := range map[string]struct {
		err     error
		code    codes.Code
		text    string
		outcome amqpx.Outcome
	}{
		"status":           {status.Error(codes.Aborted, "conflict"), codes.Aborted, "conflict", amqpx.Ran},
		"a wrapped status": {fmt.Errorf("order: %w", status.Error(codes.Aborted, "conflict")), codes.Aborted, "order: rpc error: code = Aborted desc = conflict", amqpx.Ran},
		"no code":          {errors.New("broken"), codes.Unknown, "broken", amqpx.Ran},
		"context":          {fmt.Errorf("late: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "late: context deadline exceeded", amqpx.Ran},
		"canceled":         {context.Canceled, codes.Canceled, "context canceled", amqpx.Ran},
		"an unknown code":  {status.Error(99, "odd"), codes.Unknown, "odd", amqpx.Ran},
		"status OK":        {okError{}, codes.Internal, "the method returned an error whose status is OK", amqpx.Ran},
		"of amqpx":         {amqpx.Errorf(amqpx.CodeDataLoss, "lost"), codes.DataLoss, "lost", amqpx.Ran},
		"a refusal":        {amqpx.Refuse(amqpx.CodePermissionDenied, "not you"), codes.PermissionDenied, "not you", amqpx.DidNotRun},
		"of another call":  {newCallError(amqpx.Refuse(amqpx.CodeUnavailable, "away")), codes.Unavailable, "away", amqpx.Ran},
		"invalid UTF-8":    {errors.New("\xff"), codes.Unknown, "\uFFFD", amqpx.Ran},
	} {
		fails = c.err
		_, err := client.Unary(t.Context(), &grpchantesting.Message{})
		if got := status.Convert(err); got.Code() != c.code || got.Message() != c.text || amqpx.OutcomeOf(err) != c.outcome || len(got.Details()) > 0 {
			t.Errorf("%s: got %v, outcome %v", name, err, amqpx.OutcomeOf(err))
		}
	}
}

// TestOutcomes: the errors of calls that did not reach a server.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	f := start(t, setup{register: registerSuite})
	err := f.Invoke(t.Context(), "/no.Service/Method", &grpchantesting.Message{}, &grpchantesting.Message{})
	if status.Code(err) != codes.Unimplemented || amqpx.OutcomeOf(err) != amqpx.DidNotRun {
		t.Errorf("an unknown method: %v, outcome %v", err, amqpx.OutcomeOf(err))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = f.Invoke(ctx, unaryMethod, &grpchantesting.Message{}, &grpchantesting.Message{})
	if status.Code(err) != codes.Canceled || amqpx.OutcomeOf(err) != amqpx.DidNotRun || !errors.Is(err, context.Canceled) {
		t.Errorf("canceled before: %v, outcome %v", err, amqpx.OutcomeOf(err))
	}
	err = f.Invoke(t.Context(), unaryMethod, 1, &grpchantesting.Message{})
	if status.Code(err) != codes.Internal || amqpx.OutcomeOf(err) != amqpx.DidNotRun {
		t.Errorf("no message: %v, outcome %v", err, amqpx.OutcomeOf(err))
	}
	if _, err := f.client.Call(t.Context(), unaryMethod, []byte{0xff}); amqpx.CodeOf(err) != amqpx.CodeInvalidArgument || amqpx.OutcomeOf(err) != amqpx.DidNotRun {
		t.Errorf("a request that cannot be decoded: %v, outcome %v", err, amqpx.OutcomeOf(err))
	}
	for name, option := range map[string]amqpx.CallOption{
		"metadata":     amqpx.WithHeader(map[string]any{"md-number": 1}),
		"content type": amqpx.WithContentType("text/plain", ""),
		"codec":        amqpx.WithContentType("application/grpc+unknown", ""),
	} {
		if _, err := f.client.Call(t.Context(), unaryMethod, nil, option); amqpx.CodeOf(err) != amqpx.CodeInvalidArgument || amqpx.OutcomeOf(err) != amqpx.DidNotRun {
			t.Errorf("%s: %v, outcome %v", name, err, amqpx.OutcomeOf(err))
		}
	}
}

// TestSizes: the bounds of one call.
func TestSizes(t *testing.T) {
	t.Parallel()
	f := start(t, setup{register: registerSuite, amqpx: []amqpx.Option{amqpx.WithMaxMessageSize(1 << 20)}})
	client := grpchantesting.NewTestServiceClient(f)
	small := &grpchantesting.Message{Payload: make([]byte, 1000)}
	for name, c := range map[string]struct {
		request *grpchantesting.Message
		option  grpc.CallOption
		outcome amqpx.Outcome
	}{
		"sent":     {small, grpc.MaxCallSendMsgSize(1000), amqpx.DidNotRun},
		"received": {small, grpc.MaxCallRecvMsgSize(1000), amqpx.Ran},
		"of amqpx": {&grpchantesting.Message{Payload: make([]byte, 1<<20)}, grpc.EmptyCallOption{}, amqpx.DidNotRun},
	} {
		_, err := client.Unary(t.Context(), c.request, c.option)
		if status.Code(err) != codes.ResourceExhausted || amqpx.OutcomeOf(err) != c.outcome {
			t.Errorf("%s: %v, outcome %v", name, err, amqpx.OutcomeOf(err))
		}
		if _, err := client.Unary(t.Context(), small, grpc.MaxCallRecvMsgSize(math.MaxInt32)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestUnaryInterceptors: the first is outermost, at both sides, and all see the method.
func TestUnaryInterceptors(t *testing.T) {
	t.Parallel()
	var order []string
	client := func(name string) grpc.UnaryClientInterceptor {
		return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			order = append(order, name+method)
			return invoke(metadata.AppendToOutgoingContext(ctx, "by", name), method, req, reply, cc, opts...)
		}
	}
	server := func(name string) grpc.UnaryServerInterceptor {
		return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			order = append(order, name+info.FullMethod)
			return handler(ctx, req)
		}
	}
	s := &service{unary: func(ctx context.Context, m *grpchantesting.Message) (*grpchantesting.Message, error) {
		method, _ := grpc.Method(ctx)
		order = append(order, metadata.ValueFromIncomingContext(ctx, "by")...)
		order = append(order, method)
		return m, nil
	}}
	f := start(t, s.with(setup{
		client: []ClientOption{WithChainUnaryInterceptor(client("1"), client("2")), WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(0))},
		server: []ServerOption{ChainUnaryInterceptor(server("3")), ChainUnaryInterceptor(server("4"))},
	}))
	if _, err := grpchantesting.NewTestServiceClient(f).Unary(t.Context(), &grpchantesting.Message{}); err != nil {
		t.Fatal(err)
	}
	m := unaryMethod
	if want := []string{"1" + m, "2" + m, "3" + m, "4" + m, "1", "2", m}; !slices.Equal(order, want) {
		t.Errorf("got %q, want %q", order, want)
	}
	if _, err := grpchantesting.NewTestServiceClient(f).Unary(t.Context(), &grpchantesting.Message{Count: 1}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("with the default option: %v", err)
	}
}

// TestServerContext: what a method finds in its context, and what it may set when.
func TestServerContext(t *testing.T) {
	t.Parallel()
	var kept context.Context
	s := &service{unary: func(ctx context.Context, m *grpchantesting.Message) (*grpchantesting.Message, error) {
		kept = ctx //nolint:fatcontext // its use after the method is tested.
		caller, ok := peer.FromContext(ctx)
		req, handled := amqpx.RequestFromContext(ctx)
		auth, validated := caller.AuthInfo.(AuthInfo)
		if !ok || !validated || auth.User == "" || auth.User != req.User || caller.Addr.String() != req.User || caller.LocalAddr == nil {
			t.Errorf("the peer is %v", caller)
		}
		if !handled || req.Method != unaryMethod || !metadataIsEmpty(ctx) {
			t.Errorf("the request is %+v", req)
		}
		if err := grpc.SetHeader(ctx, metadata.Pairs("Upper", "1")); err != nil { // Pairs makes the key lower case
			t.Error(err)
		}
		if err := grpc.SetHeader(ctx, metadata.MD{"Upper": {"1"}}); status.Code(err) != codes.Internal {
			t.Errorf("a key with upper case: %v", err)
		}
		if err := grpc.SendHeader(ctx, metadata.Pairs("a", "2")); err != nil {
			t.Error(err)
		}
		if err := grpc.SendHeader(ctx, nil); status.Code(err) == codes.OK {
			t.Error("the headers were sent twice")
		}
		if err := grpc.SetTrailer(ctx, metadata.Pairs("a", strings.Repeat("b", 100_000))); status.Code(err) != codes.Internal {
			t.Errorf("a trailer that is too large: %v", err)
		}
		return m, nil
	}}
	f := start(t, s.with(setup{}))
	var header metadata.MD
	if _, err := grpchantesting.NewTestServiceClient(f).Unary(t.Context(), &grpchantesting.Message{}, grpc.Header(&header)); err != nil {
		t.Fatal(err)
	}
	if want := (metadata.MD{"upper": {"1"}, "a": {"2"}}); !reflect.DeepEqual(header, want) {
		t.Errorf("got headers %v, want %v", header, want)
	}
	if grpc.SetHeader(kept, metadata.Pairs("a", "1")) == nil || grpc.SetTrailer(kept, metadata.Pairs("a", "1")) == nil {
		t.Error("a header or a trailer was set after the method had returned")
	}
}

// metadataIsEmpty reports whether a method got metadata without keys, not none.
func metadataIsEmpty(ctx context.Context) bool {
	md, ok := metadata.FromIncomingContext(ctx)
	return ok && len(md) == 0
}

// TestCredentials: the metadata of credentials is sent beside that of the context.
func TestCredentials(t *testing.T) {
	t.Parallel()
	var got metadata.MD
	s := &service{unary: func(ctx context.Context, m *grpchantesting.Message) (*grpchantesting.Message, error) {
		got, _ = metadata.FromIncomingContext(ctx)
		return m, nil
	}}
	client := grpchantesting.NewTestServiceClient(start(t, s.with(setup{})))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "own", "1")
	if _, err := client.Unary(ctx, &grpchantesting.Message{}, grpc.PerRPCCredentials(token{})); err != nil {
		t.Fatal(err)
	}
	if want := (metadata.MD{"own": {"1"}, "token": {"amqp:///grpchantesting.TestService"}}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	_, err := client.Unary(ctx, &grpchantesting.Message{}, grpc.PerRPCCredentials(token{err: errors.New("expired")}))
	if status.Code(err) != codes.Unauthenticated || amqpx.OutcomeOf(err) != amqpx.DidNotRun {
		t.Errorf("got %v, outcome %v", err, amqpx.OutcomeOf(err))
	}
	_, err = client.Unary(ctx, &grpchantesting.Message{}, grpc.PerRPCCredentials(token{err: status.Error(codes.Unavailable, "later")}))
	if status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
}
