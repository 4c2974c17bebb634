package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"orthanc-dicomweb-oauth/rules"
)

// usageError is a command line that cannot be understood.
type usageError struct{ what, hint string }

// Error implements error.
func (e *usageError) Error() string { return e.what }

// hintedError is a failure that comes with what to change.
type hintedError struct {
	error
	hint string
}

// Unwrap returns the failure.
func (e *hintedError) Unwrap() error { return e.error }

// finish gives the commands below a path what they have in common.
func finish(commands []*cli.Command, path string) {
	for _, c := range commands {
		c.HideHelpCommand = true // else "help" would be completed where arguments belong; there is --help
		full := strings.TrimSpace(path + " " + c.Name)
		c.OnUsageError = badFlag(full)
		if c.ArgsUsage == "" && c.Subcommands == nil {
			c.Action = withoutArguments(full, c.Action)
		}
		finish(c.Subcommands, full)
	}
}

// withoutArguments refuses arguments: whoever names a file there wants it to count.
func withoutArguments(path string, action cli.ActionFunc) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.NArg() > 0 {
			return &usageError{fmt.Sprintf("%s takes no argument %q", path, c.Args().First()), "such as: " + c.Command.UsageText}
		}
		return action(c)
	}
}

// flagsFirst moves the flags of a command before its arguments, where urfave/cli
// looks for them.
func flagsFirst(commands []*cli.Command, args []string) []string {
	var command *cli.Command
	n := 1
	for ; n < len(args); n++ {
		i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(args[n]) })
		if i < 0 {
			break
		}
		command, commands = commands[i], commands[i].Subcommands
	}
	if command == nil || command.Subcommands != nil || args[len(args)-1] == askToComplete {
		return args
	}
	takesValue := func(word string) bool {
		return !strings.Contains(word, "=") && slices.ContainsFunc(command.Flags, func(f cli.Flag) bool {
			_, isSwitch := f.(*cli.BoolFlag)
			return !isSwitch && slices.Contains(f.Names(), strings.TrimLeft(word, "-"))
		})
	}
	var flags, words []string
	rest := args[n:]
	for len(rest) > 0 && rest[0] != "--" {
		take := 1
		switch word := rest[0]; {
		case word == "-" || !strings.HasPrefix(word, "-"):
			words = append(words, word)
		case takesValue(word):
			if len(rest) == 1 {
				return slices.Concat(args[:n], flags, rest) // or an argument would become its value
			}
			take = 2
			fallthrough
		default:
			flags = append(flags, rest[:take]...)
		}
		rest = rest[take:]
	}
	return slices.Concat(args[:n], flags, words, rest)
}

// ofACommand reports whether any command has the flag.
func ofACommand(commands []*cli.Command, flag string) bool {
	return slices.ContainsFunc(commands, func(c *cli.Command) bool {
		return slices.ContainsFunc(c.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), flag) }) || ofACommand(c.Subcommands, flag)
	})
}

// badFlag is what a command says about a flag that it does not have.
func badFlag(command string) cli.OnUsageErrorFunc {
	return func(c *cli.Context, err error, _ bool) error {
		hint := "see " + strings.Join(strings.Fields(name+" "+command+" --help"), " ")
		if flag, unknown := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); unknown {
			candidates := []string{"--help"}
			for _, f := range c.Command.Flags {
				candidates = append(candidates, "--"+f.Names()[0])
			}
			hint = cmp.Or(rules.DidYouMean("--"+strings.TrimPrefix(flag, "-"), candidates), hint)
			if command == "" && slices.Contains([]string{"version", "v"}, strings.TrimLeft(flag, "-")) {
				hint = "the command is: " + name + " version"
			} else if command == "" && ofACommand(c.App.Commands, strings.TrimLeft(flag, "-")) {
				hint = "flags stand after the command, such as: " + name + " check --config gateway.toml"
			}
		} else if strings.HasPrefix(err.Error(), "invalid value ") { // a duration: all else is text, or on and off
			hint = "write it with a unit, such as 12s"
		}
		return &usageError{err.Error(), hint}
	}
}

// group is the action of a command that has nothing but commands: it shows its help.
func group(command string) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.NArg() == 0 {
			return cli.ShowSubcommandHelp(c)
		}
		var candidates []string
		for _, sub := range c.Command.Subcommands {
			candidates = append(candidates, sub.Name)
		}
		hint := "see " + strings.Join(strings.Fields(name+" "+command+" --help"), " ")
		return &usageError{
			fmt.Sprintf("unknown command %q", strings.TrimSpace(command+" "+c.Args().First())),
			cmp.Or(rules.DidYouMean(c.Args().First(), candidates), hint),
		}
	}
}
