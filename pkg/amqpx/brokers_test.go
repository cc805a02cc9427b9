package amqpx

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"go.uber.org/zap"
)

// The source is asked before each attempt; what it leaves out or what makes no sense stays as
// it was, and is logged once while it stays the same.
func TestBrokersAreAskedForAtEachDial(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, "amqp://u:old@a/")
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
		apply, _ := WithBrokers(func() (Brokers, error) {
			reply := replies[min(asked, len(replies)-1)]
			asked++
			return reply.brokers, reply.err
		}).(option)
		apply(w.cfg)
		w.cfg.source.start("amqp://u:old@a/", w.cfg.urls, w.cfg.logger)
		var dialed []string
		done := make(chan struct{})
		w.broker.onDial = func(_ context.Context, url, _ string) error {
			if dialed = append(dialed, url); len(dialed) == len(replies) {
				close(done)
			}
			return errors.New("nobody listens")
		}
		w.run(t)
		<-done
		w.stop()
		<-w.ended
		want := []string{"amqp://u:old@a/", "amqp://u:new@b/", "amqp://u:new@b/", "amqp://u:new@b/", "amqp://u:new@b/", "amqp://u:last@d/"}
		if !slices.Equal(dialed, want) {
			t.Errorf("dialed %q", dialed)
		}
		if got := (netDialer{source: w.cfg.source}).source.tls(); got != fresh {
			t.Errorf("the TLS configuration is %v", got)
		}
		const message = "how to reach the broker could not be read again, so it stays as it was"
		lines := w.logs.FilterMessage(message).All()
		if len(lines) != 2 || len(w.logs.FilterMessage("broker URLs changed").All()) != 2 {
			t.Errorf("%d lines of faults, want 2: %v", len(lines), w.logs.All())
		}
		for _, line := range w.logs.All() {
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
