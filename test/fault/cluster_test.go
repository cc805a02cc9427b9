//go:build fault

package fault

import (
	"slices"
	"testing"
	"time"

	"rabbitmq-rpc/test/fault/internal/report"
)

// TestCluster loses, isolates and drains the nodes of a cluster of three, and proves how soon
// clients receive responses again while the request queue stays in service: `make cluster`.
func TestCluster(t *testing.T) {
	judgeCluster(t, table(t, "cluster", "make cluster", set.batch, slices.Concat(clusterScenarios(), memberScenarios())))
}

// TestClusterShort is a selection of TestCluster: `make cluster-short`.
func TestClusterShort(t *testing.T) {
	short := slices.DeleteFunc(clusterScenarios(), func(sc scenario) bool { return !sc.short })
	for i := range short {
		short[i].times = 1
	}
	judgeCluster(t, table(t, "cluster-short", "make cluster-short", set.batch, short))
}

// The bounds on the time from a node's end to the first response of a client, among the calls made
// after the node's end, and on the longest time without a response during a rolling restart.
const (
	firstMedian, firstP99 = time.Second, 3 * time.Second
	rollingGap            = 2 * time.Second
)

// judgeCluster checks how soon clients receive responses after a node's end.
func judgeCluster(t *testing.T, run report.Run) {
	t.Helper()
	const median, enough = time.Second, 8 // more than TestClusterShort has
	var gaps, firsts []time.Duration
	for _, l := range run.Survived() {
		gaps, firsts = append(gaps, l.Gap), append(firsts, l.First)
	}
	if len(gaps) == 0 {
		t.Error("no client survived the loss of a node")
		return
	}
	t.Logf("first response after a node's end: median %v, p99 %v, of %d; longest time without a response: median %v, p99 %v",
		report.Quantile(firsts, 0.5), report.Quantile(firsts, 0.99), len(firsts), report.Quantile(gaps, 0.5), report.Quantile(gaps, 0.99))
	if got := report.Quantile(firsts, 0.99); got > firstP99 {
		t.Errorf("first response after a node's end: p99 %v of %d, want at most %v", got, len(firsts), firstP99)
	}
	if len(gaps) < enough {
		return // too few for a median
	}
	if got := report.Quantile(firsts, 0.5); got > firstMedian {
		t.Errorf("first response after a node's end: median %v of %d, want at most %v", got, len(firsts), firstMedian)
	}
	if got := report.Quantile(gaps, 0.5); got > median {
		t.Errorf("longest time without a response after a node's end: median %v, want at most %v", got, median)
	}
}
