package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/pprof"
	"time"
)

// childArg, as the only argument, makes this program one side of a contender. It
// then reads a brief and commands as JSON lines and answers each with one. The end
// of its input ends it, so it never outlives the conductor.
const childArg = "child"

// role is a side of a contender.
type role string

const (
	roleServer role = "server"
	roleClient role = "client"
	roleBroker role = "broker" // of a contender that brings its own
)

// brief tells a child what it is.
type brief struct {
	Role       role        `json:"role"`
	Contender  string      `json:"contender"`
	Env        environment `json:"env"`
	CPUProfile string      `json:"cpu_profile,omitempty"` // a file
}

// command asks for one of its parts or, without any, for the usage so far.
type command struct {
	Turn    *turn `json:"turn,omitempty"`
	Hold    int   `json:"hold,omitempty"`    // a client begins that many calls, which the server holds
	Release bool  `json:"release,omitempty"` // a server lets the held calls go
	Settle  bool  `json:"settle,omitempty"`  // a client waits for the held calls
}

// reply answers the brief and every command.
type reply struct {
	Error    string   `json:"error,omitempty"`
	Endpoint string   `json:"endpoint,omitempty"` // to the brief, of what listens itself
	Outcome  *outcome `json:"outcome,omitempty"`
	Usage    usage    `json:"usage"`
}

// endTimeout bounds the clean end of one side.
const endTimeout = 5 * time.Second

// serveChild is the whole life of a child.
func serveChild(ctx context.Context, in io.Reader, out io.Writer) error {
	commands := json.NewDecoder(in)
	replies := json.NewEncoder(out)
	var b brief
	if err := commands.Decode(&b); err != nil {
		return fmt.Errorf("no brief: %w", err)
	}
	e, err := findEntry(b.Contender)
	if err != nil {
		return err
	}
	stop, err := startProfile(b.CPUProfile)
	if err != nil {
		return err
	}
	defer stop()
	c, ok := e.contender.(native)
	if !ok {
		return fmt.Errorf("%s is another program", b.Contender)
	}
	switch b.Role {
	case roleServer:
		h := newHandler(b.Env.Sleep)
		serve := func(ctx context.Context, ready func(string)) error { return c.serve(ctx, b.Env, h, ready) }
		return servingChild(ctx, serve, commands, replies, h.release)
	case roleBroker:
		own, ok := e.contender.(brokered)
		if !ok {
			return fmt.Errorf("%s has no broker of its own", b.Contender)
		}
		return servingChild(ctx, own.broker, commands, replies, func() {})
	case roleClient:
		return clientChild(ctx, c, b.Env, commands, replies)
	default:
		return fmt.Errorf("no role %q", b.Role)
	}
}

func startProfile(file string) (stop func(), err error) {
	if file == "" {
		return func() {}, nil
	}
	f, err := os.Create(file) //nolint:gosec // the user of this tool named it.
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() {
		pprof.StopCPUProfile()
		_ = f.Close()
	}, nil
}
