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
	if want := Names2()[1 : len(Names2())-1]; !slices.Equal(o.experiments, want) {
		t.Errorf("experiments %v, want %v", o.experiments, want)
	}
	if !slices.Equal(o.Callers, []int{1, 8}) {
		t.Errorf("callers %v", o.Callers)
	}
	e := New(Table, o.Options2)
	if got := e.setups[1]; got.Candidate != Batched || got.Program != "old" || got.Label != "amqpx-batch@old" {
		t.Errorf("second setup %+v", got)
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
	o := Options2{Candidates: []string{"loop", "amqpx-batch", "python"}, Callers: []int{1}, Rounds: 1, Duration: 1, MaxCalls: 1}
	for name, want := range map[string][]string{
		Table:   {"loop", "amqpx-batch", "python"},
		Rate:    {"loop", "amqpx-batch"},
		Servers: {"loop × 1", "loop × 2", "loop × 4", "amqpx-batch × 1", "amqpx-batch × 2", "amqpx-batch × 4"},
	} {
		var got []string
		for _, e := range New(name, o).setups {
			got = append(got, e.Label)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: lineup %v, want %v", name, got, want)
		}
	}
}
