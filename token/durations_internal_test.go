package token

import (
	"maps"
	"testing"
	"time"
)

func TestDurationsCountWhatTookAtMostSoLong(t *testing.T) {
	var d Durations
	for _, took := range []time.Duration{50 * time.Millisecond, 51 * time.Millisecond, time.Second, time.Minute} {
		d.add(took)
	}
	want := map[float64]uint64{0.05: 1, 0.1: 2, 0.25: 2, 0.5: 2, 1: 3, 2.5: 3, 5: 3, 10: 3}
	if got := d.Buckets(); !maps.Equal(got, want) || d.Count != 4 || d.Sum != 61101*time.Millisecond {
		t.Errorf("got %v, %d, %v; want %v, 4, 61.101s", got, d.Count, d.Sum, want)
	}
}
