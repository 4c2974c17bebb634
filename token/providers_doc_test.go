package token_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"orthanc-dicomweb-oauth/token"
)

// docs/providers.md says of each profile type what was tested; it must name
// every type, and no test that does not exist.
func TestProvidersPageTellsTheTruth(t *testing.T) {
	page, err := os.ReadFile("../docs/providers.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range token.Types() {
		if !strings.Contains(string(page), "\n| `"+typ+"`") {
			t.Errorf("no row for %s", typ)
		}
	}
	tests := map[string]bool{}
	for _, pattern := range []string{"*_test.go", "../gateway/*_test.go", "../gateway/e2e/*_test.go", "../gateway/e2e/fosite/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, match := range regexp.MustCompile(`(?m)^func (Test\w+)\(t `).FindAllStringSubmatch(string(text), -1) {
				tests[match[1]] = true
			}
		}
	}
	named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(page), -1)
	if len(named) < len(token.Types()) {
		t.Errorf("the page names %d tests only", len(named))
	}
	for _, match := range named {
		if !tests[match[1]] {
			t.Errorf("%s does not exist", match[1])
		}
	}
}
