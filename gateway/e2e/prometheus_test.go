//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// prometheusExamples is the folder of what users copy.
const prometheusExamples = "../../docs/examples/prometheus"

// The rules are valid, and each alert fires when it should and not before.
func TestAlertRulesHold(t *testing.T) {
	t.Parallel()
	promtool := program(t, "promtool")
	for _, args := range [][]string{
		{"check", "config", "prometheus.yml"},
		{"check", "rules", "alerts.yml"},
		{"test", "rules", "alerts_test.yml"},
	} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = prometheusExamples
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %q: %v\n%s", args, err, out)
		}
	}
	rules, tests := readExample(t, "alerts.yml"), readExample(t, "alerts_test.yml")
	for _, alert := range regexp.MustCompile(`(?m)alert: (\w+)`).FindAllStringSubmatch(rules, -1) {
		if !strings.Contains(tests, "alertname: "+alert[1]+"\n") {
			t.Errorf("no test lets %s fire", alert[1])
		}
	}
}

func readExample(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(prometheusExamples, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Every metric in the alerts and on the dashboard is one that a running gateway has, and Prometheus' linter likes them.
func TestAlertsAndDashboardUseRealMetrics(t *testing.T) {
	t.Parallel()
	promtool := program(t, "promtool")
	u := startUpstream(t, 5*time.Minute, emptyAnswer)
	idp, broken := startIdP(t, "broken", "") // for the metrics that only a failure has
	idp.SetClientSecret("another")
	g := startGatewayWith(t, u, fmt.Sprintf(secretProfile, basicLogin(u.provider))+"\n"+broken, clientSecret)
	g.waitReady(t)
	if _, err := g.client(t).Get(u.server.url + "studies"); err != nil {
		t.Fatal(err)
	}
	var scrape []byte
	eventually(t, 10*time.Second, func() (err error) {
		scrape, err = get(loopbackClient, g.admin+"/metrics")
		for _, late := range []string{"requests_total", "profile_error"} { // a request is counted when it has ended
			if err == nil && !bytes.Contains(scrape, []byte("\ndicomweb_oauth_"+late+"{")) {
				err = os.ErrNotExist
			}
		}
		return err
	})
	real := map[string]bool{"up": true} // Prometheus' own
	for line := range strings.Lines(string(scrape)) {
		name, _, _ := strings.Cut(line, "{")
		name, _, _ = strings.Cut(name, " ")
		real[strings.TrimSpace(name)] = true
	}

	used := map[string]bool{}
	metric := regexp.MustCompile(`\b((?:dicomweb_oauth|go|process)_\w+|up)\s*[{\[]|\b((?:dicomweb_oauth|go|process)_\w+)`)
	expression := func(text string) {
		for _, m := range metric.FindAllStringSubmatch(text, -1) {
			used[m[1]+m[2]] = true
		}
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct{ Query any }
		}
	}
	if err := json.Unmarshal([]byte(readExample(t, "grafana-dashboard.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, p := range dashboard.Panels {
		if len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			expression(target.Expr)
		}
	}
	for _, variable := range dashboard.Templating.List {
		if query, ok := variable.Query.(map[string]any); ok {
			expression(query["query"].(string))
		}
	}
	expression(readExample(t, "alerts.yml"))
	for _, name := range slices.Sorted(maps.Keys(used)) {
		if !real[name] {
			t.Errorf("%s is used, but no gateway has it", name)
		}
	}
	if len(used) < 20 {
		t.Errorf("only %d metrics found in alerts and dashboard: the search is broken", len(used))
	}

	cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	cmd.Stdin = bytes.NewReader(scrape)
	if out, err := cmd.CombinedOutput(); err != nil && bytes.Contains(out, []byte("dicomweb_oauth_")) {
		t.Errorf("promtool check metrics: %s", out)
	}
}
