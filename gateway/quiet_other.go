//go:build !unix

package gateway

// quiet reports whether nothing has arrived on an idle connection, as far as
// that can be told here. What has ended is found out by the next request, which
// is then sent again.
func (c *upstreamConn) quiet() bool { return !c.surplus() }
