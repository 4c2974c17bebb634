package gateway

import (
	"context"
	"io/fs"
	"os"
	"time"
)

// lookEvery is how often a followed file is looked at.
const lookEvery = 250 * time.Millisecond

// Follower notices that a file has become another. It asks for the file's
// metadata four times a second instead of waiting for the system's
// notifications: those are of no use for network and container mounts, know
// nothing of a symbolic link that is changed further up (Kubernetes swaps
// ..data), and may run out.
type Follower struct {
	path string
	seen fs.FileInfo // nil: there was none
}

// Follow begins to follow the file at path, as it is now.
func Follow(path string) *Follower {
	f := &Follower{path: path}
	f.seen, _ = os.Stat(path)
	return f
}

// Run calls changed after each change of the file, once the file has stood still
// for a moment, until ctx ends. A file that is gone is waited for.
func (f *Follower) Run(ctx context.Context, changed func()) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	told := f.seen
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, err := os.Stat(f.path)
		if err != nil {
			continue // in the middle of a change
		}
		moving := !sameFile(now, f.seen)
		f.seen = now
		if !moving && !sameFile(now, told) {
			told = now
			changed()
		}
	}
}

// sameFile reports whether nothing has happened to a file in between.
func sameFile(a, b fs.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.Mode() == b.Mode() && a.ModTime().Equal(b.ModTime())
}
