package lifecycle

import "fmt"

// Command is what a service was asked to do.
type Command string

const (
	// CommandServe is the service's work; it has no argument.
	CommandServe Command = ""
	// CommandHealthcheck asks the running service how it is.
	CommandHealthcheck Command = "healthcheck"
	// CommandCheck reads the settings and ends: with an error that names what is wrong
	// with them, if anything is.
	CommandCheck Command = "check"
	// CommandHelp prints the usage.
	CommandHelp Command = "help"
)

// ParseArgs reads a service's arguments, without the program's name. There is at
// most one; settings come from the environment only.
func ParseArgs(args []string) (Command, error) {
	if len(args) == 0 {
		return CommandServe, nil
	}
	if len(args) == 1 {
		switch args[0] {
		case "healthcheck":
			return CommandHealthcheck, nil
		case "check":
			return CommandCheck, nil
		case "help", "-h", "-help", "--help":
			return CommandHelp, nil
		}
	}
	return "", ConfigError(fmt.Errorf("unknown arguments %q: want none, check, healthcheck or help", args))
}
