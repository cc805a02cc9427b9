// Package config fills a service's settings from the environment and reports all faults at
// once.
//
// Settings are plain structs with envconfig's tags (envconfig, default) and five tags of this
// package:
//
//	min, max   bounds of a number or a duration, both inclusive
//	oneof      the words allowed, separated by spaces
//	maxlen     the longest text allowed, in bytes
//	empty      "ok": a variable that is set but empty is no fault
//	url        "ok": the text may hold a URL; in any other text a URL is a fault
//
// envconfig alone stops at the first invalid value, quotes the value even if it is a secret,
// and accepts a variable that is set but empty. Therefore [Load] passes one field at a time to
// envconfig and checks each result separately.
package config
