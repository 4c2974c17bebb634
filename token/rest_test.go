package token_test

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"orthanc-dicomweb-oauth/token"
)

func TestSourceAtRestAcquiresOnlyForRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, issues(0, time.Hour))
		synctest.Wait()
		s.Rest()
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if n := len(p.calls()); n != 1 {
			t.Errorf("%d acquisitions, want none after the first", n)
		}
		if got, err := s.Token(t.Context()); err != nil || got.Generation() != 2 {
			t.Errorf("got %v, %v; want a request to get a token all the same", got, err)
		}
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if n := len(p.calls()); n != 2 {
			t.Errorf("%d acquisitions, want none after that of the request", n)
		}
	})
}

func TestSourceSentToRestDuringAnAcquisitionPlansNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := open(t, issues(time.Second, time.Hour))
		synctest.Wait()
		s.Rest()
		if _, err := s.Token(t.Context()); err != nil { // waits for it
			t.Error(err)
		}
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if n := len(p.calls()); n != 1 {
			t.Errorf("%d acquisitions, want 1", n)
		}
	})
}

// openCounter counts the connections that a server holds.
type openCounter struct {
	net.Listener
	open *atomic.Int64
}

func (l *openCounter) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.open.Add(1)
		c = &openConn{Conn: c, open: l.open}
	}
	return c, err
}

type openConn struct {
	net.Conn
	open *atomic.Int64
	once sync.Once
}

func (c *openConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// keeper is an acquirer with kept connections.
type keeper struct {
	token.Acquirer
	closeIdle []func()
}

func (k *keeper) CloseIdleConnections() {
	for _, closeIdle := range k.closeIdle {
		closeIdle()
	}
}

func TestClosedSourceLeavesNoConnectionToItsProvider(t *testing.T) {
	var open atomic.Int64
	p := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"access_token":"t","token_type":"Bearer","expires_in":3600}`))
	}))
	p.Listener = &openCounter{p.Listener, &open}
	p.Start()
	defer p.Close()
	c := &token.ClientCredentials{OAuthClient: token.OAuthClient{
		TokenEndpoint: p.URL, InsecureHTTP: true, ClientID: "client", ClientSecret: token.SecretValue(token.NewSecret(clientSecret)),
	}}
	k := &keeper{}
	a, err := c.Acquirer(token.Env{Kept: func(closeIdle func()) { k.closeIdle = append(k.closeIdle, closeIdle) }})
	if err != nil {
		t.Fatal(err)
	}
	k.Acquirer = a
	s := token.NewSource(k, token.DefaultLifecycle(), slog.New(slog.DiscardHandler))
	if _, err := s.Token(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := open.Load(); n != 1 {
		t.Errorf("%d connections while the source is open, want 1 kept", n)
	}
	s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for tick := time.NewTicker(time.Millisecond); open.Load() != 0; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%d connections are left", open.Load())
		}
	}
}
