package docs_test

import (
	"io/fs"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	invocation = regexp.MustCompile(`(?:orthanc-dicomweb-oauth(?:\.exe)?["\\]*|go run \.) +((?:[a-z]+ ?)+)?((?: ?--[a-z-]+(?:[ =][^ \x60]+)?| [^ \x60]+)*)`)
	flagName   = regexp.MustCompile(`(?:^| )--([a-z-]+)`)
)

// Whatever the pages and examples tell to type is in the help of the binary.
func TestEachCommandAndFlagOfTheDocumentationExists(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "orthanc-dicomweb-oauth")
	if out, err := exec.Command("go", "build", "-o", binary, "..").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	helps := map[string]string{}
	help := func(command string) string {
		if _, ok := helps[command]; !ok {
			out, err := exec.Command(binary, append(strings.Fields(command), "--help")...).CombinedOutput()
			if err != nil {
				out = nil
			}
			helps[command] = string(out)
		}
		return helps[command]
	}
	texts := markdown(t)
	err := filepath.WalkDir("examples", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			texts[path] = read(t, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	commands := subcommands(help(""))
	found := 0
	for path, text := range texts {
		for line := range strings.Lines(text) {
			for _, m := range invocation.FindAllStringSubmatch(line, -1) {
				words := strings.Fields(m[1])
				if len(words) == 0 || !slices.Contains(commands, words[0]) {
					if len(words) > 0 && strings.Contains(line, "`orthanc-dicomweb-oauth "+words[0]) {
						t.Errorf("%s: there is no command %q: %s", path, words[0], strings.TrimSpace(line))
					}
					continue // the name alone, in a sentence or a path
				}
				command := words[0]
				if below := subcommands(help(command)); len(words) > 1 && slices.Contains(below, words[1]) {
					command += " " + words[1]
				}
				found++
				for _, f := range flagName.FindAllStringSubmatch(m[2], -1) {
					if !strings.Contains(help(command), "--"+f[1]) {
						t.Errorf("%s: %q has no flag --%s: %s", path, command, f[1], strings.TrimSpace(line))
					}
				}
			}
		}
	}
	if found < 30 {
		t.Errorf("found %d commands in the documentation, want all", found)
	}
}

// subcommands are the commands that a help text lists.
func subcommands(help string) []string {
	_, list, _ := strings.Cut(help, "COMMANDS:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	var names []string
	for line := range strings.Lines(list) {
		if fields := strings.Fields(line); len(fields) > 0 {
			names = append(names, strings.TrimSuffix(fields[0], ","))
		}
	}
	return names
}
