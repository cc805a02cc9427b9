package main

import (
	"context"
	"fmt"
)

// contender is one way to make remote calls. Each has a file of its own.
type contender interface {
	// settings states, in a line of the report, what was chosen for it.
	settings() string
	// serve answers calls on env's queue until ctx ends. It calls ready once, when
	// calls can come.
	serve(ctx context.Context, env environment, ready func()) error
	// dial makes a caller.
	dial(ctx context.Context, env environment) (caller, error)
}

// caller is the calling side of a contender, safe for any number of goroutines.
type caller interface {
	// call sends one request and returns its answer.
	call(ctx context.Context) ([]byte, error)
	close(ctx context.Context) error
}

// environment is where a contender runs.
type environment struct {
	URL   string `json:"url"`
	Queue string `json:"queue"` // its own request queue
}

// What every contender sends and gets.
const (
	method      = "b"
	requestBody = "request"
	answerBody  = "b"
)

// entry is a contender under its name in the table.
type entry struct {
	name string
	contender
	// optional ones run only when they are asked for.
	optional bool
}

// entries lists the contenders in the order of the table. The first two are what
// the others are compared with.
func entries() []entry {
	return []entry{
		{name: baseline, contender: loop{}},
		{name: baselineSame, contender: loop{confirms: true, split: true, deadlines: true}},
		{name: "amqpx", contender: overAMQPX{}},
		{name: "amqpx-direct", contender: overAMQPX{direct: true}},
		{name: "loop-2conn", contender: loop{split: true}, optional: true},
		{name: "loop-confirms", contender: loop{confirms: true}, optional: true},
		{name: "loop-confirms-2conn", contender: loop{confirms: true, split: true}, optional: true},
		{name: "loop-direct", contender: loop{direct: true}, optional: true},
	}
}

// Names of the contenders that the others are compared with.
const (
	baseline     = "loop"
	baselineSame = "loop-same" // what amqpx sends and waits for, written by hand
)

func findContender(name string) (contender, error) {
	for _, e := range entries() {
		if e.name == name {
			return e.contender, nil
		}
	}
	return nil, fmt.Errorf("no contender %q", name)
}

func allContenders() []string {
	var names []string
	for _, e := range entries() {
		names = append(names, e.name)
	}
	return names
}

func defaultContenders() []string {
	var names []string
	for _, e := range entries() {
		if !e.optional {
			names = append(names, e.name)
		}
	}
	return names
}
