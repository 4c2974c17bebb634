package demo

import (
	"context"
	"slices"
	"sync"
)

// journalKeep is how many entries a journal keeps at least, once it has had that many.
const journalKeep = 1000

// journal counts what happened, keeps the latest of it, and lets others wait for more. The zero value is ready to use.
type journal[T any] struct {
	mu      sync.Mutex
	total   int
	entries []T           // the latest of total
	more    chan struct{} // closed by the next add; nil while nobody waits
}

func (j *journal[T]) add(entry T) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.entries) == 2*journalKeep {
		j.entries = slices.Clone(j.entries[journalKeep:])
	}
	j.entries = append(j.entries, entry)
	j.total++
	if j.more != nil {
		close(j.more)
		j.more = nil
	}
}

// all returns the kept entries, oldest first.
func (j *journal[T]) all() []T {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.entries)
}

// since returns what is kept of the entries after the first n, and how many there are in all.
func (j *journal[T]) since(n int) (entries []T, total int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	fresh := min(max(j.total-n, 0), len(j.entries))
	return slices.Clone(j.entries[len(j.entries)-fresh:]), j.total
}

func (j *journal[T]) count() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.total
}

// wait blocks until there have been n entries, or returns the reason why ctx ended first.
func (j *journal[T]) wait(ctx context.Context, n int) error {
	for {
		more := j.next(n)
		if more == nil {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// next returns nil when there have been n entries, else a channel that the next entry closes.
func (j *journal[T]) next(n int) <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.total >= n {
		return nil
	}
	if j.more == nil {
		j.more = make(chan struct{})
	}
	return j.more
}
