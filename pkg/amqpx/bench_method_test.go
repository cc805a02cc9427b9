package amqpx

import (
	"context"
	"encoding/json"
	"testing"
)

// benchDocument is the request and the response of typed calls, as in the module bench.
type benchDocument struct {
	Body string `json:"body"`
}

// BenchmarkMethod compares typed calls with JSON and calls with the same bytes, from 64 goroutines
// for each processor, in batches.
func BenchmarkMethod(b *testing.B) {
	m := NewMethod[benchDocument, benchDocument]("json", JSON())
	answer := func(context.Context, benchDocument) (benchDocument, error) { return benchDocument{"b"}, nil }
	c := benchClient(b, BatchAuto, func(s *Server) error { return m.Handle(s, answer) }, func(s *Server) error {
		return s.Handle("raw", func(context.Context, *Request) ([]byte, error) { return []byte(`{"body":"b"}`), nil })
	})
	body := []byte(`{"body":"request"}`)
	for name, call := range map[string]func() error{
		"raw": func() error {
			_, err := c.Call(b.Context(), "raw", body)
			return err
		},
		"JSON": func() error {
			_, err := m.Call(b.Context(), c, benchDocument{"request"})
			return err
		},
	} {
		b.Run(name, func(b *testing.B) { benchParallel(b, 64, call) })
	}
}

// BenchmarkJSON measures the codec's part of a typed call: the request and the response are encoded
// and decoded. The standard library does the same beside it.
func BenchmarkJSON(b *testing.B) {
	type codec struct {
		marshal   func(any) ([]byte, error)
		unmarshal func([]byte, any) error
	}
	for name, c := range map[string]codec{
		"codec":         {JSON().Marshal, JSON().Unmarshal},
		"strict codec":  {StrictJSON().Marshal, StrictJSON().Unmarshal},
		"encoding/json": {json.Marshal, json.Unmarshal},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for _, text := range []string{"request", "b"} {
					body, err := c.marshal(benchDocument{text})
					if err != nil {
						b.Fatal(err)
					}
					var got benchDocument
					if err := c.unmarshal(body, &got); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
