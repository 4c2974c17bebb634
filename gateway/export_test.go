package gateway

import (
	"context"
	"io/fs"
)

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

// FollowFiles is follow, for any files.
func FollowFiles(ctx context.Context, files func() map[string]fs.FileInfo, changed func()) {
	follow(ctx, files, changed)
}
