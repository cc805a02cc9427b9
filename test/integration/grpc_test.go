//go:build integration

package integration

import (
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/fullstorydev/grpchan/grpchantesting"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/interop"
	interoppb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxgrpc"
	"rabbitmq-rpc/test/internal/rig"
)

// serveGRPC starts a server with services of gRPC, and returns a connection of a client.
func serveGRPC(t *testing.T, register func(grpc.ServiceRegistrar), opts ...amqpxgrpc.ClientOption) *amqpxgrpc.ClientConn {
	t.Helper()
	r := rig.New(t)
	server, err := amqpx.NewServer(r.URL, amqpx.WithQueue(r.Queue))
	if err != nil {
		t.Fatal(err)
	}
	services := amqpxgrpc.NewServer(server)
	register(services)
	ctx, drain := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- services.Serve(ctx) }()
	t.Cleanup(func() {
		drain()
		if err := rig.Recv(t, served, "the end of the server"); err != nil {
			t.Errorf("the server: %v", err)
		}
	})
	if err := server.WaitReady(rig.Patience(t)); err != nil {
		t.Fatal(err)
	}
	return amqpxgrpc.NewClientConn(r.Ready(), opts...)
}

// TestGRPCConformance runs the suite of grpchan, with which others test channels of gRPC.
func TestGRPCConformance(t *testing.T) {
	t.Parallel()
	cc := serveGRPC(t, func(r grpc.ServiceRegistrar) {
		grpchantesting.RegisterTestServiceServer(r, &grpchantesting.TestServer{})
	})
	grpchantesting.RunChannelTestCases(t, cc, true)
}

// panics is a logger for the cases of grpc-go, which end the program when they fail. It panics
// instead, so that the test fails.
type panics struct{ grpclog.LoggerV2 }

func (panics) FatalDepth(_ int, args ...any) { panic(fmt.Sprint(args...)) }
func (panics) InfoDepth(int, ...any)         {}
func (panics) WarningDepth(int, ...any)      {}
func (panics) ErrorDepth(int, ...any)        {}

// The logger of grpc-go is set before any goroutine may use it.
var _ = func() bool {
	grpclog.SetLoggerV2(panics{grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard)})
	return true
}()

// TestGRPCInterop runs the cases of grpc-go with which its own implementations are tested beside each
// other, with the server of grpc-go. Cases that need a connection of grpc-go are left out.
func TestGRPCInterop(t *testing.T) {
	t.Parallel()
	cc := serveGRPC(t, func(r grpc.ServiceRegistrar) { interoppb.RegisterTestServiceServer(r, interop.NewTestServer()) })
	client := interoppb.NewTestServiceClient(cc)
	for name, run := range map[string]func(context.Context, interoppb.TestServiceClient, ...grpc.CallOption){
		"empty_unary":                 interop.DoEmptyUnaryCall,
		"large_unary":                 interop.DoLargeUnaryCall,
		"client_streaming":            interop.DoClientStreaming,
		"server_streaming":            interop.DoServerStreaming,
		"ping_pong":                   interop.DoPingPong,
		"empty_stream":                interop.DoEmptyStream,
		"timeout_on_sleeping_server":  interop.DoTimeoutOnSleepingServer,
		"cancel_after_begin":          interop.DoCancelAfterBegin,
		"cancel_after_first_response": interop.DoCancelAfterFirstResponse,
		"custom_metadata":             interop.DoCustomMetadata,
		"status_code_and_message":     interop.DoStatusCodeAndMessage,
		"special_status_message":      interop.DoSpecialStatusMessage,
		"unimplemented_service": func(ctx context.Context, _ interoppb.TestServiceClient, _ ...grpc.CallOption) {
			interop.DoUnimplementedService(ctx, interoppb.NewUnimplementedServiceClient(cc))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			defer func() {
				if failed := recover(); failed != nil {
					t.Error(failed)
				}
			}()
			run(rig.Patience(t), client)
		})
	}
}

// TestGRPCHealth: the health service of grpc-go tells a watcher each change, until it leaves.
func TestGRPCHealth(t *testing.T) {
	t.Parallel()
	states := health.NewServer()
	cc := serveGRPC(t, func(r grpc.ServiceRegistrar) { healthpb.RegisterHealthServer(r, states) })
	ctx, leave := context.WithCancel(rig.Patience(t))
	defer leave()
	watch, err := healthpb.NewHealthClient(cc).Watch(ctx, &healthpb.HealthCheckRequest{Service: "orders"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []healthpb.HealthCheckResponse_ServingStatus{
		healthpb.HealthCheckResponse_SERVICE_UNKNOWN, healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING,
	} {
		if want != healthpb.HealthCheckResponse_SERVICE_UNKNOWN {
			states.SetServingStatus("orders", want)
		}
		if response, err := watch.Recv(); err != nil || response.GetStatus() != want {
			t.Errorf("got %v, %v, want %v", response, err, want)
		}
	}
	leave()
	if _, err := watch.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("got %v", err)
	}
}
