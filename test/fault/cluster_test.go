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

// judgeCluster checks how soon clients receive responses after a node's end.
func judgeCluster(t *testing.T, run report.Run) {
	t.Helper()
	const median, enough = time.Second, 10
	var gaps []time.Duration
	for _, l := range run.Survived() {
		gaps = append(gaps, l.Gap)
	}
	if len(gaps) < enough {
		return // too few for a quantile
	}
	if got := report.Quantile(gaps, 0.5); got > median {
		t.Errorf("longest time without a response after a node's end: median %v, want at most %v", got, median)
	}
}
