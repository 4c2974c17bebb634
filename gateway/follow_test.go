package gateway_test

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"orthanc-dicomweb-oauth/gateway"
)

// followed is a file that is followed.
type followed struct {
	t       *testing.T
	dir     string
	changed chan struct{}
}

func follow(t *testing.T, dir, path string) *followed {
	f := &followed{t, dir, make(chan struct{}, 16)}
	info, _ := os.Stat(path)
	f.run(map[string]fs.FileInfo{path: info})
	return f
}

func (f *followed) run(files map[string]fs.FileInfo) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		gateway.FollowFiles(ctx, func() map[string]fs.FileInfo { return files }, func() { f.changed <- struct{}{} })
	})
	f.t.Cleanup(running.Wait)
	f.t.Cleanup(cancel)
}

func (f *followed) write(name, text string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *followed) link(to, name string) {
	f.t.Helper()
	path := filepath.Join(f.dir, name)
	if err := os.Symlink(to, path+".new"); err != nil {
		f.t.Skip(err) // Windows, without the right to
	}
	if err := os.Rename(path+".new", path); err != nil {
		f.t.Fatal(err)
	}
}

// noticed waits for the one call.
func (f *followed) noticed(what string) {
	f.t.Helper()
	select {
	case <-f.changed:
	case <-time.After(2 * time.Second):
		f.t.Fatalf("not noticed within 2 s: %s", what)
	}
}

func TestEachWayToChangeAFileIsNoticedOnce(t *testing.T) {
	t.Parallel()
	f := &followed{t: t, dir: t.TempDir()}
	f.write("gateway.toml", "1")
	path := filepath.Join(f.dir, "gateway.toml")
	f.changed = follow(t, f.dir, path).changed

	f.write("gateway.toml", "22")
	f.noticed("a write in place")
	f.write("gateway.toml", "33")
	f.noticed("a write in place of the same length")
	f.write("gateway.toml.new", "44")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	f.noticed("an atomic rename")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	f.write("gateway.toml", "44")
	f.noticed("a removal and a new file")
	if runtime.GOOS != "windows" { // which has no such modes
		if err := os.Chmod(path, 0o640); err != nil {
			t.Fatal(err)
		}
		f.noticed("a change of its mode")
	}

	// Every look has been taken by the time of the next change: nothing came twice.
	f.write("gateway.toml", "5")
	f.noticed("the last one")
	if n := len(f.changed); n != 0 {
		t.Errorf("%d calls too many", n)
	}
}

// Kubernetes mounts gateway.toml -> ..data/gateway.toml, ..data -> ..TIME, and swaps ..data.
func TestSymlinkSwapIsNoticed(t *testing.T) {
	t.Parallel()
	f := &followed{t: t, dir: t.TempDir()}
	for _, version := range []string{"..1", "..2"} {
		if err := os.Mkdir(filepath.Join(f.dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		f.write(filepath.Join(version, "gateway.toml"), "x")
	}
	f.link("..1", "..data")
	f.link(filepath.Join("..data", "gateway.toml"), "gateway.toml")
	f.changed = follow(t, f.dir, filepath.Join(f.dir, "gateway.toml")).changed
	f.link("..2", "..data")
	f.noticed("a swap of ..data")
	if err := os.RemoveAll(filepath.Join(f.dir, "..1")); err != nil {
		t.Fatal(err)
	}
	f.link("..data/gateway.toml", "gateway.toml") // the same file again
	f.write("..2/gateway.toml", "yy")
	f.noticed("a write behind the links")
	if n := len(f.changed); n != 0 {
		t.Errorf("%d calls too many", n)
	}
}

func TestChangeBetweenReadingAndFollowingIsNoticed(t *testing.T) {
	t.Parallel()
	f := &followed{t: t, dir: t.TempDir(), changed: make(chan struct{}, 16)}
	f.write("gateway.toml", "1")
	path := filepath.Join(f.dir, "gateway.toml")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f.write("gateway.toml", "22")
	f.run(map[string]fs.FileInfo{path: info, filepath.Join(f.dir, "late.pem"): nil})
	f.noticed("a change before")
	f.write("late.pem", "1")
	f.noticed("a file that was not there")
	if n := len(f.changed); n != 0 {
		t.Errorf("%d calls too many", n)
	}
}

// Programs that renew a certificate write its key too, one after the other.
func TestFilesThatChangeTogetherAreNoticedOnce(t *testing.T) {
	t.Parallel()
	f := &followed{t: t, dir: t.TempDir()}
	files := map[string]fs.FileInfo{}
	for _, name := range []string{"cert.pem", "key.pem"} {
		f.write(name, "1")
		path := filepath.Join(f.dir, name)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		files[path] = info
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var calls atomic.Int64
		go gateway.FollowFiles(ctx, func() map[string]fs.FileInfo { return files }, func() { calls.Add(1) })
		for _, step := range []struct {
			write string
			after time.Duration
			calls int64
		}{
			{"cert.pem", 300 * time.Millisecond, 0},
			{"key.pem", 250 * time.Millisecond, 0},
			{"", 250 * time.Millisecond, 1},
			{"", time.Minute, 1},
			{"key.pem", time.Second, 2},
		} {
			if step.write != "" {
				f.write(step.write, strings.Repeat("2", 2+int(step.calls)))
			}
			time.Sleep(step.after) // of the bubble's clock
			synctest.Wait()
			if n := calls.Load(); n != step.calls {
				t.Errorf("%v after a write of %q: %d calls, want %d", step.after, step.write, n, step.calls)
			}
		}
	})
}
