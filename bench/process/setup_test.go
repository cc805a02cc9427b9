package process

import (
	"slices"
	"testing"
)

func TestProcessorsOfSetup(t *testing.T) {
	t.Parallel()
	if got := (Setup{}).environment(); got != nil {
		t.Errorf("without a number: %v", got)
	}
	if got := (Setup{Procs: 1}).environment(); !slices.Equal(got, []string{"GOMAXPROCS=1"}) {
		t.Errorf("one processor: %v", got)
	}
}
