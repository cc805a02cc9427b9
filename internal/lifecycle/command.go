package lifecycle

import "fmt"

// Command is the command of a service's command line.
type Command string

const (
	// CommandServe runs the service; this command has no argument.
	CommandServe Command = ""
	// CommandHealthcheck queries the readiness of the running service.
	CommandHealthcheck Command = "healthcheck"
	// CommandCheck reads the settings and exits, with an error that names all faults.
	CommandCheck Command = "check"
	// CommandHelp prints the usage.
	CommandHelp Command = "help"
)

// ParseArgs parses a service's arguments, without the program's name. At most one argument is
// allowed; settings come from the environment only.
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
