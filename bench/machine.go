package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Machine describes the machine and the software of a measurement.
type Machine struct {
	CPU    string // the processor's model; empty when unknown
	Cores  int
	OS     string
	Go     string
	Broker string
	Load   string // the load average before the run; empty when unknown
	// Modules lists the contenders' libraries with versions; empty when unknown.
	Modules string
}

func readMachine(url string) (Machine, error) {
	conn, err := amqp.Dial(url)
	if err != nil {
		return Machine{}, err
	}
	broker := fmt.Sprintf("%v %v on %v", conn.Properties["product"], conn.Properties["version"], conn.Properties["platform"])
	m := Machine{
		CPU:    cpuModel(),
		Cores:  runtime.NumCPU(),
		OS:     runtime.GOOS + "/" + runtime.GOARCH,
		Go:     runtime.Version(),
		Broker: broker,
		Load:   loadAverage(),

		Modules: modules(),
	}
	return m, conn.Close()
}

// modules returns the versions of the contenders' libraries.
func modules() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	var all []string
	for _, m := range info.Deps {
		for _, name := range []string{"rabbitmq/amqp091-go", "go-kit/kit", "ThreeDotsLabs/watermill", "ThreeDotsLabs/watermill-amqp/v3", "nats-io/nats-server/v2", "nats-io/nats.go"} {
			if m.Path == "github.com/"+name {
				all = append(all, name+" "+m.Version)
			}
		}
		if m.Path == "google.golang.org/grpc" {
			all = append(all, "grpc-go "+m.Version)
		}
	}
	return strings.Join(all, ", ")
}

// cpuModel returns the processor's model name, or "" if the system does not report a name.
func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// loadAverage returns the load average of the last minute, or "" if the system does not report
// a load.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}
