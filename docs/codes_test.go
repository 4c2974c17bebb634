package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestEachCodeOfTheGatewayHasItsHeading(t *testing.T) {
	code, err := os.ReadFile("../gateway/problem.go")
	if err != nil {
		t.Fatal(err)
	}
	page := markdown(t)["troubleshooting.md"]
	codes := regexp.MustCompile(`(?m)^\t\w+ +code = "(\w+)"$`).FindAllStringSubmatch(string(code), -1)
	if len(codes) < 16 {
		t.Fatalf("%d codes in gateway/problem.go, want all of the design", len(codes))
	}
	for _, m := range codes {
		if !strings.Contains(page, "\n### "+m[1]+"\n") {
			t.Errorf("troubleshooting.md has no heading for %s", m[1])
		}
	}
	_, chapter, _ := strings.Cut(page, "\n## Codes of the gateway\n")
	chapter, _, _ = strings.Cut(chapter, "\n## ")
	for _, m := range heading.FindAllStringSubmatch(chapter, -1) {
		if !strings.Contains(string(code), `"`+m[1]+`"`) {
			t.Errorf("troubleshooting.md explains %s, which gateway/problem.go does not have", m[1])
		}
	}
}

// The codes of a profile's last error that are ours, not the provider's.
func TestEachErrorOfAProfileIsExplained(t *testing.T) {
	page := markdown(t)["troubleshooting.md"]
	files, err := filepath.Glob("../token/*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, m := range regexp.MustCompile(`(?:Code|"AADSTS\d+"): +"(\w+)"`).FindAllStringSubmatch(string(text), -1) {
			found++
			if !strings.Contains(page, "`"+m[1]+"`") {
				t.Errorf("troubleshooting.md does not explain %s of %s", m[1], file)
			}
		}
	}
	if found < 10 {
		t.Errorf("found %d codes in token/, want all", found)
	}
}
