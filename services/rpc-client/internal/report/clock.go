package report

import "time"

// clock formats a time for people, in UTC.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000 UTC") }

// iso formats a time as in report.json.
func iso(t time.Time) string { return t.Format(time.RFC3339Nano) }
