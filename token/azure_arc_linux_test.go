package token_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"orthanc-dicomweb-oauth/token"
)

const (
	arcKeys = "/var/opt/azcmagent/tokens" // a constant of the SDK
	arcKey  = "key-of-the-arc-agent"
)

// arc is Azure Arc's agent: who can read the file that it names gets a token.
func arc(t *testing.T, path, body string) *platform {
	t.Helper()
	p := servePlatform(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Basic "+arcKey {
			answers(200, nil, body)(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", "Basic realm="+path)
		http.Error(w, planted, http.StatusUnauthorized)
	})
	t.Setenv("IDENTITY_ENDPOINT", p.URL+"/metadata/identity/oauth2/token")
	t.Setenv("IMDS_ENDPOINT", p.URL)
	return p
}

// The SDK takes the key from one folder of the root user's only, so the test
// runs once more, with a file system of its own on /var.
func TestAzureArc(t *testing.T) {
	const marker = "TEST_AZURE_ARC"
	if os.Getenv(marker) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAzureArc$", "-test.count=1", "-test.v")
		cmd.Env = append(os.Environ(), marker+"=1", "TMPDIR=/tmp")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Skipf("no user namespaces here: %v", err)
		}
		if err != nil || !strings.Contains(string(out), "--- PASS: TestAzureArc/") {
			if strings.Contains(string(out), "--- SKIP: TestAzureArc") {
				t.Skipf("%s", out)
			}
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if err := syscall.Mount("tmpfs", "/var", "tmpfs", 0, ""); err != nil {
		t.Skipf("no file system of its own on /var: %v", err)
	}
	if err := os.MkdirAll(arcKeys, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(arcKeys, "1.key")
	if err := os.WriteFile(path, []byte(arcKey), 0o600); err != nil {
		t.Fatal(err)
	}
	good := `{"access_token":"` + accessToken + `","token_type":"Bearer","expires_in":"3599"%s}`

	t.Run("each acquisition answers a challenge", func(t *testing.T) {
		p := arc(t, path, fmt.Sprintf(good, ""))
		a := build(t, &token.AzureManagedIdentity{})
		for range 2 {
			got, err := a.Acquire(t.Context())
			if err != nil || got.Value.Reveal() != accessToken {
				t.Errorf("token %q, %v", got.Value.Reveal(), err)
			}
		}
		if n := len(p.requests()); n != 4 {
			t.Errorf("%d requests, want 4", n)
		}
	})
	t.Run("a user-assigned identity that the agent confirms", func(t *testing.T) {
		arc(t, path, fmt.Sprintf(good, `,"client_id":"id-1"`))
		if _, err := build(t, &token.AzureManagedIdentity{IdentityClientID: "id-1"}).Acquire(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("an agent that does not know user-assigned identities", func(t *testing.T) {
		arc(t, path, fmt.Sprintf(good, ""))
		got := failure(t.Context(), t, build(t, &token.AzureManagedIdentity{IdentityClientID: "id-1"}))
		if got.Key != "identity_client_id" || !strings.Contains(got.Hint, "update the agent") {
			t.Errorf("%+v, want the hint to update the agent", got)
		}
	})
	t.Run("a key that the agent does not take", func(t *testing.T) {
		other := filepath.Join(arcKeys, "2.key")
		if err := os.WriteFile(other, []byte(planted), 0o600); err != nil {
			t.Fatal(err)
		}
		arc(t, other, "")
		got := failure(t.Context(), t, build(t, &token.AzureManagedIdentity{}))
		if got.Class != token.Permanent || got.Status != 401 || !strings.Contains(got.Hint, "refused the gateway") {
			t.Errorf("%+v, want a refusal", got)
		}
	})
}

func TestAzureArcKeyThatCannotBeRead(t *testing.T) {
	for name, path := range map[string]string{
		"not there":         arcKeys + "/no-such.key",
		"in another folder": "/etc/" + planted + ".key",
		"not a key":         "/etc/passwd",
	} {
		t.Run(name, func(t *testing.T) {
			p := arc(t, path, "")
			got := failure(t.Context(), t, build(t, &token.AzureManagedIdentity{}))
			if got.Class != token.Transient || got.Code != "secret_unreadable" || !strings.Contains(got.Hint, "group himds") {
				t.Errorf("%+v, want secret_unreadable that names the group", got)
			}
			if n := len(p.requests()); n != 1 {
				t.Errorf("%d requests, want 1", n)
			}
		})
	}
}
