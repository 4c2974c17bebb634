package main

import (
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// askToComplete is the last word of a shell that asks for completions.
const askToComplete = "--generate-bash-completion"

// completable keeps a shell that asks for completions from running the command
// instead, which urfave/cli does when "--" is among the words.
func completable(args []string) ([]string, bool) {
	n := len(args) - 1
	if n < 1 || args[n] != askToComplete || !slices.Contains(args, "--") {
		return args, true
	}
	if slices.Index(args, "--") != n-1 {
		return nil, false // what follows "--" is not ours to complete
	}
	return slices.Concat(args[:n-1], []string{"-", args[n]}), true // a flag begins
}

// shells are those that can complete our commands.
const shells = "bash|zsh|fish|powershell"

// The scripts that complete our commands; each asks the program itself.
const (
	bashCompletion = `_orthanc_dicomweb_oauth() {
  local cur=${COMP_WORDS[COMP_CWORD]} words=("${COMP_WORDS[@]:0:COMP_CWORD}")
  case $cur in -*) words+=("$cur") ;; esac
  COMPREPLY=($(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur"))
}
complete -o bashdefault -o default -F _orthanc_dicomweb_oauth orthanc-dicomweb-oauth
`
	zshCompletion = `#compdef orthanc-dicomweb-oauth
_orthanc_dicomweb_oauth() {
  local -a asked found
  asked=("${(@)words[1,CURRENT-1]}")
  [[ ${words[CURRENT]} == -* ]] && asked+=("${words[CURRENT]}")
  found=("${(@f)$("${asked[@]}" --generate-bash-completion 2>/dev/null)}")
  if [[ -n ${found[1]} ]]; then _describe values found; else _files; fi
}
compdef _orthanc_dicomweb_oauth orthanc-dicomweb-oauth
`
	fishCompletion = `function _orthanc_dicomweb_oauth
  set -l asked (commandline -opc)
  set -l word (commandline -ct)
  string match -q -- '-*' $word; and set -a asked $word
  $asked --generate-bash-completion 2>/dev/null
end
complete -c orthanc-dicomweb-oauth -a '(_orthanc_dicomweb_oauth)'
`
	powershellCompletion = `Register-ArgumentCompleter -Native -CommandName orthanc-dicomweb-oauth -ScriptBlock {
  param($word, $ast, $position)
  $command, $rest = @($ast.CommandElements | ForEach-Object { $_.ToString() })
  if ($word -and -not $word.StartsWith('-')) { $rest = @($rest | Select-Object -SkipLast 1) }
  & $command @rest --generate-bash-completion | Where-Object { $_ -like "$word*" } | ForEach-Object {
    [System.Management.Automation.CompletionResult]::new($_, $_, 'ParameterValue', $_)
  }
}
`
)

// completion is the completion command.
func completion(c *cli.Context, stdout io.Writer) error {
	var script string
	switch strings.Join(c.Args().Slice(), " ") {
	case "bash":
		script = bashCompletion
	case "zsh":
		script = zshCompletion
	case "fish":
		script = fishCompletion
	case "powershell":
		script = powershellCompletion
	default:
		return &usageError{"completion needs the name of a shell: bash, zsh, fish or powershell", "such as: " + c.Command.UsageText}
	}
	_, err := io.WriteString(stdout, script)
	return err
}
