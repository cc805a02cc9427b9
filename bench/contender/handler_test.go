package contender

import (
	"context"
	"testing"
)

func TestHandler(t *testing.T) {
	t.Parallel()
	h := NewHandler(0)
	for _, tt := range []struct{ method, body, want string }{
		{MethodQuick, RequestBody, ResponseBody},
		{MethodQuick, "other", ""},
		{MethodEcho, "other", "other"},
		{"unknown", RequestBody, ""},
	} {
		got, err := h.Answer(t.Context(), tt.method, []byte(tt.body))
		if string(got) != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s of %q: %q, %v, want %q", tt.method, tt.body, got, err, tt.want)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Answer(ended, MethodHold, []byte(RequestBody)); err == nil {
		t.Error("a held call was answered before its release")
	}
	h.Release()
	h.Release()
	if got, err := h.Answer(t.Context(), MethodHold, []byte(RequestBody)); string(got) != ResponseBody {
		t.Errorf("released: %q, %v", got, err)
	}
}
