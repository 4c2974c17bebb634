//go:build !windows

package supervisor

import (
	"context"
	"io"
)

// Run calls run, with stderr for its messages, and returns its exit code. On
// Windows, where the service control manager started the process, ctx also ends
// when that wants it to stop, and messages go to the event log.
func Run(ctx context.Context, _ string, stderr io.Writer, run func(context.Context, io.Writer) int) int {
	return run(ctx, stderr)
}
