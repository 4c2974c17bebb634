//go:build !unix

package gateway

// quiet reports whether an idle connection may be used. What has ended is found
// out by the next request, which is then sent again.
func (c *upstreamConn) quiet() bool { return c.br.Buffered() == 0 }
