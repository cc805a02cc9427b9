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
)

// brief tells a child what it is.
type brief struct {
	Role       role        `json:"role"`
	Contender  string      `json:"contender"`
	Env        environment `json:"env"`
	CPUProfile string      `json:"cpu_profile,omitempty"` // a file
}

// command asks for a turn, or, without one, for the usage so far.
type command struct {
	Turn *turn `json:"turn,omitempty"`
}

// reply answers the brief and every command.
type reply struct {
	Error   string   `json:"error,omitempty"`
	Outcome *outcome `json:"outcome,omitempty"`
	Usage   usage    `json:"usage"`
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
	c, err := findContender(b.Contender)
	if err != nil {
		return err
	}
	stop, err := startProfile(b.CPUProfile)
	if err != nil {
		return err
	}
	defer stop()
	if b.Role == roleServer {
		return serverChild(ctx, c, b.Env, commands, replies)
	}
	return clientChild(ctx, c, b.Env, commands, replies)
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

// serverChild answers calls until the commands end.
func serverChild(ctx context.Context, c contender, env environment, commands *json.Decoder, replies *json.Encoder) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ready, served := make(chan struct{}), make(chan error, 1)
	go func() { served <- c.serve(ctx, env, func() { close(ready) }) }() // awaited below
	select {
	case <-ready:
	case err := <-served:
		return errors.Join(errors.New("the server ended early"), err)
	}
	listened := make(chan error, 1)
	go func() { // ends when the input does, or with the process
		listened <- obey(commands, replies, func(command) (*outcome, error) { return nil, nil })
	}()
	select {
	case err := <-listened:
		cancel()
		return errors.Join(err, <-served)
	case err := <-served:
		return errors.Join(errors.New("the server ended early"), err)
	}
}

// clientChild runs turns until the commands end.
func clientChild(ctx context.Context, c contender, env environment, commands *json.Decoder, replies *json.Encoder) error {
	caller, err := c.dial(ctx, env)
	if err != nil {
		return err
	}
	err = obey(commands, replies, func(cmd command) (*outcome, error) {
		if cmd.Turn == nil {
			return nil, nil
		}
		o, err := drive(ctx, caller, *cmd.Turn)
		return &o, err
	})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	return errors.Join(err, caller.close(ctx))
}

// obey says that this side is ready and then does what it is told.
func obey(commands *json.Decoder, replies *json.Encoder, do func(command) (*outcome, error)) error {
	if err := replies.Encode(reply{}); err != nil {
		return err
	}
	for {
		var cmd command
		if err := commands.Decode(&cmd); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		o, fault := do(cmd)
		u, err := used()
		r := reply{Outcome: o, Usage: u}
		if fault != nil {
			r.Error = fault.Error()
		}
		if err := errors.Join(err, replies.Encode(r)); err != nil {
			return err
		}
	}
}
