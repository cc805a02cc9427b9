package rig

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Variables for the cluster under test. Each holds a list in the order of the nodes.
const (
	envClusterURLs       = "AMQPX_TEST_CLUSTER_URLS"
	envClusterManagement = "AMQPX_TEST_CLUSTER_MANAGEMENT_URLS"
	envClusterBrokers    = "AMQPX_TEST_CLUSTER_BROKERS"
)

// Node is a member of the cluster under test.
type Node struct {
	*Broker

	// Name is the Erlang name of the node, as shown by RabbitMQ.
	Name string
	// ManagementURL is the URL of the node's management API, with user and password.
	ManagementURL string
}

// TheCluster returns the nodes of the cluster under test, for a suite with exclusive use.
func TheCluster(t testing.TB) []Node {
	t.Helper()
	list := func(name string) []string {
		value := os.Getenv(name)
		if value == "" {
			t.Fatalf("%s is not set: these tests need a cluster, such as deploy/with-cluster.sh 3 COMMAND starts", name)
		}
		return strings.Split(value, ",")
	}
	urls, management, brokers := list(envClusterURLs), list(envClusterManagement), list(envClusterBrokers)
	if len(urls) != len(brokers) || len(management) != len(brokers) {
		t.Fatalf("%s, %s and %s differ in length", envClusterURLs, envClusterManagement, envClusterBrokers)
	}
	nodes := make([]Node, len(brokers))
	for i, name := range brokers {
		nodes[i] = Node{
			Broker:        &Broker{t: t, script: script(t), name: name, URL: urls[i]},
			Name:          name + "@localhost",
			ManagementURL: management[i],
		}
	}
	return nodes
}

// ManageAt returns the management API of a node.
func ManageAt(t testing.TB, n Node) *Management {
	t.Helper()
	return &Management{t: t, base: n.ManagementURL}
}

// Eval evaluates an Erlang expression in the broker and returns its value as text.
func (b *Broker) Eval(expression string) string {
	b.t.Helper()
	return strings.TrimSpace(b.Ctl("-q", "eval", expression))
}

// Tool runs a program of RabbitMQ in the broker. The caller decides whether an error is a
// failure.
func (b *Broker) Tool(program string, args ...string) (string, error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.t.Context()), patience)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, b.script, append([]string{"tool", b.name, program}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w", program, args, err)
	}
	return out.String(), nil
}
