package gateway_test

import "testing"

// The first request after the start finds a connection that has shaken hands.
func TestFirstRequestPaysNoHandshake(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{})
	eventually(t, "a connection before the first request", func() bool { return h.gw.Idle() == 1 })
	h.get("/studies").want(t, 200)
	if n := h.up.connections(); n != 1 {
		t.Errorf("got %d connections to the server, want the one that was there", n)
	}
}
