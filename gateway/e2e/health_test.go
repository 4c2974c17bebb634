//go:build e2e

package e2e

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestHealthFollowsTheGateway(t *testing.T) {
	t.Parallel()
	u := startUpstream(t, 5*time.Minute, emptyAnswer)
	health := func(g *gateway, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), gatewayBinary, append([]string{"health"}, args...)...)
		cmd.Env = []string{"E2E_CLIENT_SECRET=" + g.secret}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	g := startGateway(t, u, basicLogin, clientSecret)
	g.waitReady(t)
	for _, args := range [][]string{{"--config", g.config}, {"--url", g.admin}, {"--url", g.admin + "/"}} {
		if said, err := health(g, args...); err != nil || said != "ready: "+profileName+" fresh\n" {
			t.Errorf("health %q: got %q, %v", args, said, err)
		}
	}
	wrong := startGateway(t, u, basicLogin, clientSecret+"-expired")
	eventually(t, 20*time.Second, func() error { return wrong.warned(t, profileName) })
	if said, err := health(wrong, "--config", wrong.config); err == nil || !strings.Contains(said, "not ready: no profile is usable: "+profileName+" unavailable") || strings.Count(said, "\nhint: ") != 1 {
		t.Errorf("no credential: got %q, %v", said, err)
	}
	g.process.terminate(t)
	if said, err := health(g, "--config", g.config); err == nil || !strings.Contains(said, "does not answer") || strings.Count(said, "\nhint: ") != 1 {
		t.Errorf("no gateway: got %q, %v", said, err)
	}
}
