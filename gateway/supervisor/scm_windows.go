package supervisor

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
)

// stopHint is how long a stop may take, in milliseconds: the default
// drain_timeout, and some more.
const stopHint = 45_000

// Run calls run, with stderr for its messages, and returns its exit code. Where
// the service control manager started the process, ctx also ends when that
// wants it to stop, and messages go to the event log under the name: a service
// has no standard error.
func Run(ctx context.Context, name string, stderr io.Writer, run func(context.Context, io.Writer) int) int {
	if service, err := svc.IsWindowsService(); err != nil || !service {
		return run(ctx, stderr)
	}
	log, err := eventlog.Open(name)
	if err != nil {
		return run(ctx, io.Discard)
	}
	defer log.Close()
	h := &handler{ctx: ctx, log: eventWriter{log}, run: run}
	if err := svc.Run(name, h); err != nil {
		fmt.Fprintf(h.log, "%s: service control manager: %v\n", name, err)
		return 1
	}
	return h.code
}

// handler answers the service control manager.
type handler struct {
	ctx  context.Context
	log  io.Writer
	run  func(context.Context, io.Writer) int
	code int
}

// Execute implements [svc.Handler].
func (h *handler) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (bool, uint32) {
	ctx, stop := context.WithCancel(h.ctx)
	defer stop()
	ended := make(chan int, 1)
	go func() { ended <- h.run(ctx, h.log) }()
	status <- svc.Status{State: svc.Running, Accepts: svc.AcceptStop | svc.AcceptShutdown}
	for {
		select {
		case h.code = <-ended:
			return true, uint32(h.code)
		case request := <-requests:
			switch request.Cmd {
			case svc.Interrogate:
				status <- request.CurrentStatus
			case svc.Stop, svc.Shutdown:
				status <- svc.Status{State: svc.StopPending, WaitHint: stopHint}
				stop()
			}
		}
	}
}

// eventWriter writes each log line as one event, of the line's own level. The
// numbers are of no meaning: Windows wants one.
type eventWriter struct{ log *eventlog.Log }

// Write implements [io.Writer].
func (w eventWriter) Write(line []byte) (int, error) {
	text := string(bytes.ReplaceAll(bytes.TrimSpace(line), []byte{0}, nil))
	var err error
	switch {
	case bytes.Contains(line, []byte(`"level":"ERROR"`)), !bytes.HasPrefix(line, []byte("{")): // what is no log line is why it ends
		err = w.log.Error(3, text)
	case bytes.Contains(line, []byte(`"level":"WARN"`)):
		err = w.log.Warning(2, text)
	default:
		err = w.log.Info(1, text)
	}
	return len(line), err
}
