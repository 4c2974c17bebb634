package gateway_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net"
	"strings"
	"testing"
)

func TestAuditHasTheStudysHashOnlyWithAKey(t *testing.T) {
	key := []byte(strings.Repeat("k", 31) + "\n") // all its bytes count
	const uid = "1.2.840.113619.2.55.4711"
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(uid))
	want := `"study_hash":"` + hex.EncodeToString(mac.Sum(nil))[:32] + `"`
	for name, row := range map[string]struct {
		setup setup
		count int
	}{
		"with a key":    {setup{more: "[log]\naudit_key_file = \"audit.key\"", files: map[string][]byte{"audit.key": key}}, 2},
		"without a key": {setup{}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, row.setup)
			h.get("/studies/"+uid+"/series").want(t, 200)
			h.get("/studies/"+uid+"?includefield=all").want(t, 200)
			h.get("/studies?StudyInstanceUID="+uid).want(t, 200)
			eventually(t, "three records", func() bool { return strings.Count(h.audit.String(), "\n") == 3 })
			text := h.audit.String()
			if strings.Count(text, want) != row.count || strings.Count(text, "study_hash") != row.count {
				t.Errorf("got\n%s\nwant %d times %s", text, row.count, want)
			}
			if strings.Contains(text, uid) {
				t.Error("the audit shows the UID")
			}
		})
	}
}

func TestMalformedRequestIsInTheAudit(t *testing.T) {
	h := newHarness(t, setup{})
	conn, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /"+patient+" is not HTTP\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 400 ") {
		t.Errorf("got %s, %v, want 400", got, err)
	}
	eventually(t, "a record", func() bool { return strings.Contains(h.audit.String(), "\n") })
	for _, want := range []string{`"client":"127.0.0.1"`, `"status":400`, `"outcome":"refused","reason":"bad_request"`} {
		if !strings.Contains(h.audit.String(), want) {
			t.Errorf("the audit lacks %s: %s", want, h.audit)
		}
	}
}
