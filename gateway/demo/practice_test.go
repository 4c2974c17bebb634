package demo_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/gateway/demo"
)

// With the fixed ports taken there is nothing to see here; the quickstart's test starts it in earnest.
func TestServeLeavesWhatAGatewayNeedsInTheFolder(t *testing.T) {
	for _, address := range []string{"127.0.0.1:9443", "127.0.0.1:9444"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Skipf("%s is taken", address)
		}
		l.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &until{text: "What reaches the DICOMweb server", then: cancel}
	folder := filepath.Join(t.TempDir(), "cloud")
	if err := demo.Serve(ctx, folder, demo.Options{Out: out, TokenLifetime: time.Minute}); err != nil {
		t.Fatal(err)
	}
	for name, begin := range map[string]string{
		"dicomweb-ca.pem": "-----BEGIN CERTIFICATE-----", "provider-ca.pem": "-----BEGIN CERTIFICATE-----",
		"client_secret": "", "sample.dcm": strings.Repeat("\x00", 128) + "DICM",
	} {
		path := filepath.Join(folder, name)
		content, err := os.ReadFile(path)
		if err != nil || len(content) < 20 || !strings.HasPrefix(string(content), begin) {
			t.Errorf("%s: %v, %.140q", name, err, content)
		}
		if !strings.Contains(out.String(), path) {
			t.Errorf("%s is not told of in\n%s", path, out)
		}
	}
	secret, _ := os.ReadFile(filepath.Join(folder, "client_secret"))
	if strings.Contains(out.String(), string(secret)) {
		t.Error("the client secret is shown")
	}
}

// until calls then once the text has been written.
type until struct {
	bytes.Buffer
	text string
	then func()
}

func (u *until) Write(p []byte) (int, error) {
	n, err := u.Buffer.Write(p)
	if strings.Contains(u.String(), u.text) {
		u.then()
	}
	return n, err
}
