package main

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

func TestOptions(t *testing.T) {
	t.Parallel()
	o, err := parseOptions([]string{"-url", "amqp://nowhere.invalid/", "-experiment", "all", "-contenders", "loop,amqpx-batch@old", "-callers", "1,8"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if want := allExperiments()[1 : len(allExperiments())-1]; !slices.Equal(o.experiments, want) {
		t.Errorf("experiments %v, want %v", o.experiments, want)
	}
	if !slices.Equal(o.callers, []int{1, 8}) {
		t.Errorf("callers %v", o.callers)
	}
	e := newExperiment(expTable, o)
	if got := e.lineup[1]; got.contender != batched || got.program != "old" || got.label != "amqpx-batch@old" {
		t.Errorf("second entrant %+v", got)
	}
}

func TestOptionFaults(t *testing.T) {
	t.Parallel()
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"-url", ""}, "no broker"},
		{[]string{"-contenders", "loop,lop"}, `contender "lop"`},
		{[]string{"-experiment", "rate,speed"}, `experiment "speed"`},
		{[]string{"-experiment", "table,rate", "-contenders", "python"}, `experiment "rate"`},
		{[]string{"-callers", "1,x"}, `callers "x"`},
		{[]string{"-callers", "0"}, `callers "0"`},
		{[]string{"-rounds", "0"}, "rounds"},
		{[]string{"-duration", "-1s"}, "duration"},
		{[]string{"-limit", "0s"}, "limit"},
		{[]string{"-nonsense"}, "nonsense"},
		{[]string{"more"}, `unexpected "more"`},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			t.Parallel()
			_, err := parseOptions(append([]string{"-url", "amqp://nowhere.invalid/"}, tt.args...), io.Discard)
			if !errors.Is(err, errUsage) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one of usage about %q", err, tt.want)
			}
		})
	}
}

func TestLineupOfExperiments(t *testing.T) {
	t.Parallel()
	o := options{contenders: []string{"loop", "amqpx-batch", "python"}, callers: []int{1}, rounds: 1, duration: 1, maxCalls: 1}
	for name, want := range map[string][]string{
		expTable:   {"loop", "amqpx-batch", "python"},
		expRate:    {"loop", "amqpx-batch"},
		expServers: {"loop × 1", "loop × 2", "loop × 4", "amqpx-batch × 1", "amqpx-batch × 2", "amqpx-batch × 4"},
	} {
		var got []string
		for _, e := range newExperiment(name, o).lineup {
			got = append(got, e.label)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: lineup %v, want %v", name, got, want)
		}
	}
}
