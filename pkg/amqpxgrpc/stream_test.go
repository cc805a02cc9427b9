package amqpxgrpc

import (
	"context"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/fullstorydev/grpchan/grpchantesting"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"rabbitmq-rpc/pkg/amqpx"
)

// TestSendAfterTheEnd: Send returns io.EOF, whoever ended the stream, and Recv the reason.
func TestSendAfterTheEnd(t *testing.T) {
	t.Parallel()
	s := &service{bidi: func(x grpchantesting.TestService_BidiStreamServer) error {
		if md, _ := metadata.FromIncomingContext(x.Context()); len(md["wait"]) > 0 {
			<-x.Context().Done()
			return x.Context().Err()
		}
		return status.Error(codes.Aborted, "enough")
	}}
	client := grpchantesting.NewTestServiceClient(start(t, s.with(setup{})))
	x, err := client.BidiStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = x.Recv()
	if got := status.Convert(err); got.Code() != codes.Aborted || got.Message() != "enough" || amqpx.OutcomeOf(err) != amqpx.Ran {
		t.Errorf("got %v, outcome %v", err, amqpx.OutcomeOf(err))
	}
	if err := x.Send(&grpchantesting.Message{}); err != io.EOF { //nolint:errorlint // generated code compares.
		t.Errorf("got %v, want EOF", err)
	}
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), "wait", "1"))
	if x, err = client.BidiStream(ctx); err != nil {
		t.Fatal(err)
	}
	if err := x.Send(&grpchantesting.Message{}); err != nil {
		t.Error(err)
	}
	cancel()
	if _, err = x.Recv(); status.Code(err) != codes.Canceled || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if progress := amqpx.ProgressOf(err); progress.Sent > 1 || progress.Received != 0 {
		t.Errorf("got %+v", progress)
	}
	if err := x.Send(&grpchantesting.Message{}); err != io.EOF { //nolint:errorlint // generated code compares.
		t.Errorf("got %v, want EOF", err)
	}
}

// TestServerStreamOfAnEndedContext: a stream does not begin after its context, and generated code,
// which returns the error of the only message to its caller, gets none after the end.
func TestServerStreamOfAnEndedContext(t *testing.T) {
	t.Parallel()
	f := start(t, setup{register: registerSuite})
	ctx, cancel := context.WithCancel(t.Context())
	x, err := f.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, serverMethod)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := x.RecvMsg(&grpchantesting.Message{}); status.Code(err) != codes.Canceled || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := x.SendMsg(&grpchantesting.Message{}); err != nil {
		t.Errorf("the only message after the end: %v", err)
	}
	_, err = grpchantesting.NewTestServiceClient(f).ServerStream(ctx, &grpchantesting.Message{Count: 1})
	if status.Code(err) != codes.Canceled || amqpx.OutcomeOf(err) != amqpx.DidNotRun || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, outcome %v", err, amqpx.OutcomeOf(err))
	}
}

// raw is a service without generated code, whose methods send as many messages as they like.
func raw(messages int, fails error) setup {
	desc := &grpc.ServiceDesc{ServiceName: "raw", Streams: []grpc.StreamDesc{{
		StreamName: "Send", ClientStreams: true, ServerStreams: true,
		Handler: func(_ any, x grpc.ServerStream) error {
			for range messages {
				if err := x.SendMsg(&emptypb.Empty{}); err != nil {
					return err
				}
			}
			return fails
		},
	}}}
	return setup{register: func(r grpc.ServiceRegistrar) { r.RegisterService(desc, struct{}{}) }}
}

// TestOneResponse: a client that expects one message gets one, or an error.
func TestOneResponse(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		messages int
		fails    error
		code     codes.Code
	}{
		"none":           {0, nil, codes.Internal},
		"one":            {1, nil, codes.OK},
		"two":            {2, nil, codes.Internal},
		"one, then fail": {1, status.Error(codes.Aborted, "late"), codes.Aborted},
		"fail":           {0, status.Error(codes.Aborted, "early"), codes.Aborted},
	} {
		f := start(t, raw(c.messages, c.fails))
		var finished []error
		x, err := f.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, "/raw/Send", grpc.OnFinish(func(err error) { finished = append(finished, err) }))
		if err != nil {
			t.Fatal(err)
		}
		if err := x.CloseSend(); err != nil {
			t.Error(err)
		}
		err = x.RecvMsg(&emptypb.Empty{})
		if status.Code(err) != c.code {
			t.Errorf("%s: got %v, want %v", name, err, c.code)
		}
		if len(finished) != 1 || !errors.Is(finished[0], err) {
			t.Errorf("%s: finished with %v, want %v", name, finished, err)
		}
		if again := x.RecvMsg(&emptypb.Empty{}); again == nil {
			t.Errorf("%s: a second message", name)
		}
	}
}

