package amqpxgrpc

import (
	"testing"

	"github.com/fullstorydev/grpchan/grpchantesting"
	"google.golang.org/grpc"
)

// registerSuite registers the service of the conformance suite.
func registerSuite(r grpc.ServiceRegistrar) {
	grpchantesting.RegisterTestServiceServer(r, &grpchantesting.TestServer{})
}

// TestConformance runs the suite with which others test channels of gRPC. On RabbitMQ it is run by
// the integration tests.
func TestConformance(t *testing.T) {
	t.Parallel()
	grpchantesting.RunChannelTestCases(t, start(t, setup{register: registerSuite}), true)
}
