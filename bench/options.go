package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/bench/experiment"
	"rabbitmq-rpc/bench/process"
)

// errUsage marks bad arguments.
var errUsage = errors.New("bad arguments")

// The environment variables with the URLs of the broker and the file with the certificate of its
// authority; deploy/broker.sh prints their values.
const (
	urlVariable    = "AMQPX_TEST_AMQP_URL"
	tlsURLVariable = "AMQPX_TEST_AMQPS_URL"
	caFileVariable = "AMQPX_TEST_CA_FILE"
	// The URL of the broker's metrics, and the broker's name for deploy/broker.sh.
	metricsURLVariable = "AMQPX_TEST_METRICS_URL"
	brokerVariable     = "AMQPX_TEST_BROKER"
	// The URLs of the nodes of a cluster, and of their metrics, separated by commas.
	clusterVariable        = "AMQPX_TEST_CLUSTER_URLS"
	clusterMetricsVariable = "AMQPX_TEST_CLUSTER_METRICS_URLS"
)

// tlsURL returns the URL of the broker's listener for TLS, or an empty string if it is not set.
func tlsURL() string {
	at, file := os.Getenv(tlsURLVariable), os.Getenv(caFileVariable)
	if at == "" || file == "" {
		return ""
	}
	return at + "?cacertfile=" + url.QueryEscape(file)
}

// options holds the settings of one run.
type options struct {
	experiment.Options

	limit       time.Duration // of the whole run
	experiments []string
	out         string // directory; empty: none
	broker      string // name for deploy/broker.sh; empty: not known
	model       string // file; empty: the experiments run
}

func parseOptions(args []string, usage io.Writer) (options, error) {
	o := options{}
	var callers, rates, names, experiments, cluster, clusterMetrics string
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(usage)
	fs.StringVar(&o.URL, "url", os.Getenv(urlVariable), "broker `URL`; default: $"+urlVariable)
	fs.StringVar(&o.TLSURL, "tls-url", tlsURL(), "broker `URL` for the contenders …-tls; default: $"+tlsURLVariable+" with the authority in $"+caFileVariable)
	fs.StringVar(&o.MetricsURL, "metrics-url", os.Getenv(metricsURLVariable), "`URL` of the broker's plugin rabbitmq_prometheus, to count messages in the experiment "+experiment.Growth+"; default: $"+metricsURLVariable)
	fs.StringVar(&o.broker, "broker", os.Getenv(brokerVariable), "`name` of the broker for deploy/broker.sh, to trace its processes in the experiment "+experiment.Growth+", and to slow its queues down in "+experiment.Shards+"; default: $"+brokerVariable)
	fs.StringVar(&cluster, "cluster-urls", os.Getenv(clusterVariable), "`URLs` of the three nodes of a cluster, for the experiments "+experiment.ScalingNodes+" and "+experiment.ScalingShards+"; default: $"+clusterVariable)
	fs.StringVar(&clusterMetrics, "cluster-metrics-urls", os.Getenv(clusterMetricsVariable), "`URLs` of the metrics of these nodes; default: $"+clusterMetricsVariable)
	fs.IntVar(&o.Rounds, "rounds", 5, "rounds to measure, after one to warm up; at least 5 for a figure worth keeping")
	fs.DurationVar(&o.Duration, "duration", time.Second, "length of one contender's turn; at least 5s for the contenders "+contender.Pair+"…, whose turn is a run of a new client")
	fs.IntVar(&o.MaxCalls, "max-calls", 1_000_000, "most calls of one contender's turn")
	fs.DurationVar(&o.limit, "limit", 30*time.Minute, "the run is given up after this time")
	fs.StringVar(&callers, "callers", "1,64,1024", "loads of the experiment "+experiment.Table+": how many callers call at once")
	fs.StringVar(&rates, "rates", "1000,2000,5000,10000,20000,50000,100000,200000", "open loops of the experiment "+experiment.Rate+": how many calls start in a second; half of the maximum is always measured")
	fs.StringVar(&names, "contenders", strings.Join(contender.DefaultNames(), ","), "any of "+strings.Join(contender.Names(), ", ")+"; NAME@FILE runs one from another build of this program, to compare revisions. "+
		"The contenders "+contender.Pair+"… are the shipped services, built from this repository; "+contender.Pair+"@DIR runs rpc-server and rpc-client of a directory")
	fs.StringVar(&experiments, "experiment", experiment.Table, "any of "+strings.Join(experiment.Names(), ", ")+"; all is "+strings.Join(experiment.AllNames(), ", "))
	fs.StringVar(&o.out, "out", "", "write results.md and plots to this `directory` as well")
	fs.StringVar(&o.model, "model", "", "run no experiment: print the tables of the model from this `file`, growth.json of an earlier run, and with -out write them into the documents")
	fs.StringVar(&o.CPUProfile, "cpuprofile", "", "write CPU profiles of all sides to files that begin with `prefix`; with several experiments, those of the last")
	fs.IntVar(&o.BrokerPID, "broker-pid", 0, "process `id` of the broker (beam.smp), to measure its processor time as well; default: what listens on its port on this machine")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, fmt.Errorf("%w: %w", errUsage, err)
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("%w: unexpected %q", errUsage, fs.Arg(0))
	}
	if o.model != "" {
		return o, nil
	}
	var err error
	if o.Callers, err = parseNumbers("callers", callers); err != nil {
		return o, err
	}
	if o.Rates, err = parseNumbers("rates", rates); err != nil {
		return o, err
	}
	if o.Cluster, err = parseCluster(cluster, clusterMetrics); err != nil {
		return o, err
	}
	if experiments == experiment.Telemetry && names == strings.Join(contender.DefaultNames(), ",") {
		names = strings.Join(experiment.TelemetryNames(), ",")
	}
	o.Contenders = strings.Split(names, ",")
	if o.experiments = strings.Split(experiments, ","); experiments == "all" {
		o.experiments = experiment.AllNames()
	}
	if err := o.validate(); err != nil {
		return o, err
	}
	if o.BrokerPID == 0 {
		o.BrokerPID = process.FindBroker(o.URL)
	}
	return o, nil
}