// TestStreamInterceptors: the first is outermost, at both sides.
func TestStreamInterceptors(t *testing.T) {
	t.Parallel()
	order := make(chan string, 10)
	client := func(name string) grpc.StreamClientInterceptor {
		return func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			order <- name + method
			return open(metadata.AppendToOutgoingContext(ctx, "by", name), desc, cc, method, opts...)
		}
	}
	server := func(name string) grpc.StreamServerInterceptor {
		return func(impl any, x grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			if !info.IsClientStream || !info.IsServerStream {
				t.Errorf("the method is %+v", info)
			}
			order <- name + info.FullMethod
			return handler(impl, x)
		}
	}
	s := &service{bidi: func(x grpchantesting.TestService_BidiStreamServer) error {
		for _, by := range metadata.ValueFromIncomingContext(x.Context(), "by") {
			order <- by
		}
		method, _ := grpc.Method(x.Context())
		order <- method
		return nil
	}}
	f := start(t, s.with(setup{
		client: []ClientOption{WithChainStreamInterceptor(client("1"), client("2"))},
		server: []ServerOption{ChainStreamInterceptor(server("3")), ChainStreamInterceptor(server("4"))},
	}))
	x, err := grpchantesting.NewTestServiceClient(f).BidiStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Recv(); err != io.EOF { //nolint:errorlint // generated code compares.
		t.Errorf("got %v, want EOF", err)
	}
	close(order)
	m := bidiMethod
	if got, want := slices.Collect(func(yield func(string) bool) {
		for step := range order {
			if !yield(step) {
				return
			}
		}
	}), []string{"1" + m, "2" + m, "3" + m, "4" + m, "1", "2", m}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestStreamMetadata: headers arrive before any item if they are sent, and both headers and trailers
// with a failure; several values of one key stay apart.
func TestStreamMetadata(t *testing.T) {
	t.Parallel()
	sent := metadata.MD{"one": {"a"}, "several": {"a", "", "b"}, "x-bin": {"\x00\xff"}, "y-bin": {"\x00", "\xff"}, "rpc-code": {"ours"}}
	var late, method error
	s := &service{bidi: func(x grpchantesting.TestService_BidiStreamServer) error {
		md, _ := metadata.FromIncomingContext(x.Context())
		for key, values := range md {
			for _, value := range values {
				if err := errors.Join(x.SetHeader(metadata.Pairs(key, value)), grpc.SetTrailer(x.Context(), metadata.Pairs(key, value))); err != nil {
					return err
				}
			}
		}
		if err := grpc.SendHeader(x.Context(), nil); err != nil {
			return err
		}
		late = x.SetHeader(metadata.Pairs("a", "b"))
		x.SetTrailer(metadata.MD{"Upper": {"dropped"}})
		_, method = x.Recv()
		return status.Error(codes.Aborted, "enough")
	}}
	client := grpchantesting.NewTestServiceClient(start(t, s.with(setup{})))
	var header, trailer metadata.MD
	var from peer.Peer
	x, err := client.BidiStream(metadata.NewOutgoingContext(t.Context(), sent), grpc.Header(&header), grpc.Trailer(&trailer), grpc.Peer(&from))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := x.Header(); err != nil || !reflect.DeepEqual(got, sent) {
		t.Errorf("got headers %v, %v, want %v", got, err, sent)
	}
	if len(x.Trailer()) > 0 {
		t.Errorf("trailers before the end: %v", x.Trailer())
	}
	if err := x.CloseSend(); err != nil {
		t.Error(err)
	}
	if _, err := x.Recv(); status.Code(err) != codes.Aborted {
		t.Errorf("got %v", err)
	}
	if !reflect.DeepEqual(x.Trailer(), sent) || !reflect.DeepEqual(header, sent) || !reflect.DeepEqual(trailer, sent) || from.Addr == nil {
		t.Errorf("got headers %v, trailers %v and %v, peer %v", header, trailer, x.Trailer(), from)
	}
	if status.Code(late) != codes.Internal || method != io.EOF { //nolint:errorlint // as RecvMsg returns it.
		t.Errorf("headers after SendHeader: %v; the end of the client: %v", late, method)
	}
}

