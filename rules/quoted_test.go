package rules_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"orthanc-dicomweb-oauth/rules"
)

// A secret that is not well-formed TOML is not shown by what says so.
func TestSyntaxErrorsShowNoPartOfASecret(t *testing.T) {
	t.Parallel()
	for _, value := range []string{
		`"ab\"SECRET\uZZ"`,
		`"""ab"SECRET\uZZ"""`,
		`"ab\\\"SECRET\xZZ"`,
		`SECRET`,
		`47110815471108154711`, // more than an int64 holds
		`-47110815471108154711`,
		`0xdec0ded4711dec0ded4711`,
		`4711e4711`,
	} {
		path := filepath.Join(t.TempDir(), "gateway.toml")
		if err := os.WriteFile(path, []byte("[profile.p]\nclient_secret = "+value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := rules.Load(path, os.LookupEnv)
		if err == nil {
			t.Fatalf("%s: got no error", value)
		}
		if _, what, _ := strings.Cut(err.Error(), "gateway.toml:"); strings.Contains(what, "SECRET") || strings.Contains(what, "4711") {
			t.Errorf("got %q", what)
		}
	}
}
