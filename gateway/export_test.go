package gateway

// Idle returns how many connections to upstreams wait for a request.
func (g *Gateway) Idle() int {
	n := 0
	for _, up := range g.current.Load().upstreams {
		up.mu.Lock()
		for _, s := range up.servers {
			n += len(s.idle)
		}
		up.mu.Unlock()
	}
	return n
}
