package amqpxgrpc

import (
	"context"
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
)

// TestHealth: the health service of grpc-go, whose Watch tells each change until its client leaves.
func TestHealth(t *testing.T) {
	t.Parallel()
	states := health.NewServer()
	f := start(t, setup{register: func(r grpc.ServiceRegistrar) { healthpb.RegisterHealthServer(r, states) }})
	client := healthpb.NewHealthClient(f)
	response, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || response.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("got %v, %v", response, err)
	}
	if _, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "none"}); status.Code(err) != codes.NotFound {
		t.Errorf("got %v", err)
	}
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	watch, err := client.Watch(ctx, &healthpb.HealthCheckRequest{Service: "orders"})
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

// TestReflection: the reflection service of grpc-go lists the services.
func TestReflection(t *testing.T) {
	t.Parallel()
	f := start(t, setup{register: func(r grpc.ServiceRegistrar) {
		registerSuite(r)
		if server, ok := r.(reflection.GRPCServer); ok {
			reflection.Register(server)
		}
	}})
	x, err := reflectionpb.NewServerReflectionClient(f).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Error(err)
	}
	response, err := x.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range response.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	slices.Sort(names)
	if want := []string{"grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection", "grpchantesting.TestService"}; !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
	if err := x.CloseSend(); err != nil {
		t.Error(err)
	}
	if response, err := x.Recv(); err == nil {
		t.Errorf("got %v after the end", response)
	}
}
