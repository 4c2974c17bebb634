package rules

import (
	"path/filepath"
	"slices"
	"testing"
)

func TestAuditFileStandsBesideTheConfig(t *testing.T) {
	dir := t.TempDir()
	absolute := filepath.Join(dir, "log", "audit.log")
	for given, want := range map[string]string{
		"stderr": "stderr", "stdout": "stdout", "off": "off", "audit.log": filepath.Join(dir, "audit.log"), absolute: absolute,
	} {
		c := Config{Path: filepath.Join(dir, "gateway.toml"), Log: Log{Audit: given}}
		if got := c.AuditTarget(); got != want {
			t.Errorf("%q: got %q, want %q", given, got, want)
		}
	}
}

func TestConfigWithOneProfileLeavesTheWholeAsItIs(t *testing.T) {
	one, two := &Profile{Name: "one"}, &Profile{Name: "two"}
	c := &Config{Rules: []*Rule{{Name: "archive", Profile: "one"}}, Profiles: map[string]*Profile{"one": one, "two": two}}
	only := c.Only("two")
	if len(only.Profiles) != 1 || only.Profiles["two"] != two || !slices.Equal(only.Rules, c.Rules) {
		t.Errorf("got %+v", only)
	}
	if got := c.Only("three").Profiles; len(got) != 0 {
		t.Errorf("got %v of a profile that is not there", got)
	}
	if len(c.Profiles) != 2 {
		t.Errorf("the config itself has %d profiles left", len(c.Profiles))
	}
	if c.Rule("archive") != c.Rules[0] || c.Rule("two") != nil {
		t.Error("a rule is not found by its name")
	}
}
