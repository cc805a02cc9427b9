// Package config fills a service's settings from the environment and reports
// every fault at once.
//
// Settings are plain structs with envconfig's tags (envconfig, default) and five
// of this package's own:
//
//	min, max   bounds of a number or a duration, both inclusive
//	oneof      the words allowed, separated by spaces
//	maxlen     the longest text allowed, in bytes
//	empty      "ok": a variable that is set but empty is no fault
//	url        "ok": the text may hold a URL; in any other it is a fault
//
// envconfig alone stops at the first value it cannot read, quotes it whatever it
// holds, and takes a set-but-empty text for a value. [Load] therefore hands it one
// field at a time and judges each result by itself.
package config
