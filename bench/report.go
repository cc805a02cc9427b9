package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/bench/experiment"
)

// Report is the result of a run.
type Report struct {
	Machine  Machine
	Command  string
	Rounds   int
	Duration time.Duration // of one turn
	Sections []*experiment.Section
	Settings []string // one line for each contender
}

func newReport(o options, args []string) *Report {
	r := &Report{Command: commandOf(args), Rounds: o.Rounds, Duration: o.Duration}
	for _, label := range o.Contenders {
		name, _ := experiment.SplitLabel(label)
		if e, err := contender.Find(name); err == nil {
			r.Settings = append(r.Settings, fmt.Sprintf("%s: %s.", label, e.Settings()))
		}
	}
	return r
}

// commandOf returns the command to repeat a run with these arguments. The broker's URL is
// omitted, because it may contain a password and differs between machines.
func commandOf(args []string) string {
	var kept []string
	for i := 0; i < len(args); i++ {
		name, _, hasValue := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		if name != "url" {
			kept = append(kept, args[i])
		} else if !hasValue {
			i++
		}
	}
	if len(kept) == 0 {
		return "make bench"
	}
	return fmt.Sprintf("make bench BENCHFLAGS='%s'", strings.Join(kept, " "))
}

// Markdown renders the report.
func (r *Report) Markdown() string {
	var b strings.Builder
	m := r.Machine
	fmt.Fprintf(&b, "Machine: %s\n\n", join(", ", m.CPU, fmt.Sprintf("%d cores", m.Cores), m.OS, m.Go, m.Broker, prefixed("load before ", m.Load)))
	if m.Modules != "" {
		fmt.Fprintf(&b, "Libraries: %s\n\n", m.Modules)
	}
	fmt.Fprintf(&b, "Command: `%s`\n\n", r.Command)
	fmt.Fprintf(&b, "%d rounds after a warm-up, contenders in turn, %v each; client and servers of a contender are processes of their own. "+
		"Figures are medians over the rounds, with (lowest–highest); ratios are taken within a round. Every response is checked.\n", r.Rounds, r.Duration)
	for _, s := range r.Sections {
		b.WriteString(s.Markdown())
	}
	b.WriteString("\n## Settings\n\n")
	for _, line := range r.Settings {
		fmt.Fprintf(&b, "- %s\n", line)
	}
	b.WriteString(experiment.Goals(r.Sections))
	return b.String()
}

// publish writes the report to w and, if dir is not empty, the report and the plots to this
// directory.
func (r *Report) publish(w io.Writer, dir string) error {
	if len(r.Sections) == 0 {
		return nil
	}
	text := r.Markdown()
	if _, err := io.WriteString(w, text); err != nil || dir == "" {
		return err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	for _, s := range r.Sections {
		plots, err := s.Plots()
		if err != nil {
			return err
		}
		for file, svg := range plots {
			if err := writeFile(filepath.Join(dir, file), svg); err != nil {
				return err
			}
		}
	}
	return writeFile(filepath.Join(dir, "results.md"), []byte("# Results\n\n"+text))
}

// writeFile creates a file with the default permissions, readable by other users.
func writeFile(name string, content []byte) error {
	f, err := os.Create(name) //nolint:gosec // the user of this tool named the directory.
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Close())
}

// join joins the non-empty parts.
func join(sep string, parts ...string) string {
	var kept []string
	for _, p := range parts {
		if p != "" {
			kept = append(kept, p)
		}
	}
	return strings.Join(kept, sep)
}

// prefixed returns text with the prefix, or "" if text is empty.
func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}
