package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/pprof"

	"rabbitmq-rpc/bench/contender"
)

// ChildArg as the only argument makes this program a process of a contender. The process reads
// a configuration and then commands as JSON lines, and sends a JSON reply for each line. The
// end of the input ends the process, so a child never outlives the benchmark. Builds of other
// revisions use the same lines.
const ChildArg = "child"

// childConfig configures a child process.
type childConfig struct {
	Role       contender.Role        `json:"role"`
	Contender  string                `json:"contender"`
	Env        contender.Environment `json:"env"`
	CPUProfile string                `json:"cpu_profile,omitempty"` // a file
}

// command is a task for a child process. Without any field set it only requests the usage so
// far.
type command struct {
	Turn    *Turn `json:"turn,omitempty"`
	Hold    int   `json:"hold,omitempty"`    // a client starts this many calls, which the server holds
	Release bool  `json:"release,omitempty"` // a server releases the held calls
	Settle  bool  `json:"settle,omitempty"`  // a client waits for the responses of the held calls
}

// reply is a child's message after the configuration and after every command.
type reply struct {
	Error    string   `json:"error,omitempty"`
	Endpoint string   `json:"endpoint,omitempty"` // in the first reply: the address of a process that listens
	Outcome  *Outcome `json:"outcome,omitempty"`
	Usage    Usage    `json:"usage"`
}

// ServeChild runs a child process from its configuration to the end of its input.
func ServeChild(ctx context.Context, in io.Reader, out io.Writer) error {
	commands := json.NewDecoder(in)
	replies := json.NewEncoder(out)
	var b childConfig
	if err := commands.Decode(&b); err != nil {
		return fmt.Errorf("no configuration: %w", err)
	}
	e, err := contender.Find(b.Contender)
	if err != nil {
		return err
	}
	stop, err := startProfile(b.CPUProfile)
	if err != nil {
		return err
	}
	defer stop()
	c, ok := e.Contender.(contender.Native)
	if !ok {
		return fmt.Errorf("%s is another program", b.Contender)
	}
	usage := used
	if m, ok := e.Contender.(contender.Meter); ok {
		usage = func() (Usage, error) { return usedBy(m) }
	}
	l := lines{commands, replies, usage}
	switch b.Role {
	case contender.RoleServer:
		h := contender.NewHandler(b.Env.Sleep)
		serve := func(ctx context.Context, ready func(string)) error { return c.Serve(ctx, b.Env, h, ready) }
		return servingChild(ctx, serve, l, h.Release)
	case contender.RoleBroker:
		own, ok := e.Contender.(contender.Brokered)
		if !ok {
			return fmt.Errorf("%s has no broker of its own", b.Contender)
		}
		return servingChild(ctx, own.Broker, l, func() {})
	case contender.RoleClient:
		return clientChild(ctx, c, b.Env, l)
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
