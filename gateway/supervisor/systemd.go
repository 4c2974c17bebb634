// Package supervisor makes the gateway a well-behaved service of its operating
// system: systemd hears when it is ready and when it stops, and the service
// control manager of Windows can start and stop it. Anywhere else, and for a
// gateway that somebody started by hand, it does nothing.
package supervisor

import (
	"log/slog"
	"net"
	"os"
)

// Notify tells systemd a state, such as "READY=1" (sd_notify(3)). It does
// nothing where no service manager asked for that with NOTIFY_SOCKET. That
// systemd does not hear us is logged and no reason to stop: it will end the
// service itself when READY=1 is missing.
func Notify(log *slog.Logger, state string) {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"}) // a leading @ is an abstract socket
	if err == nil {
		defer conn.Close()
		_, err = conn.Write([]byte(state))
	}
	if err != nil {
		log.Warn("the service manager was not told", "state", state, "err", err)
	}
}
