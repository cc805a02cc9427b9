package document

import "testing"

func TestReplace(t *testing.T) {
	t.Parallel()
	document := "before\n" + Block("a", "old") + "between\n" + Block("b", "kept") + "after\n"
	got, ok := Replace(document, "a", "new\ntext")
	if want := "before\n" + Block("a", "new\ntext") + "between\n" + Block("b", "kept") + "after\n"; !ok || got != want {
		t.Errorf("%v: %s", ok, got)
	}
	if got, ok := Replace(document, "c", "new"); ok || got != document {
		t.Errorf("a block that is missing: %v: %s", ok, got)
	}
}
