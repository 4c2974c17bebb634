//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// truth is how long the status page may take to show a change.
const truth = 2 * time.Second

// browser is a Chromium, for the tabs of one test.
type browser struct{ ctx context.Context }

func startBrowser(t *testing.T) *browser {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program(t, "chromium")), chromedp.Flag("headless", "new"), chromedp.NoSandbox,
		chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(1200, 900), chromedp.Flag("no-proxy-server", true),
		chromedp.NoInheritEnv, chromedp.Env("PATH="+os.Getenv("PATH"), "HOME="+t.TempDir()))
	ctx, cancel := chromedp.NewExecAllocator(context.WithoutCancel(t.Context()), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start chromium: %v", err)
	}
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil { // and wait, since the folder goes next
			t.Errorf("end chromium: %v", err)
		}
	})
	return &browser{ctx}
}

// action is what happens in a tab without a result.
type action = chromedp.Action[chromedp.Void]

// tab is a tab of Chromium that shows the status page.
type tab struct {
	t   *testing.T
	ctx context.Context
}

// open opens a tab after these actions. What Chromium complains about in it, such as a breach of the page's own policy,
// fails the test.
func (b *browser) open(t *testing.T, g *gateway, before ...action) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(b.ctx)
	t.Cleanup(cancel)
	p := &tab{t, ctx}
	p.do()
	err := chromedp.Listen(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			t.Errorf("exception in the page: %+v", e.ExceptionDetails)
		case *log.EventEntryAdded:
			if e.Entry.Level == log.EntryLevelError && !strings.Contains(e.Entry.Text, "ERR_CONNECTION_REFUSED") {
				t.Errorf("Chromium complains: %s", e.Entry.Text)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	p.do(append(before, chromedp.Navigate(g.admin+"/"), chromedp.WaitReady("#health"))...)
	return p
}

func (p *tab) do(actions ...action) {
	p.t.Helper()
	if err := chromedp.Do(p.ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

// value returns what an expression is in the page.
func value[T any](p *tab, expression string) T {
	p.t.Helper()
	v, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// text is what an element shows; "" while it is hidden.
func (p *tab) text(selector string) string {
	p.t.Helper()
	return value[string](p, fmt.Sprintf("(e => e.checkVisibility() ? e.innerText : '')(document.querySelector(%q))", selector))
}

// shows waits until an element shows all of these words.
func (p *tab) shows(within time.Duration, selector string, words ...string) {
	p.t.Helper()
	eventually(p.t, within, func() error {
		if text := p.text(selector); !containsAll(text, words) {
			return fmt.Errorf("%s shows %q, want %q", selector, text, words)
		}
		return nil
	})
}

// keep leaves a screenshot among the artifacts.
func (p *tab) keep(name string) {
	p.t.Helper()
	png, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.t.ArtifactDir(), name+".png"), png, 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// fits fails the test if one has to scroll sideways.
func (p *tab) fits() {
	p.t.Helper()
	if n := value[int](p, "document.documentElement.scrollWidth - document.documentElement.clientWidth"); n > 0 {
		p.t.Errorf("the page is %d pixels too wide", n)
	}
}

func phone() action { return chromedp.EmulateViewport(360, 740, chromedp.EmulateMobile) }

func dark() action {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}},
		})
		return err
	})
}

func noScript() action {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
		return err
	})
}

