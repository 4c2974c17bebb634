package gateway

import (
	"context"
	"sync"
	"time"

	"orthanc-dicomweb-oauth/certs"
	"orthanc-dicomweb-oauth/gateway/audit"
)

const (
	// watchEvery is how often the gateway looks at the CA folder, the CA's end and
	// the audit log. The status page, which asks once a second too, shows the truth
	// within two.
	watchEvery = time.Second
	// caWarnEvery and auditWarnEvery are how often a warning comes again.
	caWarnEvery    = 24 * time.Hour
	auditWarnEvery = time.Minute
)

// watcher sees what no request shows. It belongs to one goroutine.
type watcher struct {
	g *Gateway

	caProblem string    // why the folder's CA is not taken up, as it was logged
	caWarned  time.Time // of the CA's end

	auditSeen   audit.Counts
	auditBroken bool
	auditWarned time.Time
}

// watch starts to look; the function that it returns ends that.
func (g *Gateway) watch() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { g.look(ctx) })
	return func() { cancel(); done.Wait() }
}

// look looks at once, and every second until ctx ends.
func (g *Gateway) look(ctx context.Context) {
	w := &watcher{g: g}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		w.takeUpCA()
		w.warnOfCA(time.Now())
		w.warnOfAudit(time.Now())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// takeUpCA takes up what ca rotate and ca activate have made of the folder. A
// CA that would not do for the running config is left alone: the one in memory
// signs on.
func (w *watcher) takeUpCA() {
	g := w.g
	old := g.CA()
	ca, err := g.caFor(g.current.Load().config)
	if err != nil {
		if what := err.Error(); what != w.caProblem {
			w.caProblem = what
			g.log.Error("the CA folder is not taken up, the CA in memory signs on", "err", err)
		}
		return
	}
	if w.caProblem != "" {
		w.caProblem = ""
		g.log.Info("the CA folder is good again")
	}
	if ca != old {
		w.caWarned = time.Time{}
	}
	g.useCA(ca)
}

// useCA lets a CA sign from now on, if it is another one.
func (g *Gateway) useCA(ca *certs.CA) {
	old := g.ca.Swap(ca)
	if old == ca {
		return
	}
	switch next := ca.Waiting(); {
	case ca.Fingerprint() != old.Fingerprint():
		g.log.Info("a new CA signs from now on", "ca_fingerprint_sha256", ca.Fingerprint(), "not_after", ca.Certificate().NotAfter)
	case next != nil:
		g.log.Info("a new CA waits, and signs after ca activate", "ca_fingerprint_sha256", next.Fingerprint(), "ca_bundle", ca.BundlePath())
	}
}

// warnOfCA tells once a day of a CA that ends soon.
func (w *watcher) warnOfCA(now time.Time) {
	warning := w.g.CA().Warning(now)
	if warning == "" || now.Sub(w.caWarned) < caWarnEvery {
		return
	}
	w.caWarned = now
	w.g.log.Warn("the CA is to be replaced", "reason", warning, "not_after", w.g.CA().Certificate().NotAfter)
}

// warnOfAudit tells of lost audit records, and when records are written again.
func (w *watcher) warnOfAudit(now time.Time) {
	counts := w.g.audit.Counts()
	before := w.auditSeen
	w.auditSeen = counts
	switch {
	case counts.Lost > before.Lost:
		w.auditBroken = true
		if now.Sub(w.auditWarned) >= auditWarnEvery {
			w.auditWarned = now
			w.g.log.Warn("audit records are lost, traffic goes on", "audit_lost", counts.Lost, "reason", auditReason(counts.Err))
		}
	case w.auditBroken && counts.Written > before.Written:
		w.auditBroken = false
		w.g.log.Info("audit records are written again", "audit_lost", counts.Lost)
	}
}

func auditReason(err error) string {
	if err == nil {
		return "the sink takes records more slowly than they come"
	}
	return err.Error()
}
