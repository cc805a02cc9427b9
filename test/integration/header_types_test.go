//go:build integration

package integration

import (
	"context"
	"fmt"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// color is an application's own type.
type color string

// TestHeadersOfGoTypes: headers of ordinary Go types arrive as types that need no other
// package.
func TestHeadersOfGoTypes(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	r.Serve(rig.Methods{"header": func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		return fmt.Appendf(nil, "%#v", req.Header["h"]), nil
	}})
	client := r.Ready()
	for want, value := range map[string]any{
		`"red"`:                    color("red"),
		`7`:                        uint(7),
		`1099511627776`:            1 << 40,
		`[]interface {}{"x", "y"}`: []string{"x", "y"},
		`[]byte{0x7f}`:             []byte{127},
		`time.Date(2023, time.November, 14, 22, 13, 20, 0, time.UTC)`:   time.Unix(1_700_000_000, 0),
		`map[string]interface {}{"x":map[string]interface {}{"y":1.5}}`: map[string]any{"x": map[color]float64{"y": 1.5}},
	} {
		got, err := client.Call(rig.Patience(t), "header", nil, amqpx.WithHeader(map[string]any{"h": value}))
		if err != nil || (string(got) != want && !isMoment(value)) {
			t.Errorf("%#v arrived as %s, error %v, want %s", value, got, err, want)
		}
	}
	_, err := client.Call(rig.Patience(t), "header", nil, amqpx.WithHeader(map[string]any{"h": new(int)}))
	if amqpx.CodeOf(err) != amqpx.CodeInvalidArgument || amqpx.OutcomeOf(err) != amqpx.DidNotRun {
		t.Errorf("a pointer: error %v", err)
	}
}

// isMoment reports whether v is a time, which is printed in the machine's time zone.
func isMoment(v any) bool { _, ok := v.(time.Time); return ok }