// TestOnFinishOfAnAbandonedStream: the functions are called once, though nobody receives.
func TestOnFinishOfAnAbandonedStream(t *testing.T) {
	t.Parallel()
	s := &service{bidi: func(x grpchantesting.TestService_BidiStreamServer) error {
		<-x.Context().Done()
		return x.Context().Err()
	}}
	client := grpchantesting.NewTestServiceClient(start(t, s.with(setup{})))
	ctx, cancel := context.WithCancel(t.Context())
	finished := make(chan error, 2)
	x, err := client.BidiStream(ctx, grpc.OnFinish(func(err error) { finished <- err }))
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Send(&grpchantesting.Message{}); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-finished; status.Code(err) != codes.Canceled {
		t.Errorf("finished with %v", err)
	}
	if _, err := x.Recv(); status.Code(err) != codes.Canceled || len(finished) > 0 {
		t.Errorf("got %v, and finished %d times more", err, len(finished))
	}
}

// TestFaultsOfOneMessage: what ends a stream at the side that finds it.
func TestFaultsOfOneMessage(t *testing.T) {
	t.Parallel()
	s := &service{bidi: func(x grpchantesting.TestService_BidiStreamServer) error {
		m, err := x.Recv()
		if err != nil {
			return err
		}
		return x.Send(m)
	}, server: func(_ *grpchantesting.Message, x grpchantesting.TestService_ServerStreamServer) error {
		return x.SendMsg("no message")
	}}
	f := start(t, s.with(setup{}))
	client := grpchantesting.NewTestServiceClient(f)
	large := &grpchantesting.Message{Payload: make([]byte, 1000)}
	for name, c := range map[string]struct {
		option   grpc.CallOption
		send     any
		sendCode codes.Code
	}{
		"too large to send":    {grpc.MaxCallSendMsgSize(1000), large, codes.ResourceExhausted},
		"too large to receive": {grpc.MaxCallRecvMsgSize(1000), large, codes.OK},
		"no message":           {grpc.EmptyCallOption{}, "no message", codes.Internal},
	} {
		x, err := client.BidiStream(t.Context(), c.option)
		if err != nil {
			t.Fatal(err)
		}
		if err := x.SendMsg(c.send); status.Code(err) != c.sendCode {
			t.Errorf("%s: SendMsg: %v", name, err)
		}
		_, err = x.Recv()
		if want := map[bool]codes.Code{true: codes.ResourceExhausted, false: codes.Canceled}[c.sendCode == codes.OK]; status.Code(err) != want {
			t.Errorf("%s: Recv: %v, want %v", name, err, want)
		}
	}
	x, err := client.BidiStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(x.CloseSend(), x.CloseSend()); err != nil {
		t.Error(err)
	}
	if err := x.Send(large); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "CloseSend") {
		t.Errorf("Send after CloseSend: %v", err)
	}
	y, err := client.ServerStream(t.Context(), large)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := y.Recv(); status.Code(err) != codes.Internal {
		t.Errorf("the server sends no message: %v", err)
	}
	for method, want := range map[string]amqpx.Code{
		bidiMethod:   amqpx.CodeInvalidArgument,
		serverMethod: amqpx.CodeInvalidArgument,
	} {
		for _, err := range f.client.Stream(t.Context(), method, []byte{0xff}) {
			if amqpx.CodeOf(err) != want {
				t.Errorf("%s: a request that cannot be decoded: %v", method, err)
			}
		}
		z, err := f.client.Open(t.Context(), method, amqpx.WithContentType("text/plain", ""))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.Recv(); amqpx.CodeOf(err) != want {
			t.Errorf("%s: a content type: %v", method, err)
		}
	}
	z, err := f.client.Open(t.Context(), serverMethod)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.CloseAndRecv(); amqpx.CodeOf(err) != amqpx.CodeInvalidArgument {
		t.Errorf("no request: %v", err)
	}
}
