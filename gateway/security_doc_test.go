package gateway_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// docs/security.md says of each invariant and each attack what tests it; all of these tests exist, the invariants' both
// here and in gateway/e2e.
func TestSecurityPageTellsTheTruth(t *testing.T) {
	page, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]map[string]bool{} // name -> folders
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\([tf] `)
	for _, folder := range []string{".", "e2e", "audit", "../token", "../rules", "../certs"} {
		files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, match := range declared.FindAllStringSubmatch(string(text), -1) {
				if tests[match[1]] == nil {
					tests[match[1]] = map[string]bool{}
				}
				tests[match[1]][folder] = true
			}
		}
	}
	_, text, _ := strings.Cut(string(page), "\n## Invariants\n")
	invariants, text, _ := strings.Cut(text, "\n## Attacks\n")
	attacks, _, _ := strings.Cut(text, "\n## ")
	named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`")
	exist := func(what, text string) (folders map[string]bool) {
		folders = map[string]bool{}
		for _, match := range named.FindAllStringSubmatch(text, -1) {
			if tests[match[1]] == nil {
				t.Errorf("%s: %s does not exist", what, match[1])
			}
			for folder := range tests[match[1]] {
				folders[folder] = true
			}
		}
		return folders
	}
	items := regexp.MustCompile(`(?m)^\d+\. `).Split(invariants, -1)[1:]
	if len(items) != 10 {
		t.Fatalf("the page has %d invariants, want 10", len(items))
	}
	for i, item := range items {
		what := fmt.Sprintf("invariant %d", i+1)
		if folders := exist(what, item); !folders["."] || !folders["e2e"] || !strings.Contains(item, fmt.Sprintf("`TestInvariant%d", i+1)) {
			t.Errorf("%s has no test of its name here, or none against the binary", what)
		}
	}
	for i := 1; i <= 22; i++ {
		_, row, _ := strings.Cut(attacks, fmt.Sprintf("\n| A%d |", i))
		row, _, _ = strings.Cut(row, "\n")
		if what := fmt.Sprintf("A%d", i); len(exist(what, row)) == 0 {
			t.Errorf("%s has no test", what)
		}
	}
	for name := range tests { // and no attack test is left out
		if strings.HasPrefix(name, "TestAttack") && !strings.Contains(attacks, "`"+name+"`") {
			t.Errorf("the page does not name %s", name)
		}
	}
}
