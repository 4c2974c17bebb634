package main

import (
	"strings"
	"testing"
	"time"
)

// measured is a run with one load of each kind.
func measured(oursPerSecond, nginxPerSecond int) *bench {
	perSecond := func(n int) []sample {
		return []sample{{outcome: outcome{Seconds: 1, Requests: n / 2}}, {outcome: outcome{Seconds: 1, Requests: n}}, {outcome: outcome{Seconds: 1, Requests: 2 * n}}}
	}
	small := &load{
		group: "small", name: smallName(jobKeepAlive, 16), peers: []string{direct, nginx, gateway},
		samples: map[string][]sample{direct: perSecond(9000), nginx: perSecond(nginxPerSecond), gateway: perSecond(oursPerSecond)},
	}
	return &bench{options: options{rounds: 3, size: 1_000_000_000}, loads: []*load{small}, orthancs: []orthancRow{
		{Load: orthancQIDO, RTT: 50 * time.Millisecond, Without: []float64{1.5, 3, 1.6}, With: []float64{0.5, 1, 0.8}},
		{Load: orthancQIDO, Without: []float64{1, 1, 1}, With: []float64{1.1, 1.2, 1.3}},
	}}
}

func promised(t *testing.T, b *bench, figure string) promise {
	t.Helper()
	for _, p := range b.promises() {
		if strings.HasPrefix(p.Figure, figure) {
			return p
		}
	}
	t.Fatalf("nothing is promised about %q", figure)
	return promise{}
}

// What is judged is the median of the rounds' ratios, and what was not measured is not judged.
func TestPromisesAreJudgedByTheMedianRatio(t *testing.T) {
	for _, c := range []struct {
		figure, measured, holds string
		ours                    int
	}{
		{"keep-alive, 16 clients", "0.90", "yes", 900},
		{"keep-alive, 16 clients", "0.89", "no", 890},
		{"keep-alive, 64 clients", "not measured", "", 900},
		{"real Orthanc, QIDO-RS at 50 ms", "3.00", "yes", 900},
		{"real Orthanc, QIDO-RS at 0 ms", "1.20", "no", 900},
		{"STOW-RS of 32 MB, chunked", "not measured", "", 900},
	} {
		got := promised(t, measured(c.ours, 1000), c.figure)
		if got.Measured != c.measured || got.Holds != c.holds {
			t.Errorf("%s at %d/s: got %s, %q; want %s, %q", c.figure, c.ours, got.Measured, got.Holds, c.measured, c.holds)
		}
	}
}

func TestPageHasEveryTableThatWasMeasured(t *testing.T) {
	b := measured(2000, 1000)
	text, err := render(b.page())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| keep-alive, 16 clients: requests/s, ours / nginx | at least 0.90 | 2.00 | yes |",
		"| 16 | nginx | 1,000 | 0.11 | 2.00 |",
		"| 50 | QIDO-RS | 1,600 | 800 | 3.00 | - | - |",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	for _, tooMuch := range []string{"## Bulk", "## Soak", "<no value>", "NaN"} {
		if strings.Contains(string(text), tooMuch) {
			t.Errorf("the page has %s", tooMuch)
		}
	}
}