// parseCluster returns the nodes of a cluster.
func parseCluster(urls, metrics string) ([]experiment.Node, error) {
	if urls == "" {
		return nil, nil
	}
	nodes, figures := strings.Split(urls, ","), strings.Split(metrics, ",")
	if len(nodes) != len(figures) {
		return nil, fmt.Errorf("%w: %d nodes of a cluster, and metrics of %d", errUsage, len(nodes), len(figures))
	}
	var all []experiment.Node
	for i := range nodes {
		all = append(all, experiment.Node{URL: nodes[i], MetricsURL: figures[i]})
	}
	return all, nil
}

// parseNumbers parses the value of the option with this name.
func parseNumbers(name, list string) ([]int, error) {
	var all []int
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%w: %s %q: want numbers of at least 1", errUsage, name, text)
		}
		all = append(all, n)
	}
	return all, nil
}

func (o options) validate() error {
	known := contender.Names()
	for _, label := range o.Contenders {
		name, _ := experiment.SplitLabel(label)
		if !slices.Contains(known, name) {
			return fmt.Errorf("%w: contender %q: want any of %s", errUsage, name, strings.Join(known, ", "))
		}
		if found, _ := contender.Find(name); found.Secure && o.TLSURL == "" {
			return fmt.Errorf("%w: contender %q: set -tls-url, or %s and %s", errUsage, name, tlsURLVariable, caFileVariable)
		}
	}
	for _, name := range o.experiments {
		if !slices.Contains(experiment.Names(), name) {
			return fmt.Errorf("%w: experiment %q: want any of %s", errUsage, name, strings.Join(experiment.Names(), ", "))
		}
		if experiment.New(name, o.Options).IsEmpty() {
			return fmt.Errorf("%w: experiment %q: none of the chosen contenders takes part in it", errUsage, name)
		}
	}
	switch {
	case o.URL == "":
		return fmt.Errorf("%w: no broker: set -url or %s", errUsage, urlVariable)
	case o.Rounds < 1 || o.Duration <= 0 || o.MaxCalls < 1 || o.limit <= 0:
		return fmt.Errorf("%w: rounds, duration, max-calls and limit must be more than 0", errUsage)
	}
	return nil
}