func TestStatusPageOfAHealthyGateway(t *testing.T) {
	t.Parallel()
	chromium := startBrowser(t)
	u := startUpstream(t, 5*time.Minute, emptyAnswer)
	g := startGateway(t, u, basicLogin, clientSecret)
	g.waitReady(t)
	p := chromium.open(t, g)
	p.shows(truth, ".verdict", "Healthy")
	p.shows(truth, "main", "archive", profileName, "fresh", "min")
	p.keep("healthy")

	// All of it is one document, and nothing comes from elsewhere.
	loaded := value[[]struct {
		Name string  `json:"name"`
		Size float64 `json:"decodedBodySize"`
	}](p, "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')].map(e => e.toJSON())")
	weight := loaded[0].Size
	for _, r := range loaded[1:] {
		if r.Name != g.admin+"/" {
			t.Errorf("the page has loaded %s", r.Name)
		}
	}
	if weight == 0 || weight >= 60_000 {
		t.Errorf("the page weighs %v bytes", weight)
	}

	t.Run("the countdown moves", func(t *testing.T) {
		before := p.text(".life")
		eventually(t, 5*time.Second, func() error {
			if now := p.text(".life"); now == before || before == "" {
				return fmt.Errorf("life left is still %q", now)
			}
			return nil
		})
	})
	t.Run("a request is shown within two seconds", func(t *testing.T) {
		if resp, err := g.client(t).Get(u.server.url + "studies/1.2.840.99999"); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp, err)
		}
		p.shows(truth, "main", "GET /dicom-web/studies/{}", "1 requests, 0 failed")
		if strings.Contains(p.text("body"), "1.2.840") {
			t.Error("the page shows a UID")
		}
	})
	t.Run("a failure is shown with its hint", func(t *testing.T) {
		if _, err := g.client(t).Get("https://unknown.example.org/"); err == nil {
			t.Fatal("a host without a rule was reached")
		}
		p.shows(truth, "main", "Working, with 1 thing to look at", "unknown.example.org:443", "no_rule", "add a [[rule]]")
		p.keep("failure")
	})
	t.Run("keyboard", func(t *testing.T) {
		// From the top of the page, with Tab alone: the skip link first, then the Test button, which Enter presses.
		p.do(chromedp.KeyEvent(kb.Tab))
		if first := value[string](p, "document.activeElement.className"); first != "skip" {
			t.Errorf("Tab reaches %q first, want the skip link", first)
		}
		p.do(chromedp.KeyEvent(kb.Tab))
		if label := value[string](p, "document.activeElement.ariaLabel"); label != "Test archive" {
			t.Fatalf("Tab reaches %q next, want the Test button", label)
		}
		if outline := value[string](p, "getComputedStyle(document.activeElement).outlineStyle"); outline != "solid" {
			t.Errorf("the focus is not visible: outline %s", outline)
		}
		p.do(chromedp.KeyEvent(kb.Enter))
		p.shows(10*time.Second, "#test", "Test of archive", "dns ok", "tcp ok", "tls ok", "token ok", "query ok", resource, "It works.")
		p.keep("test")
		life := p.text(".life")
		eventually(t, 5*time.Second, func() error {
			if p.text(".life") == life {
				return errors.New("the page stands still")
			}
			return nil
		})
		if text := p.text("#test"); !strings.Contains(text, "It works.") { // the page goes on around it
			t.Errorf("the test's result has become %q", text)
		}
		if focused := value[string](p, "document.activeElement.id"); focused != "test" {
			t.Errorf("the focus is on %q, want it to stay on the test's result", focused)
		}
	})
	t.Run("screen reader", func(t *testing.T) {
		for what, expression := range map[string]string{
			"language":                    "document.documentElement.lang === 'en'",
			"landmarks":                   "['header', 'main', 'footer'].every(n => document.querySelectorAll('body > ' + n).length === 1)",
			"one heading of the page":     "document.querySelectorAll('h1').length === 1",
			"sections have names":         "[...document.querySelectorAll('section')].every(s => s.ariaLabel || document.getElementById(s.getAttribute('aria-labelledby'))?.innerText)",
			"table headers have a scope":  "[...document.querySelectorAll('th')].every(h => ['row', 'col'].includes(h.scope))",
			"the chart has a description": "document.querySelector('svg[role=img]').ariaLabel.includes('requests')",
			"changes are told":            "document.querySelector('#health').ariaLive === 'polite' && document.querySelector('#test').ariaLive === 'polite'",
		} {
			if !value[bool](p, expression) {
				t.Errorf("%s: does not hold", what)
			}
		}
	})
	t.Run("phone in the dark", func(t *testing.T) {
		p := chromium.open(t, g, phone(), dark())
		p.fits()
		p.keep("phone-dark")
		background := value[string](p, "getComputedStyle(document.body).backgroundColor")
		var r, g, b int
		if _, err := fmt.Sscanf(background, "rgb(%d, %d, %d)", &r, &g, &b); err != nil || r+g+b > 120 {
			t.Errorf("the background is %s, want a dark one (%v)", background, err)
		}
		if scheme := value[bool](p, "matchMedia('(max-width: 360px)').matches"); !scheme {
			t.Error("the viewport is not that of a phone")
		}
	})
	t.Run("without script", func(t *testing.T) {
		p := chromium.open(t, g, noScript())
		p.do(chromedp.Click("form button"), chromedp.WaitVisible("ol.steps"))
		p.shows(truth, "main", "query ok", "It works.", "Back to the status page")
	})
	// Last, and not in a subtest, since the process belongs to its test: the gateway is gone, and comes back.
	g.process.terminate(t)
	p.shows(truth, "#lost", "The gateway does not answer")
	g.start(t)
	p.shows(truth, ".verdict", "Healthy")
	if lost := p.text("#lost"); lost != "" {
		t.Errorf("the page still says %q", lost)
	}
}

