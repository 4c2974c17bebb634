package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	link       = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading    = regexp.MustCompile(`(?m)^#{1,6} +(.+?) *$`)
	codeBlock  = regexp.MustCompile("(?ms)^ *```.*?^ *```")
	codeSpan   = regexp.MustCompile("`[^`\n]*`")
	notAnchor  = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
	linkOfText = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
)

// anchor is the fragment under which GitHub and GitLab show a heading.
func anchor(title string) string {
	title = linkOfText.ReplaceAllString(title, "$1")
	return strings.ReplaceAll(notAnchor.ReplaceAllString(strings.ToLower(title), ""), " ", "-")
}

func TestLinksLeadSomewhere(t *testing.T) {
	pages := markdown(t)
	for page, text := range pages {
		for _, m := range link.FindAllStringSubmatch(codeSpan.ReplaceAllString(codeBlock.ReplaceAllString(text, ""), "`code`"), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			path, fragment, hasFragment := strings.Cut(m[1], "#")
			target := page
			if path != "" {
				target = strings.TrimPrefix(filepath.Join(filepath.Dir(page), path), "../docs/")
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: the link %s leads nowhere", page, m[1])
			} else if hasFragment && !anchors(pages[target])[fragment] {
				t.Errorf("%s: %s has no heading for #%s", page, target, fragment)
			}
		}
	}
}

func anchors(text string) map[string]bool {
	all := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(codeBlock.ReplaceAllString(text, ""), -1) {
		all[anchor(m[1])] = true
	}
	return all
}

// markdown returns the text of each page of the project, by its path.
func markdown(t *testing.T) map[string]string {
	t.Helper()
	pages := map[string]string{}
	read := func(path string) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		pages[filepath.Clean(path)] = string(text)
	}
	for _, path := range []string{"../README.md", "../CHANGELOG.md", "../CONTRIBUTING.md"} {
		read(path)
	}
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if filepath.Ext(path) == ".md" {
			read(path)
		}
		return err
	})
	if err != nil || len(pages) < 10 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	return pages
}
