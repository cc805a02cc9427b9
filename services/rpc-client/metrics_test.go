package main

import (
	"testing"

	"go.uber.org/zap"
)

func TestMetricsOfAClientWithoutALink(t *testing.T) {
	isolate(t)
	t.Setenv("AMQP_URL", "amqp://127.0.0.1:1/")
	settings, faults := load(t)
	if faults != nil {
		t.Fatalf("faults: %q", faults)
	}
	client, metrics, err := newClient(settings, settings.options(zap.NewNop()))
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Close(t.Context()); err != nil {
		t.Error(err)
	}
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if v := m.GetGauge().GetValue(); v != 0 {
				shown[family.GetName()+m.GetLabel()[len(m.GetLabel())-1].GetValue()] = v
			}
		}
	}
	if shown["amqpx_client_link_stateclosed"] != 1 || shown["go_goroutines"] == 0 {
		t.Errorf("shown: %v", shown)
	}
}

func TestMetricsSwitchedOff(t *testing.T) {
	isolate(t)
	t.Setenv("AMQP_URL", "amqp://127.0.0.1:1/")
	t.Setenv("METRICS", "false")
	settings, faults := load(t)
	if faults != nil {
		t.Fatalf("faults: %q", faults)
	}
	client, metrics, err := newClient(settings, settings.options(zap.NewNop()))
	if err != nil || metrics != nil {
		t.Fatalf("got metrics %v, %v", metrics, err)
	}
	if err := client.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

//nolint:paralleltest // sets the environment
func TestClientRefusedByTheLibrary(t *testing.T) {
	isolate(t)
	settings, _ := load(t)
	settings.Timeout = 0
	for _, on := range []bool{true, false} {
		settings.HTTP.Metrics = on
		if _, metrics, err := newClient(settings, settings.options(zap.NewNop())); err == nil || metrics != nil {
			t.Errorf("got metrics %v, %v", metrics, err)
		}
	}
}
