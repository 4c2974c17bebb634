//go:build unix

package gateway

import "syscall"

// quiet reports whether nothing has arrived on an idle connection, neither its
// end nor bytes that nobody asked for.
func (c *upstreamConn) quiet() bool {
	if c.surplus() {
		return false
	}
	conn, ok := c.raw.(syscall.Conn)
	if !ok {
		return true // what has ended is found out by the next request, which is then sent again
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = n < 0 && (err == syscall.EAGAIN || err == syscall.EWOULDBLOCK || err == syscall.EINTR) //nolint:errorlint // errno values
		return true
	})
	return err == nil && quiet
}
