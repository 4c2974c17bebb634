package gateway

import (
	"context"
	"io/fs"
	"maps"
	"os"
	"time"
)

// lookEvery is how often followed files are looked at.
const lookEvery = 250 * time.Millisecond

// Follow calls changed after each change of the file that the gateway was
// configured from, or of a file that was read when its configuration was taken
// up, such as a certificate, until ctx ends.
func (g *Gateway) Follow(ctx context.Context, changed func()) {
	follow(ctx, func() map[string]fs.FileInfo { return g.current.Load().files }, changed)
}

// follow calls changed after each change of the files, once all of them have
// stood still for a moment, until ctx ends. It asks each time which files are
// followed, and how each was when it was read; nil: it was not there. A file that
// is gone is waited for.
//
// It asks for the files' metadata four times a second instead of waiting for the
// system's notifications: those are of no use for network and container mounts,
// know nothing of a symbolic link that is changed further up (Kubernetes swaps
// ..data), and may run out.
func follow(ctx context.Context, files func() map[string]fs.FileInfo, changed func()) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	seen, told := map[string]fs.FileInfo{}, map[string]fs.FileInfo{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		followed := files()
		gone := func(path string, _ fs.FileInfo) bool { _, still := followed[path]; return !still }
		maps.DeleteFunc(seen, gone)
		maps.DeleteFunc(told, gone)
		moving, other := false, false
		for path, read := range followed {
			if _, known := told[path]; !known {
				seen[path], told[path] = read, read
			}
			now, err := os.Stat(path)
			if err != nil {
				continue // in the middle of a change
			}
			moving = moving || !sameFile(now, seen[path])
			other = other || !sameFile(now, told[path])
			seen[path] = now
		}
		if other && !moving {
			maps.Copy(told, seen)
			changed()
		}
	}
}

// sameFile reports whether nothing has happened to a file in between.
func sameFile(a, b fs.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.Mode() == b.Mode() && a.ModTime().Equal(b.ModTime())
}
