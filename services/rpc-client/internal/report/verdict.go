package report

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// verdict is the top of the page.
type verdict struct {
	// Mood is good, bad or none, a class of the style sheet.
	Mood     string
	Headline string
	Notes    []string
}

func (r *Report) verdict() verdict {
	v := verdict{Mood: "good", Headline: "Passed: every call got the expected response"}
	switch {
	case r.Calls == 0:
		v = verdict{Mood: "none", Headline: "No call was made"}
	case r.Err() != nil:
		v = verdict{Mood: "bad", Headline: fmt.Sprintf("Failed: %s of %s calls did not get the expected response",
			grouped(r.Calls-r.OK), grouped(r.Calls))}
	}
	if r.Interrupted {
		v.Notes = append(v.Notes, "A signal ended the run early, after "+r.progress(grouped[int64])+". What was under way then was waited for.")
	}
	if r.GivenUp {
		v.Notes = append(v.Notes, "The run ended early, after "+r.progress(grouped[int64])+": "+nobodyServes+". The calls that were not tried are not among the errors.")
	}
	if r.Lost > 0 {
		v.Notes = append(v.Notes, "Lost calls never settled, neither with a result nor with an error. That is a fault of the library.")
	}
	if r.Rate != nil {
		v.Notes = append(v.Notes, r.Rate.note())
	}
	return v
}

// Progress returns the completed part of the planned run, in words.
func (r *Report) Progress() string { return r.progress(func(n int64) string { return fmt.Sprint(n) }) }

func (r *Report) progress(write func(int64) string) string {
	text := write(r.Calls)
	if r.PlannedCalls > 0 {
		text += " of " + write(r.PlannedCalls)
	}
	text += " calls"
	if r.PlannedSeconds > 0 {
		text += fmt.Sprintf(" and %.1f of %v seconds", r.Seconds, r.PlannedSeconds)
	}
	return text
}

// note says in words whether the rate was kept.
func (r *Rate) note() string {
	if r.KeptUp {
		return fmt.Sprintf("Calls began at the rate that was asked for, %v a second. Their latencies count from the moment they were due.", r.Asked)
	}
	text := fmt.Sprintf("The rate was not kept: %v calls a second were asked for, %v began.", r.Asked, r.Achieved)
	if r.NotBegun > 0 {
		text += fmt.Sprintf(" %s calls were due and had not begun when the run ended; their waiting is in no figure below.", grouped(r.NotBegun))
	}
	return text + " The server, the broker or this client is too slow for it."
}

// term is a part of the sum of all calls.
type term struct {
	Field string
	Count int64
	Words string
	Bad   bool
}

// terms returns ok, the errors by code, and lost; the sum is the number of calls.
func (r *Report) terms() []term {
	all := []term{{Field: "ok", Count: r.OK, Words: "ok"}}
	for _, code := range slices.Sorted(maps.Keys(r.Errors)) {
		all = append(all, term{Field: "errors." + code, Count: r.Errors[code], Words: code, Bad: true})
	}
	if len(r.Errors) == 0 {
		all = append(all, term{Field: "errors", Words: "errors"})
	}
	return append(all, term{Field: "lost", Count: r.Lost, Words: "lost", Bad: r.Lost > 0})
}

// grouped formats a number with commas between thousands.
func grouped[N int | int64 | uint64](n N) string {
	digits := fmt.Sprint(n)
	sign := ""
	if strings.HasPrefix(digits, "-") {
		sign, digits = "-", digits[1:]
	}
	for at := len(digits) - 3; at > 0; at -= 3 {
		digits = digits[:at] + "," + digits[at:]
	}
	return sign + digits
}
