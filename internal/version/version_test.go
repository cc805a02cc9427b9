package version

import (
	"runtime/debug"
	"testing"
)

func TestBuild(t *testing.T) {
	t.Parallel()
	built := &debug.BuildInfo{
		Main:     debug.Module{Version: "(devel)"},
		Settings: []debug.BuildSetting{{Key: "vcs", Value: "git"}, {Key: "vcs.revision", Value: "abc"}},
	}
	for name, c := range map[string]struct {
		info *debug.BuildInfo
		told string
		want Build
	}{
		"told nothing":       {&debug.BuildInfo{}, "", Build{"unknown", "unknown"}},
		"from a repository":  {built, "", Build{"(devel)", "abc"}},
		"told its version":   {built, "v1", Build{"v1", "abc"}},
		"without repository": {&debug.BuildInfo{}, "v1", Build{"v1", "unknown"}},
	} {
		if got := of(c.info, c.told); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
	if Of().Version == "" {
		t.Error("a build without a version")
	}
}