// The provider goes away, then the last token ends, then the provider comes back.
func TestStatusPageFollowsAProviderThatIsDown(t *testing.T) {
	t.Parallel()
	chromium := startBrowser(t)
	u := startUpstream(t, 12*time.Second, emptyAnswer)
	g := startGateway(t, u, basicLogin, clientSecret)
	g.waitReady(t)
	p := chromium.open(t, g)
	p.shows(truth, ".verdict", "Healthy")

	u.provider.process.kill()
	until := func(state string) {
		t.Helper()
		eventually(t, 30*time.Second, func() error {
			if now := g.profile(t).State; now != state {
				return fmt.Errorf("the profile is %s, want %s", now, state)
			}
			return nil
		})
	}
	until("stale")
	p.shows(truth, "#health", "Degraded", "cannot be renewed", "provider_unreachable", "What to do:")
	p.keep("provider-down")
	until("unavailable")
	p.shows(truth, "#health", "Not working", "no usable credential", "provider_unreachable", "What to do:")
	p.keep("token-expired")

	u.provider.start(t)
	until("fresh")
	p.shows(truth, ".verdict", "Healthy")
	p.shows(truth, "main", "provider_unreachable") // the last error stays, to tell the night in the morning
}

func TestStatusPageNamesAWrongSecret(t *testing.T) {
	t.Parallel()
	chromium := startBrowser(t)
	u := startUpstream(t, 5*time.Minute, emptyAnswer)
	g := startGateway(t, u, basicLogin, clientSecret+"-expired")
	p := chromium.open(t, g, phone())
	p.shows(10*time.Second, "#health", "Not working", "invalid_client", "profile."+profileName+".client_secret")
	p.fits()
	p.keep("wrong-secret")

	p.do(chromedp.Click("form[data-test] button"))
	p.shows(20*time.Second, "#test", "dns ok", "tcp ok", "tls ok", "token failed", "What to do:", "client_secret", "It does not work.")
	p.fits()
	p.keep("test-failed")
	if strings.Contains(p.text("#test"), "query") {
		t.Error("the test goes on after a step that failed")
	}
	// What the page tells is what the API tells.
	body, err := get(loopbackClient, g.admin+"/dicomweb-oauth/status")
	var status struct{ Status string }
	if err != nil || json.Unmarshal(body, &status) != nil || status.Status != "unavailable" {
		t.Errorf("the API says %s (%v)", body, err)
	}
}
