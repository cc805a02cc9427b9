package main

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"rabbitmq-rpc/bench/experiment"
)

func TestOptions(t *testing.T) {
	t.Parallel()
	o, err := parseOptions([]string{"-url", "amqp://nowhere.invalid/", "-experiment", "all", "-contenders", "loop,amqpx-batch@old", "-callers", "1,8", "-rates", "20000,40000"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if want := experiment.AllNames(); !slices.Equal(o.experiments, want) {
		t.Errorf("experiments %v, want %v", o.experiments, want)
	}
	if !slices.Equal(o.Callers, []int{1, 8}) {
		t.Errorf("callers %v", o.Callers)
	}
	if !slices.Equal(o.Rates, []int{20_000, 40_000}) {
		t.Errorf("rates %v", o.Rates)
	}
	if !slices.Equal(o.Contenders, []string{"loop", "amqpx-batch@old"}) {
		t.Errorf("contenders %v", o.Contenders)
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
		{[]string{"-rates", "0"}, `rates "0"`},
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

// The tables of the model need no broker.
func TestModelNeedsNoBroker(t *testing.T) {
	t.Parallel()
	if o, err := parseOptions([]string{"-url", "", "-model", "growth.json"}, io.Discard); err != nil || o.model != "growth.json" {
		t.Errorf("%+v, %v", o, err)
	}
}

// The services of this repository are needed by the contenders that run them, unless they name
// another build.
func TestNeedsPrograms(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		labels []string
		want   bool
	}{
		{[]string{"loop", "amqpx@old"}, false},
		{[]string{"loop", "pair@old"}, false},
		{[]string{"pair@old", "pair-single"}, true},
	} {
		if got := needsPrograms(tt.labels); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.labels, got, tt.want)
		}
	}
}
