package amqpx

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// The source is called before each attempt. An empty field or an invalid value leaves the
// earlier value in force, and a fault is logged once while it stays the same.
func TestBrokersAreAskedForAtEachDial(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		log, logs := observed(zap.DebugLevel)
		fresh := &tls.Config{ServerName: "fresh", MinVersion: tls.VersionTLS12}
		replies := []struct {
			brokers Brokers
			err     error
		}{
			{Brokers{}, nil},
			{Brokers{URLs: "amqp://u:new@b/", TLS: fresh}, nil},
			{Brokers{URLs: "amqp://u:12/hunter2@c/"}, nil},
			{Brokers{URLs: "amqp://u:12/hunter2@c/"}, nil},
			{Brokers{}, errors.New("the file is away")},
			{Brokers{URLs: "amqp://u:last@d/"}, nil},
		}
		asked := 0
		source := WithBrokers(func() (Brokers, error) {
			reply := replies[min(asked, len(replies)-1)]
			asked++
			return reply.brokers, reply.err
		})
		var dialed []string
		done := make(chan struct{})
		b.OnDial = func(_ context.Context, url, _ string) error {
			if dialed = append(dialed, url); len(dialed) == len(replies) {
				close(done)
			}
			return errors.New("nobody listens")
		}
		c := startClient(t, b, source, WithLogger(log), WithReplyMode(ReplyDirect))
		<-done
		settle()
		want := []string{testURL, "amqp://u:new@b/", "amqp://u:new@b/", "amqp://u:new@b/", "amqp://u:new@b/", "amqp://u:last@d/"}
		if !slices.Equal(dialed, want) {
			t.Errorf("dialed %q", dialed)
		}
		if got := c.cfg.tlsConfig(); got != fresh {
			t.Errorf("the TLS configuration is %v", got)
		}
		const message = "how to reach the broker could not be read again, so it stays as it was"
		lines := logs.FilterMessage(message).All()
		if len(lines) != 2 || len(logs.FilterMessage("broker URLs changed").All()) != 2 {
			t.Errorf("%d lines of faults, want 2: %v", len(lines), logs.All())
		}
		for _, line := range logs.All() {
			if text := line.Message + zapText(line.ContextMap()); showsMarker(text) {
				t.Errorf("the log shows a password: %s", text)
			}
		}
	})
}

// zapText returns the values of a line of the log.
func zapText(fields map[string]any) string {
	text := ""
	for _, value := range fields {
		if s, ok := value.(string); ok {
			text += " " + s
		}
	}
	return text
}

func TestNoSourceOfBrokers(t *testing.T) {
	t.Parallel()
	c, err := newClientConfig(testURL, []ClientOption{WithBrokers(nil), WithLogger(zap.NewNop())})
	if err != nil || c.source != nil || c.source.tls() != nil {
		t.Errorf("source %v, %v", c.source, err)
	}
}
