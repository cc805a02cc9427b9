package amqpx

import (
	"testing"

	"github.com/google/uuid"
)

func TestIDsAreRandomUUIDs(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for range 10_000 {
		text := newID()
		id, err := uuid.Parse(text)
		if err != nil || id.Version() != 4 || id.Variant() != uuid.RFC4122 {
			t.Fatalf("%q is no UUID of version 4: %v", text, err)
		}
		if seen[text] {
			t.Fatalf("%q twice", text)
		}
		seen[text] = true
	}
}
