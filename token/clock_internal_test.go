package token

import (
	"testing"
	"time"
)

// Invariant P11: whichever way the wall clock is stepped, and however long the
// machine sleeps, no token is used after its end. The monotonic reading cannot
// be stepped from outside, so that the two are set apart here.
func TestTokenEndsWhenEitherClockSaysSo(t *testing.T) {
	now := time.Now()
	later, earlier := now.Add(30*time.Minute), now.Add(-30*time.Minute)
	for _, row := range []struct {
		name   string
		end    deadline
		usable bool
	}{
		{"both clocks before the end", deadline{later, later.Round(0)}, true},
		{"wall clock stepped an hour ahead, or the machine slept", deadline{later, earlier.Round(0)}, false},
		{"wall clock stepped an hour back", deadline{earlier, later.Round(0)}, false},
		{"both clocks past the end", deadline{earlier, earlier.Round(0)}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := (&Token{end: row.end}).usable(now); got != row.usable {
				t.Errorf("usable is %v, want %v", got, row.usable)
			}
			if due := (&Token{refresh: row.end}).due(now); due == row.usable {
				t.Errorf("due is %v, want %v", due, !row.usable)
			}
		})
	}
}
