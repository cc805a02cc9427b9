package process

import (
	"context"
	"encoding/json"
	"errors"
	"io"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/internal/loadgen"
)

// lines are the commands to a child and its replies.
type lines struct {
	commands *json.Decoder
	replies  *json.Encoder
	usage    func() (Usage, error)
}

// servingChild runs serve until the commands end.
func servingChild(ctx context.Context, serve func(ctx context.Context, ready func(string)) error, l lines, release func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ready, served := make(chan string, 1), make(chan error, 1)
	go func() { served <- serve(ctx, func(endpoint string) { ready <- endpoint }) }() // awaited below
	var endpoint string
	select {
	case endpoint = <-ready:
	case err := <-served:
		return errors.Join(errors.New("the server ended early"), err)
	}
	listened := make(chan error, 1)
	go func() { // ends with the input or with the process
		listened <- l.serve(endpoint, func(cmd command) (*Outcome, error) {
			if cmd.Release {
				release()
			}
			return nil, nil
		})
	}()
	select {
	case err := <-listened:
		cancel()
		return errors.Join(err, <-served)
	case err := <-served:
		return errors.Join(errors.New("the server ended early"), err)
	}
}

// clientChild dials the contender's server and executes commands until the input ends.
func clientChild(ctx context.Context, c contender.Native, env contender.Environment, l lines) error {
	under, err := c.Dial(ctx, env)
	if err != nil {
		return err
	}
	var calls *held
	err = l.serve("", func(cmd command) (_ *Outcome, err error) {
		var o Outcome
		switch {
		case cmd.Turn != nil:
			o, err = drive(ctx, under, *cmd.Turn, loadgen.NewPacer())
		case cmd.Hold > 0:
			calls, err = holdCalls(ctx, under, cmd.Hold, env.Async)
		case cmd.Settle && calls != nil:
			o, err = calls.settle(ctx)
		}
		return &o, err
	})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), contender.EndTimeout)
	defer cancel()
	return errors.Join(err, under.Close(ctx))
}

// serve reports that the process is ready, then executes each command with do and
// replies with the outcome and the usage so far.
func (l lines) serve(endpoint string, do func(command) (*Outcome, error)) error {
	if err := l.replies.Encode(reply{Endpoint: endpoint}); err != nil {
		return err
	}
	for {
		var cmd command
		if err := l.commands.Decode(&cmd); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		o, fault := do(cmd)
		u, err := l.usage()
		r := reply{Outcome: o, Usage: u}
		if fault != nil {
			r.Error = fault.Error()
		}
		if err := errors.Join(err, l.replies.Encode(r)); err != nil {
			return err
		}
	}
}
