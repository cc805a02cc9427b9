// Package version tells which build of the services this is.
package version

import "runtime/debug"

// stamped is what the build was told its version is:
//
//	go build -ldflags "-X rabbitmq-rpc/internal/version.stamped=v1.2.3"
//
//nolint:gochecknoglobals // the linker writes only to package variables.
var stamped string

// unknown is what a build says of itself that was told nothing.
const unknown = "unknown"

// Build is what a program knows of its own build; "unknown" stands for what it does not.
type Build struct {
	// Version is what the build was told, else the module's version, which is "(devel)"
	// for one that was built from a working copy.
	Version string
	// Revision is the commit, if the build saw the repository.
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
