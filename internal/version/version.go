// Package version identifies the build of the services.
package version

import "runtime/debug"

// stamped is the version passed to the build:
//
//	go build -ldflags "-X rabbitmq-rpc/internal/version.stamped=v1.2.3"
//
//nolint:gochecknoglobals // the linker writes only to package variables.
var stamped string

// unknown replaces values that the build does not know.
const unknown = "unknown"

// Build describes a program's own build; unknown values are "unknown".
type Build struct {
	// Version is the version passed to the build, else the module's version, which is
	// "(devel)" for a build from a working copy.
	Version string
	// Revision is the commit, if the build had access to the repository.
	Revision string
}

// Of returns this program's build.
func Of() Build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return of(info, stamped)
}

func of(info *debug.BuildInfo, told string) Build {
	b := Build{Version: told, Revision: unknown}
	if b.Version == "" {
		b.Version = info.Main.Version
	}
	if b.Version == "" {
		b.Version = unknown
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && s.Value != "" {
			b.Revision = s.Value
		}
	}
	return b
}
