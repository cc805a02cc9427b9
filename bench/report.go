package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/bench/document"
	"rabbitmq-rpc/bench/experiment"
	"rabbitmq-rpc/bench/model"
)

// Report is the result of a run.
type Report struct {
	Machine  Machine
	Command  string
	Rounds   int
	Duration time.Duration // of one turn
	Sections []*experiment.Section
	Settings []Setting
}

// Setting describes the configuration of a contender in a line.
type Setting struct{ Contender, Text string }

func newReport(o options, args []string) *Report {
	r := &Report{Command: commandOf(args), Rounds: o.Rounds, Duration: o.Duration}
	for _, label := range o.Contenders {
		name, _ := experiment.SplitLabel(label)
		if e, err := contender.Find(name); err == nil {
			r.Settings = append(r.Settings, Setting{label, e.Settings()})
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

// Markdown renders the report with some of its sections, and the settings of their contenders.
func (r *Report) Markdown(sections []*experiment.Section) string {
	var b strings.Builder
	m := r.Machine
	fmt.Fprintf(&b, "Machine: %s\n\n", join(", ", m.CPU, fmt.Sprintf("%d cores", m.Cores), m.OS, m.Go, m.Broker, prefixed("load before ", m.Load)))
	if m.Modules != "" {
		fmt.Fprintf(&b, "Libraries: %s\n\n", m.Modules)
	}
	fmt.Fprintf(&b, "Command: `%s`\n\n", r.Command)
	fmt.Fprintf(&b, "%d rounds after a warm-up, contenders in turn, in an order drawn for each round, %v each; client and servers of a contender are processes of their own. "+
		"Figures are medians over the rounds, with (lowest–highest); ratios are taken within a round. Every response is checked.\n", r.Rounds, r.Duration)
	for _, s := range sections {
		b.WriteString(s.Markdown())
	}
	b.WriteString("\n## Settings\n\n")
	for _, line := range r.Settings {
		if slices.ContainsFunc(sections, func(s *experiment.Section) bool { return s.TakesPart(line.Contender) }) {
			fmt.Fprintf(&b, "- %s: %s.\n", line.Contender, line.Text)
		}
	}
	b.WriteString(experiment.Goals(r.ofResults()))
	return b.String()
}

// ofResults returns the sections that have no file of their own.
func (r *Report) ofResults() []*experiment.Section {
	return slices.DeleteFunc(slices.Clone(r.Sections), func(s *experiment.Section) bool { return s.File() != "" })
}

// publish writes the report to w and, if dir is not empty, the report and the plots to this
// directory. A section with a file of its own goes there and not into results.md; its blocks go
// into performance.md in the directory above, if that file has them.
func (r *Report) publish(w io.Writer, dir string) error {
	if len(r.Sections) == 0 {
		return nil
	}
	text := r.Markdown(r.Sections)
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
	for _, s := range r.Sections {
		if err := r.publishOwn(s, dir); err != nil {
			return err
		}
	}
	if len(r.ofResults()) == 0 {
		return nil
	}
	return writeFile(filepath.Join(dir, "results.md"), []byte("# Results\n\n"+r.Markdown(r.ofResults())))
}

// publishOwn writes the files of a section with files of its own.
func (r *Report) publishOwn(s *experiment.Section, dir string) error {
	if s.File() == "" || s.Cut {
		return nil
	}
	if m, ok := s.Measured(); ok {
		m.Machine = join(", ", r.Machine.CPU, fmt.Sprintf("%d cores", r.Machine.Cores), r.Machine.OS, r.Machine.Go, r.Machine.Broker)
		return m.Append(filepath.Join(dir, s.File()+".json"))
	}
	blocks, measurement, err := s.Documents()
	if err != nil {
		return err
	}
	own := filepath.Join(dir, s.File())
	text := "# " + strings.ToUpper(s.File()[:1]) + s.File()[1:] + "\n\n" + r.Markdown([]*experiment.Section{s})
	if len(measurement) > 0 {
		err = writeFile(own+".json", measurement)
	}
	if err = errors.Join(err, writeFile(own+".md", []byte(text))); err != nil {
		return err
	}
	return replaceBlocks(filepath.Join(filepath.Dir(filepath.Clean(dir)), "performance.md"), blocks)
}

// replaceBlocks replaces blocks of a document; it does nothing without the document, or without a
// block.
func replaceBlocks(file string, blocks map[string]string) error {
	content, err := os.ReadFile(file) //nolint:gosec // beside the directory that the user of this tool named.
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	text := string(content)
	for name, block := range blocks {
		text, _ = document.Replace(text, name, block)
	}
	return writeFile(file, []byte(text))
}

// renderModel prints the tables of the model, from the measurement of an earlier run, and writes
// them into the documents of the directory out, if it is not empty.
func renderModel(w io.Writer, file, out string) error {
	g, err := model.Read(file)
	if err != nil {
		return err
	}
	all, summary, err := g.Markdown()
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, all); err != nil || out == "" {
		return err
	}
	return errors.Join(
		replaceBlocks(filepath.Join(out, "growth.md"), map[string]string{experiment.ModelBlock: all}),
		replaceBlocks(filepath.Join(filepath.Dir(filepath.Clean(out)), "performance.md"), map[string]string{experiment.ModelBlock: summary}),
	)
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
