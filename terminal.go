package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"time"

	"orthanc-dicomweb-oauth/gateway"
)

// steps prints the steps of a test as they are done and, on a terminal, a line
// that tells for how long the next one has been under way.
type steps struct {
	out   io.Writer
	width int // of the steps' names
	what  string
	end   func() // erases that line; may be called again

	mu    sync.Mutex // held while writing
	since time.Time
	drawn int // length of that line as it stands there
}

// newSteps prints to out; the caller calls end. With live it draws the line.
func newSteps(out io.Writer, width int, what string, live bool) *steps {
	p := &steps{out: out, width: width, what: what, since: time.Now(), end: func() {}}
	if !live {
		return p
	}
	done := make(chan struct{})
	var drawing sync.WaitGroup
	drawing.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				p.draw()
			}
		}
	})
	p.end = sync.OnceFunc(func() {
		close(done)
		drawing.Wait()
		p.erase()
	})
	return p
}

func (p *steps) draw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	line := fmt.Sprintf("%s ... %.0f s", p.what, time.Since(p.since).Seconds())
	p.drawn = len(line)
	fmt.Fprintf(p.out, "\r%s", line)
}

func (p *steps) erase() {
	if p.drawn > 0 {
		fmt.Fprintf(p.out, "\r%*s\r", p.drawn, "")
		p.drawn = 0
	}
}

func (p *steps) step(s gateway.Step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	p.since = time.Now()
	mark, style := "ok    ", "32"
	if !s.OK {
		mark, style = "FAILED", "31"
	}
	if colored(p.out) {
		mark = "\x1b[" + style + "m" + mark + "\x1b[0m"
	}
	fmt.Fprintf(p.out, "%-*s %s %6.0f ms  %s\n", p.width, s.Step, mark, s.Milliseconds, s.Detail)
	if s.Hint != "" {
		fmt.Fprintf(p.out, "%*s hint: %s\n", p.width, "", s.Hint)
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&fs.ModeCharDevice != 0
}

// colored reports whether to write ANSI colours (no-color.org).
func colored(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && runtime.GOOS != "windows"
}
