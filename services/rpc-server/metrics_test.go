package main

import (
	"strings"
	"testing"

	"go.uber.org/zap"
)

func TestMetricsOfAServerThatDoesNotServeYet(t *testing.T) {
	isolate(t)
	t.Setenv("RPC_WORKERS", "7")
	settings, faults := load(t)
	if faults != nil {
		t.Fatalf("faults: %q", faults)
	}
	server, metrics, err := newServer(settings, settings.options(zap.NewNop()))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]float64{}
	for _, family := range families {
		shown[family.GetName()] = family.GetMetric()[0].GetGauge().GetValue()
		if name := family.GetName(); strings.HasPrefix(name, "amqpx_") && family.GetMetric()[0].GetLabel()[0].GetValue() != "rpc_queue" {
			t.Errorf("%s is not of the queue: %v", name, family)
		}
	}
	if shown["amqpx_server_workers"] != 7 || shown["rabbitmq_rpc_build_info"] != 1 || shown["go_goroutines"] == 0 {
		t.Errorf("shown: %v", shown)
	}
}

func TestMetricsSwitchedOff(t *testing.T) {
	isolate(t)
	t.Setenv("METRICS", "false")
	settings, faults := load(t)
	if faults != nil {
		t.Fatalf("faults: %q", faults)
	}
	server, metrics, err := newServer(settings, settings.options(zap.NewNop()))
	if err != nil || metrics != nil {
		t.Fatalf("got metrics %v, %v", metrics, err)
	}
	server.Close()
}

//nolint:paralleltest // sets the environment
func TestServerRefusedByTheLibrary(t *testing.T) {
	isolate(t)
	settings, _ := load(t)
	settings.Workers = 0
	for _, on := range []bool{true, false} {
		settings.HTTP.Metrics = on
		if _, metrics, err := newServer(settings, settings.options(zap.NewNop())); err == nil || metrics != nil {
			t.Errorf("got metrics %v, %v", metrics, err)
		}
	}
}
