//go:build unix

package gateway

import "syscall"

// quiet reports whether nothing has arrived on an idle connection, neither its
// end nor bytes that nobody asked for.
func (c *upstreamConn) quiet() bool {
	if c.surplus() {
		return false
	}
	if c.sys == nil {
		return true // what has ended is found out by the next request, which is then sent again
	}
	quiet := false
	err := c.sys.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = n < 0 && (err == syscall.EAGAIN || err == syscall.EWOULDBLOCK || err == syscall.EINTR) //nolint:errorlint // errno values
		return true
	})
	return err == nil && quiet
}
