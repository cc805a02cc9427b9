//go:build hostile

package hostile

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"rabbitmq-rpc/test/internal/rig"
)

// settings holds the flags of the test binary.
type settings struct {
	lasts    time.Duration
	out      string
	programs string // folder of the built programs
	began    bool   // a test has started, so -run matches a test
}

// set is written by TestMain before any test, and by TestHostileInputs, the only test.
//
//nolint:gochecknoglobals // flags are the process's own.
var set settings

func TestMain(m *testing.M) {
	flag.DurationVar(&set.lasts, "for", 10*time.Second, "how long each input is sent")
	flag.StringVar(&set.out, "out", "", "folder for the table")
	flag.Parse()
	dir, err := os.MkdirTemp("", "hostile")
	if err == nil {
		set.programs = dir
		err = build("./hostile/server", "../services/rpc-server")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		_ = os.RemoveAll(dir)
		os.Exit(1)
	}
	rig.AtEnd(func(code int) int {
		_ = os.RemoveAll(dir)
		if code == 0 && !set.began {
			fmt.Fprintf(os.Stderr, "-run %s matches no test\n", flag.Lookup("test.run").Value)
			return 1
		}
		return code
	})
	rig.Main(m)
}

// build compiles programs, each in the folder of its module.
func build(programs ...string) error {
	for _, program := range programs {
		cmd := exec.Command("go", "build", "-o", filepath.Join(set.programs, filepath.Base(program)), ".") //nolint:noctx // before any test.
		cmd.Dir = filepath.Join("..", program)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", program, err, out)
		}
	}
	return nil
}
