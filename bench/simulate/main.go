// Simulate reads the measured curves of docs/scaling.md, fits the capacity formula and the
// simulation to some of their points, compares both with all points, and simulates the loads for
// which there is no machine. It prints the blocks of the document, and with -out writes them.
//
// Exit code: 0, 1 after an error, 2 for bad arguments.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"rabbitmq-rpc/bench/document"
	"rabbitmq-rpc/bench/model"
	"rabbitmq-rpc/bench/scaling"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "simulate:", err)
		if errors.Is(err, errUsage) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

var errUsage = errors.New("bad arguments")

func run(args []string, w io.Writer) error {
	fs := flag.NewFlagSet("simulate", flag.ContinueOnError)
	measured := fs.String("measured", "../docs/performance/scaling.json", "`file` with the measured curves")
	growth := fs.String("growth", "../docs/performance/growth.json", "`file` of the experiment growth, with the parts of the processes")
	out := fs.String("out", "", "write the blocks into this `file` as well: docs/scaling.md")
	plan := fs.Bool("plan", true, "simulate the loads that were not measured, which takes minutes")
	if err := fs.Parse(args); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	m, err := scaling.Read(*measured)
	if err != nil {
		return err
	}
	g, err := model.Read(*growth)
	if err != nil {
		return err
	}
	d, err := scaling.NewDocument(m, g.Parts)
	if err != nil {
		return err
	}
	blocks := d.Blocks()
	if *plan {
		var plans []scaling.Plan
		for _, s := range scaling.Scenarios() {
			plans = append(plans, d.Capacity.Plan(s))
		}
		blocks[scaling.BlockPlan] = d.Capacity.PlanTable(plans)
	}
	for _, name := range slices.Sorted(maps.Keys(blocks)) {
		if _, err := fmt.Fprintf(w, "## %s\n%s\n", name, blocks[name]); err != nil {
			return err
		}
	}
	if *out == "" {
		return nil
	}
	return write(*out, blocks)
}

// write replaces the blocks of a document.
func write(file string, blocks map[string]string) error {
	content, err := os.ReadFile(file) //nolint:gosec // the user of this tool named it.
	if err != nil {
		return err
	}
	text := string(content)
	for name, block := range blocks {
		var ok bool
		if text, ok = document.Replace(text, name, block); !ok {
			return fmt.Errorf("%s has no block %q", file, name)
		}
	}
	return os.WriteFile(file, []byte(text), 0o644) //nolint:gosec // a document.
}
