package amqpx

import (
	"encoding/base64"
	"testing"
)

func TestSafeReplyTo(t *testing.T) {
	t.Parallel()
	process := func(term string) string {
		return directReplyTo + "." + base64.StdEncoding.EncodeToString([]byte(term)) + "."
	}
	const tail = "\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03"
	for replyTo, want := range map[string]bool{
		"queue":     true,
		"":          true,
		"amq.gen-x": true,
		process("\x83\x58\x77\x01a"+tail) + "key==":      true,
		process("\x83\x58\x64\x00\x01a"+tail) + "key":    true,
		process("\x83\x67\x73\x01a"+tail[:9]) + "key":    true,
		process("\x83\x58\x77\x01a" + tail):              false,
		process("\x83\x58\x77\x01a"+tail) + "a.b":        false,
		process("\x83\x58\x77\x01a"+tail+"\x00") + "key": false,
		process("\x83\x58\x77\xffa"+tail) + "key":        false,
		process("\x83\x58\x76\x00") + "key":              false,
		process("\x83\x61\x01\x00\x00") + "key":          false,
		process("\x00\x58\x77\x01a"+tail) + "key":        false,
		process("") + "key":                              false,
		directReplyTo:                                    true,
		directReplyTo + ".":                              false,
		directReplyTo + ".garbage":                       false,
		directReplyTo + ".g1h2!!.~~":                     false,
		directReplyTo + "s":                              false,
	} {
		if got := safeReplyTo(replyTo); got != want {
			t.Errorf("%q: got %v, want %v", replyTo, got, want)
		}
	}
}
