//go:build e2e

package e2e

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// shortLifetime makes the gateway renew its token often enough to be seen doing it.
const shortLifetime = 10 * time.Second

func TestRequestsSucceedAcrossTokenLifetimes(t *testing.T) {
	t.Parallel()
	s := startStack(t, shortLifetime, basicLogin)
	repeatUntil(time.Now().Add(26*time.Second), func() {
		if _, err := s.orthanc.find("anyone"); err != nil {
			t.Fatal(err)
		}
	})
	s.server.wantOnlyAdmitted(t)
	tokens := make(map[string]struct{})
	for _, r := range s.server.seen() {
		tokens[r.authorization[0]] = struct{}{}
	}
	// Whole lifetimes would make 3, and halves less a tenth, the earliest renewal, 8.
	if len(tokens) < 3 || len(tokens) > 8 {
		t.Errorf("%d different tokens in 26 s, with a lifetime of %v; want 3 to 8", len(tokens), shortLifetime)
	}
}

func TestProviderDown(t *testing.T) {
	t.Parallel()
	s := startStack(t, shortLifetime, basicLogin)
	if _, err := s.orthanc.find("anyone"); err != nil {
		t.Fatal(err)
	}

	s.provider.process.kill()
	// The gateway may count a token as ended one tenth of its life early, for the clocks.
	usable := s.gateway.profile(t).ExpiresAt.Add(-shortLifetime/10 - time.Second/2)
	n := repeatUntil(usable, func() {
		started := time.Now()
		if _, err := s.orthanc.find("anyone"); err != nil {
			t.Fatalf("with a usable token: %v", err)
		}
		if took := time.Since(started); took > 2*time.Second {
			t.Errorf("with a usable token a request took %v", took)
		}
	})
	if n < 5 {
		t.Errorf("only %d requests while the token was usable", n)
	}

	eventually(t, 2*shortLifetime, func() error {
		if _, err := s.orthanc.find("anyone"); err == nil {
			return errors.New("the token is still usable")
		}
		return nil
	})
	if log := s.orthanc.process.output(t); !strings.Contains(log, "HTTP status 503") {
		t.Error("Orthanc's log does not say 503")
	}

	s.provider.start(t)
	eventually(t, time.Minute, func() error {
		_, err := s.orthanc.find("anyone")
		return err
	})
	s.server.wantOnlyAdmitted(t)
}
