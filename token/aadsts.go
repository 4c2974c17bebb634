package token

import (
	"cmp"
	"net/http"
	"strings"
	"time"
)

const (
	// loopPause is how long Entra is left alone after it saw a request loop.
	loopPause = 5 * time.Minute
	// tellSkew is from where on a clock is worth a word.
	tellSkew = 30 * time.Second
)

// aadsts says what the error codes of Microsoft Entra mean for whoever wrote
// the profile. Microsoft does not promise that they stay, so they choose words,
// of which ownCodes are some; control flow goes by HTTP status and OAuth error
// wherever these tell enough.
// Source: https://learn.microsoft.com/entra/identity-platform/reference-error-codes
var aadsts = map[string]struct{ key, hint string }{
	"AADSTS7000215": {"client_secret", "client_secret is wrong; in the Azure portal the secret is the column Value, not Secret ID"},
	"AADSTS7000222": {"client_secret", "client_secret has expired; make a new one in the app registration"},
	"AADSTS700016":  {"client_id", "client_id is not an application of this tenant; check client_id, the tenant, and that it is the right cloud"},
	"AADSTS7000229": {"client_id", "the application has no service principal in this tenant; an administrator must consent to it there"},
	"AADSTS7000112": {"client_id", "the application is disabled in this tenant; enable it under Enterprise applications"},
	"AADSTS90002":   {"tenant_id", "there is no such tenant; check the tenant's id or domain, and that it is the right cloud"},
	"AADSTS900023":  {"tenant_id", "that is neither the id nor a domain of a tenant"},
	"AADSTS1002012": {"scopes", "scopes must be one audience followed by /.default"},
	"AADSTS70011":   {"scopes", "scopes must be one audience followed by /.default"},
	"AADSTS500011":  {"scopes", "the audience in scopes is not known in this tenant; check it, and that a DICOM service was ever set up in the tenant"},
	"AADSTS700027":  {"cert_file", "the certificate is not registered for the application; upload cert_file to the app registration"},
	"AADSTS1000502": {"cert_file", "the certificate has expired, or is not yet valid; register a new one"},
	"AADSTS7000214": {"cert_file", "the certificate has been revoked; register a new one"},
	"AADSTS700024":  {"", "the assertion was outside its time of validity"},
	"AADSTS70021":   {"token_file", "no federated credential of the application matches the token; compare its issuer, subject and audience"},
	"AADSTS700211":  {"token_file", "no federated credential of the application has the token's issuer; compare the cluster's OIDC issuer URL"},
	"AADSTS700212":  {"token_file", "no federated credential of the application has the token's audience; it should be api://AzureADTokenExchange"},
	"AADSTS700213":  {"token_file", "no federated credential of the application has the token's subject; compare namespace and service account"},
	"AADSTS53003":   {"client_id", "a Conditional Access policy for workload identities does not let the application in from here"},
	"AADSTS50196":   {"", "Entra saw the same request too often and asks to stop for a while; look for another client with this client_id"},
}

// ownCodes are the codes of ours for what OAuth calls invalid_client or
// invalid_request, so that metrics tell at night what must be corrected, and what
// made anew.
var ownCodes = map[string]string{
	"AADSTS7000215": "secret_wrong",
	"AADSTS7000222": "secret_expired",
	"AADSTS1000502": "certificate_expired",
	"AADSTS90002":   "tenant_unknown",
	"AADSTS900023":  "tenant_unknown",
}

// aadstsHint finds the error code of Microsoft Entra in an error_description.
// The code is returned, as AADSTS and digits, even if nothing more is known
// about it; ok tells whether key and hint are.
func aadstsHint(description string) (code, key, hint string, ok bool) {
	const prefix = "AADSTS"
	_, rest, found := strings.Cut(description, prefix)
	digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
	if !found || digits == 0 || digits > 9 {
		return "", "", "", false
	}
	code = prefix + rest[:digits]
	known, ok := aadsts[code]
	return code, known.key, known.hint, ok
}

// explainAADSTS lays what Entra's error code says over an error that was made
// of the same answer. Of the provider's text only the code gets in.
func explainAADSTS(e *Error, resp *http.Response, description string) {
	code, key, hint, ok := aadstsHint(description)
	if code == "" {
		return
	}
	e.Description = code
	hint = code + ": " + hint // people search for it

	if code == "AADSTS50196" { // comes as a plain 400
		e.Class, e.Key, e.Hint, e.RetryAfter = Throttled, key, hint, max(e.RetryAfter, loopPause)
		return
	}
	if !ok || e.Class == Throttled || e.Status >= http.StatusInternalServerError {
		return
	}
	e.Code, e.Key, e.Hint = cmp.Or(ownCodes[code], e.Code), key, hint
	if code != "AADSTS700024" {
		return
	}
	e.Class = Transient // a clock gets set, a token file gets replaced
	switch ahead, known := clockAhead(resp); {
	case known && ahead > tellSkew:
		e.Hint += "; set the clock: it is " + ahead.Round(time.Second).String() + " ahead of the provider's"
	case known && -ahead > tellSkew:
		e.Hint += "; set the clock: it is " + (-ahead).Round(time.Second).String() + " behind the provider's"
	default:
		e.Hint += "; the clocks agree, so a federated token must have expired"
	}
}

// clockAhead returns how far this machine's clock is ahead of the provider's,
// by the Date of an answer that has just come.
func clockAhead(resp *http.Response) (time.Duration, bool) {
	at, err := http.ParseTime(resp.Header.Get("Date"))
	return time.Since(at), err == nil
}
