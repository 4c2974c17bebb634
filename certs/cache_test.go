package certs

import (
	"fmt"
	"testing"
)

// A wildcard rule stands for any number of names; whoever asks for them all must not fill the memory.
func TestLeafCacheIsBounded(t *testing.T) {
	var c leaves
	for i := range 3 * maxLeaves {
		c.entry(fmt.Sprintf("host%d.test", i))
		if len(c.byHost) > maxLeaves {
			t.Fatalf("%d leaves in the cache, want at most %d", len(c.byHost), maxLeaves)
		}
	}
	if len(c.byHost) != maxLeaves {
		t.Errorf("%d leaves in the cache, want it full with %d", len(c.byHost), maxLeaves)
	}
	last := fmt.Sprintf("host%d.test", 3*maxLeaves-1)
	if c.byHost[last] == nil || c.entry(last) != c.byHost[last] {
		t.Error("the newest is not in the cache")
	}
}

// Who finds an old leaf must not throw away the new one that somebody else has put there meanwhile.
func TestDropForgetsOnlyWhatItWasGiven(t *testing.T) {
	var c leaves
	old := c.entry("a.test")
	c.drop("a.test", old)
	fresh := c.entry("a.test")
	c.drop("a.test", old)
	if fresh == old || c.entry("a.test") != fresh {
		t.Error("the new leaf is gone")
	}
	c.drop("b.test", old)
	if c.entry("a.test") != fresh {
		t.Error("the leaf of another host is gone")
	}
}
