//go:build fault

package fault

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/check"
	"rabbitmq-rpc/test/internal/rig"
)

// settings holds the flags of the test binary.
type settings struct {
	seed  uint64
	scale float64
	race  bool
	out   string
	soak  time.Duration
	bound time.Duration
	batch string
	node  string // the built program
}

// batchFlag is the name of a flag.
const batchFlag = "batch"

// set is written by TestMain, before any test.
//
//nolint:gochecknoglobals // flags are the process's own.
var set settings

func TestMain(m *testing.M) {
	flag.Uint64Var(&set.seed, "seed", 1, "what everything random is drawn from")
	flag.Float64Var(&set.scale, "scale", 1, "multiplies how long each scenario lasts")
	flag.BoolVar(&set.race, "nodes-race", false, "build the clients and servers with the race detector")
	flag.DurationVar(&set.bound, "bound", check.DefaultBound, "how long after its deadline a call may return")
	flag.StringVar(&set.batch, batchFlag, string(amqpx.BatchAuto), "whether calls may travel together: auto or off")
	flag.StringVar(&set.out, "out", "", "folder for the tables, and the ledgers and logs of what failed")
	flag.DurationVar(&set.soak, "soak", 30*time.Minute, "how long the soak lasts")
	flag.Parse()
	dir, err := os.MkdirTemp("", "fault")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	set.node = filepath.Join(dir, "node")
	if err := buildNode(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		_ = os.RemoveAll(dir)
		os.Exit(1)
	}
	rig.AtEnd(func(code int) int {
		_ = os.RemoveAll(dir)
		return code
	})
	rig.Main(m)
}

func buildNode() error {
	args := []string{"build", "-o", set.node}
	if set.race {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "./node")...).CombinedOutput() //nolint:noctx // before any test.
	if err != nil {
		return fmt.Errorf("build the node: %w\n%s", err, out)
	}
	return nil
}
