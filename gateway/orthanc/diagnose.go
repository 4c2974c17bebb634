package orthanc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"orthanc-dicomweb-oauth/gateway/admin"
	"orthanc-dicomweb-oauth/rules/orthancjson"
)

// diagnose tells why a query did not work, or did not come through the gateway
// (err is nil), by what the gateway has seen of it.
func (r *registration) diagnose(ctx context.Context, name string, err error, before, after admin.Observation) *failure {
	switch away := turnedAway(before, after); {
	case after.UntrustedCA > before.UntrustedCA:
		return &failure{
			"Orthanc does not trust the gateway's CA",
			fmt.Sprintf(`set "HttpsCACertificates" in orthanc.json to %q, which Orthanc's user must be able to read, and restart Orthanc`, r.Settings.CACertificates), true,
		}
	case away == "proxy_auth_required":
		return &failure{
			"the gateway refused Orthanc: proxy_auth_required (407)",
			"write username and password of [proxy] into HttpProxy of orthanc.json: `orthanc config --reveal` prints it; restart Orthanc", true,
		}
	case away == "client_not_allowed":
		return &failure{"the gateway refused Orthanc: client_not_allowed", "add the address that Orthanc comes from to allow_clients under [proxy]; the gateway's audit log names it", true}
	case after.Rules[name].Count > before.Rules[name].Count:
		return r.behindTheGateway(ctx, name, err, after.Rules[name].LastStatus, before, after)
	case away == "no_rule":
		return &failure{"the gateway refused Orthanc's request: no_rule", "the gateway that runs has another url in this rule: let it reload this config", false}
	}
	if codes := refusals(before, after); codes != "" {
		return &failure{"the gateway refused Orthanc's request: " + codes, "see the gateway's log", false}
	}
	return r.pastTheGateway(ctx, name, err)
}

// turnedAway returns the code of a refusal between two observations that no
// rule's count of requests goes with, or "".
func turnedAway(before, after admin.Observation) string {
	for _, code := range []string{"proxy_auth_required", "client_not_allowed", "no_rule"} {
		if after.Refused[code] > before.Refused[code] {
			return code
		}
	}
	return ""
}

// refusals are the codes of the refusals between two observations.
func refusals(before, after admin.Observation) string {
	var codes []string
	for _, code := range slices.Sorted(maps.Keys(after.Refused)) {
		if after.Refused[code] > before.Refused[code] {
			codes = append(codes, code)
		}
	}
	return strings.Join(codes, ", ")
}

// behindTheGateway is a query that came to the gateway and then failed: the
// gateway's own test knows best where.
func (r *registration) behindTheGateway(ctx context.Context, name string, err error, status int, before, after admin.Observation) *failure {
	came := fmt.Sprintf("Orthanc's query came to the gateway, which answered HTTP %d", status)
	if codes := refusals(before, after); codes != "" {
		came += " (" + codes + ")"
	}
	report, testErr := r.gateway.Test(ctx, name)
	if testErr == nil && !report.OK {
		last := report.Steps[len(report.Steps)-1]
		return &failure{fmt.Sprintf("%s; its own test fails at %s: %s", came, last.Step, last.Detail), last.Hint, false}
	}
	if answer, ok := errors.AsType[answerError](err); ok && status == http.StatusOK {
		came += fmt.Sprintf(", but Orthanc does not like what it got (HTTP %d)", answer.status)
	}
	return &failure{came, "see the logs of Orthanc and of the gateway", false}
}

// probeServer is a server that exists for one query only. No host has its name
// (RFC 2606), and no rule either.
const (
	probeServer = "dicomweb-oauth-probe"
	probeURL    = "https://dicomweb-oauth-probe.invalid/"
)

// pastTheGateway is a query of which the gateway has seen nothing. Orthanc shows
// none of its settings, so it is asked to query a host that no NO_PROXY names:
// if the gateway sees that, HttpProxy is right.
func (r *registration) pastTheGateway(ctx context.Context, name string, err error) *failure {
	what := "Orthanc did not ask the gateway"
	if answer, ok := errors.AsType[answerError](err); ok && answer.status == http.StatusUnauthorized {
		what += ", but the server itself, which refused it for want of a credential"
	} else if err == nil {
		what += ", but the server itself, which answered without a credential"
	}
	uses, probeErr := r.usesGateway(ctx)
	switch {
	case probeErr != nil:
		return &failure{what, "see that HttpProxy is set in orthanc.json, and that NO_PROXY in Orthanc's environment does not name the server", true}
	case uses:
		host := strings.TrimPrefix(r.servers[name].URL, "https://")
		host, _, _ = strings.Cut(host, "/")
		return &failure{what + "; for other hosts it does", fmt.Sprintf("remove what covers %s from NO_PROXY and no_proxy in Orthanc's environment, and restart Orthanc", host), false}
	}
	return &failure{
		what,
		fmt.Sprintf(`set "HttpProxy" in orthanc.json to %q and restart Orthanc; if it is set, NO_PROXY=* in its environment has the same effect`, r.Settings.HTTPProxy), true,
	}
}

// usesGateway reports whether the gateway sees a query for an unknown host.
func (r *registration) usesGateway(ctx context.Context) (bool, error) {
	before, err := r.gateway.Observe(ctx)
	if err != nil {
		return false, err
	}
	if err := r.client.put(ctx, probeServer, orthancjson.Server{URL: probeURL}, nil); err != nil {
		return false, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		if err := r.client.remove(ctx, probeServer); err != nil {
			r.note("the DICOMweb server %q was for a test and could not be removed: remove it", probeServer)
		}
	}()
	if err := r.client.query(ctx, probeServer); err != nil {
		if _, ok := errors.AsType[answerError](err); !ok {
			return false, err
		}
	}
	after, err := r.settle(ctx, func(after admin.Observation) bool { return refusals(before, after) != "" })
	return refusals(before, after) != "", err
}
