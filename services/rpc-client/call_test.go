package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
)

func TestCallPrintsTheResponse(t *testing.T) {
	t.Parallel()
	for _, body := range []string{"", "b", "two\nlines", "\x00\xff"} {
		c := &fake{response: func(context.Context, int64) ([]byte, error) { return []byte(body), nil }}
		var out bytes.Buffer
		if err := callOnce(t.Context(), c, plan(1000, 8), &out); err != nil || out.String() != body || c.calls.Load() != 1 {
			t.Errorf("%v: %q in %d calls, want %q in one", err, out.String(), c.calls.Load(), body)
		}
	}
}

func TestCallThatFails(t *testing.T) {
	t.Parallel()
	refused := amqpx.Errorf(amqpx.CodeNotFound, "no such order")
	c := &fake{response: func(context.Context, int64) ([]byte, error) { return nil, refused }}
	var out bytes.Buffer
	if err := callOnce(t.Context(), c, plan(1, 1), &out); !errors.Is(err, refused) || !strings.HasSuffix(err.Error(), "no such order (ran)") || out.Len() > 0 {
		t.Errorf("%v with the output %q, want the error of the call", err, out.String())
	}
}

// deafWriter is an output that nobody reads.
type deafWriter struct{}

func (deafWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestCallWhoseOutputNobodyReads(t *testing.T) {
	t.Parallel()
	if err := callOnce(t.Context(), &fake{response: good}, plan(1, 1), deafWriter{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%v, want the error of the output", err)
	}
}
