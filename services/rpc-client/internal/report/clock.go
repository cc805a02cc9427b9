package report

import "time"

// clock writes a moment for people, in UTC.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000 UTC") }

// iso writes a moment as report.json has it.
func iso(t time.Time) string { return t.Format(time.RFC3339Nano) }
