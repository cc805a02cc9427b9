package amqpxprom

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"rabbitmq-rpc/pkg/amqpx"
)

// certified is a source whose connection had certificates.
type certified struct {
	clientSource

	status amqpx.Status
}

func (c certified) Status() amqpx.Status { return c.status }

func (c certified) ofServer() certifiedServer { return certifiedServer{status: c.status} }

type certifiedServer struct {
	serverSource

	status amqpx.Status
}

func (c certifiedServer) Status() amqpx.Status { return c.status }

// The ends of the certificates of the connection are shown, as far as there are certificates.
func TestEndsOfCertificates(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status amqpx.Status
		want   map[string]float64
	}{
		"none":   {amqpx.Status{}, nil},
		"broker": {amqpx.Status{BrokerCertificateEnd: time.Unix(12, 5)}, map[string]float64{"{broker}": 12}},
		"both":   {amqpx.Status{BrokerCertificateEnd: time.Unix(12, 0), OwnCertificateEnd: time.Unix(34, 0)}, map[string]float64{"{broker}": 12, "{own}": 34}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := certified{status: c.status}
			ofClient, ofServer := NewClientMetrics("q"), NewServerMetrics("q")
			ofClient.Watch(source)
			ofServer.Watch(source.ofServer())
			for prefix, m := range map[string]prometheus.Collector{"amqpx_client": ofClient, "amqpx_server": ofServer} {
				all := map[string]float64{}
				for label, value := range c.want {
					all[prefix+"_certificate_not_after_seconds"+label] = value
				}
				want(t, m, prefix+"_certificate", all)
			}
		})
	}
}
