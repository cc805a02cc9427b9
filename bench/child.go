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

// childArg as the only argument makes this program a process of a contender. The process reads
// a brief and then commands as JSON lines, and sends a JSON reply for each line. The end of
// the input ends the process, so a child never outlives the conductor.
const childArg = "child"

// role is the role of a contender's process.
type role string

const (
	roleServer role = "server"
	roleClient role = "client"
	roleBroker role = "broker" // of a contender with its own broker
)

// brief configures a child process.
type brief struct {
	Role       role        `json:"role"`
	Contender  string      `json:"contender"`
	Env        environment `json:"env"`
	CPUProfile string      `json:"cpu_profile,omitempty"` // a file
}

// command is a task for a child process. Without any field set it only requests the usage so
// far.
type command struct {
	Turn    *turn `json:"turn,omitempty"`
	Hold    int   `json:"hold,omitempty"`    // a client starts this many calls, which the server holds
	Release bool  `json:"release,omitempty"` // a server releases the held calls
	Settle  bool  `json:"settle,omitempty"`  // a client waits for the responses of the held calls
}

// reply is a child's message after the brief and after every command.
type reply struct {
	Error    string   `json:"error,omitempty"`
	Endpoint string   `json:"endpoint,omitempty"` // in the reply to the brief: the address of a process that listens
	Outcome  *outcome `json:"outcome,omitempty"`
	Usage    usage    `json:"usage"`
}

// endTimeout bounds the clean end of a process.
const endTimeout = 5 * time.Second

// serveChild runs a child process from its brief to the end of its input.
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
