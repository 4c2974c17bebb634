package token

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/processcreds"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
)

// What X-Amz-Content-Sha256 says of a request's body.
const (
	payloadUnsigned  = "unsigned"
	payloadHash      = "hash"
	payloadStreaming = "streaming"
)

// AWSSigV4 are the keys of the type aws_sigv4: AWS Signature Version 4
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html),
// as AWS HealthImaging wants it. There is no token: each request is signed with
// AWS credentials, which have the life cycle of a token.
//
//	Authorization: AWS4-HMAC-SHA256 Credential=<key id>/<date>/<region>/<service>/aws4_request,
//	    SignedHeaders=content-type;host;x-amz-content-sha256;x-amz-date, Signature=<hex>
//	X-Amz-Date: 20260102T150405Z
//	X-Amz-Content-Sha256: <hash of the body, or what stands for it>
//	X-Amz-Security-Token: <session token, if the credentials are temporary>
//
// The signature holds for about five minutes around the time of this machine's
// clock, which must be right. AWS answers 403, not 401, to what it refuses.
type AWSSigV4 struct {
	// Region is the AWS region of the data store, such as us-east-1.
	Region string `toml:"region"`
	// Service is the service's name in the signature, medical-imaging if empty.
	Service string `toml:"service"`
	// Payload is how the body of a request is signed. GET and all else without a
	// body do not care.
	//
	// "unsigned", also if empty: X-Amz-Content-Sha256 is UNSIGNED-PAYLOAD; the body
	// streams through and only TLS protects it.
	//
	// "streaming": X-Amz-Content-Sha256 is STREAMING-AWS4-HMAC-SHA256-PAYLOAD, with
	// X-Amz-Decoded-Content-Length where the length is known, over a plain body: the
	// form that HealthImaging's guide shows for STOW-RS. It streams as well.
	//
	// "hash": the true SHA-256, which every AWS service takes. It is known only
	// after the last byte and goes out before the first one, so that the whole body
	// is first written to a temporary file, in the folder that TMPDIR names: PHI, in
	// clear, on that disk (or in memory, where that folder is a tmpfs), readable by
	// nobody else, without a name while it is in use. The upload takes the time of
	// both ways one after the other, and the disk must hold all bodies that are
	// under way, each of up to 5 GiB.
	Payload string `toml:"payload"`
	// AccessKeyID, SecretAccessKey and, of temporary credentials, SessionToken are
	// the credentials themselves. Without them and without SharedProfile, AWS's
	// default chain is asked: the AWS_* environment, the shared config, a web
	// identity (EKS), container credentials (ECS, EKS pod identity), and the
	// instance metadata service (EC2).
	AccessKeyID     SecretSource `toml:"access_key_id"`
	SecretAccessKey SecretSource `toml:"secret_access_key"`
	SessionToken    SecretSource `toml:"session_token"`
	// SharedProfile is a profile of ~/.aws/config and ~/.aws/credentials, with all
	// that such a profile can do, roles and credential_process included.
	SharedProfile string `toml:"shared_profile"`
	// RefreshBuffer and RequestTimeout override [token] for this profile.
	RefreshBuffer  time.Duration `toml:"refresh_buffer"`
	RequestTimeout time.Duration `toml:"request_timeout"`
	// CAFile is trusted for AWS STS and SSO instead of the system roots. The
	// variable AWS_CA_BUNDLE is not obeyed.
	CAFile File `toml:"ca_file"`
}

// awsName is how AWS spells regions and services.
var awsName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)

// Check implements [Settings].
func (a *AWSSigV4) Check(report Report) {
	if a.Region == "" {
		report("region", "is missing", `give the region of the data store, such as "us-east-1"`)
	} else if !awsName.MatchString(a.Region) {
		report("region", fmt.Sprintf("%q is not the name of an AWS region", printable(a.Region)), `give it as "us-east-1"`)
	}
	if a.Service != "" && !awsName.MatchString(a.Service) {
		report("service", fmt.Sprintf("%q is not the name of an AWS service", printable(a.Service)), "leave it out for HealthImaging (medical-imaging)")
	}
	if !slices.Contains([]string{"", payloadUnsigned, payloadHash, payloadStreaming}, a.Payload) {
		report("payload", fmt.Sprintf("%q is not known", printable(a.Payload)), "one of unsigned, streaming, hash; or leave it out")
	}
	if a.static() {
		a.checkKeys(report)
	} else {
		(&Fetching{CAFile: a.CAFile}).check(report)
	}
}

// static reports whether the credentials are given in the profile.
func (a *AWSSigV4) static() bool {
	return !a.AccessKeyID.IsZero() || !a.SecretAccessKey.IsZero() || !a.SessionToken.IsZero()
}

func (a *AWSSigV4) checkKeys(report Report) {
	if a.SharedProfile != "" {
		report("shared_profile", "there are also credentials in this profile", "keep shared_profile, or access_key_id and secret_access_key")
	}
	const both = "give both access_key_id and secret_access_key; or none, for AWS's default chain"
	checkSecret(report, "access_key_id", a.AccessKeyID, both, awsKeyProblem)
	checkSecret(report, "secret_access_key", a.SecretAccessKey, both, awsKeyProblem)
	if !a.SessionToken.IsZero() {
		checkSecret(report, "session_token", a.SessionToken, "", awsKeyProblem)
	}
	// Files are read again when a renewal is due.
	files := a.AccessKeyID.File() != "" || a.SecretAccessKey.File() != "" || a.SessionToken.File() != ""
	for key, given := range map[string]bool{
		"ca_file": a.CAFile != "", "request_timeout": a.RequestTimeout > 0, "refresh_buffer": a.RefreshBuffer > 0 && !files,
	} {
		if given {
			report(key, "has no effect with access_key_id and secret_access_key, as nobody is asked for credentials", "remove it, or the two keys")
		}
	}
}

// awsKeyProblem says what no part of AWS credentials has.
func awsKeyProblem(s string) (problem, remedy string) {
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "has characters that no AWS key has, such as a space or a line end", "copy it again"
	}
	return "", ""
}

// Lifecycle implements [Settings].
func (a *AWSSigV4) Lifecycle(defaults Lifecycle) Lifecycle {
	return (&Fetching{RefreshBuffer: a.RefreshBuffer, RequestTimeout: a.RequestTimeout}).Lifecycle(defaults)
}

// AsksMetadata implements [MetadataUser]: the default chain ends at the metadata
// service, and a shared profile may name it.
func (a *AWSSigV4) AsksMetadata() bool { return !a.static() }

// TrustFile returns CAFile.
func (a *AWSSigV4) TrustFile() File { return a.CAFile }

// Acquirer implements [Settings].
func (a *AWSSigV4) Acquirer(env Env) (Acquirer, error) {
	client, err := newClient(env, a.CAFile)
	if err != nil {
		return nil, err
	}
	// The guard in front speaks OAuth. The SDK gets the bare transport, and its
	// errors go through explainAWS.
	transport := client.Transport.(*guard).base.(*trusting)
	if proxy := transport.Proxy; proxy != nil {
		transport.Proxy = func(r *http.Request) (*url.URL, error) {
			if onMachine(r.URL.Hostname()) {
				return nil, nil
			}
			return proxy(r)
		}
	}
	client.Transport = transport
	return acquirerFunc(func(ctx context.Context) (Token, error) {
		credentials, err := a.keys(ctx, client)
		if err != nil {
			return Token{}, err
		}
		s := &awsSigner{
			credentials: credentials, signer: v4.NewSigner(), region: a.Region,
			service: cmp.Or(a.Service, "medical-imaging"), payload: cmp.Or(a.Payload, payloadUnsigned),
		}
		t := Token{sign: s.sign}
		if credentials.CanExpire {
			t.Expires = credentials.Expires
		}
		return t, nil
	}), nil
}

// keys gets AWS credentials, each time anew.
func (a *AWSSigV4) keys(ctx context.Context, client *http.Client) (aws.Credentials, error) {
	if !a.static() {
		return a.chain(ctx, client)
	}
	var k [3]Secret
	for i, part := range []struct {
		key    string
		source SecretSource
	}{{"access_key_id", a.AccessKeyID}, {"secret_access_key", a.SecretAccessKey}, {"session_token", a.SessionToken}} {
		var err error
		if k[i], err = readSecret(part.key, part.source, awsKeyProblem); err != nil {
			return aws.Credentials{}, err
		}
	}
	return aws.Credentials{AccessKeyID: k[0].Reveal(), SecretAccessKey: k[1].Reveal(), SessionToken: k[2].Reveal()}, nil
}

// chain asks AWS's default chain, or the shared profile. The SDK's config is
// loaded each time, so that nothing is cached and what changed on disk counts.
func (a *AWSSigV4) chain(ctx context.Context, client *http.Client) (aws.Credentials, error) {
	if os.Getenv("AWS_CA_BUNDLE") != "" { // the SDK obeys it with its own HTTP client only
		return aws.Credentials{}, &Error{
			Class: Permanent, Code: "no_credentials", Key: "ca_file",
			Hint: "give ca_file, and unset AWS_CA_BUNDLE, which is not obeyed",
		}
	}
	sdk := &awsClient{ctx: ctx, client: client}
	options := []func(*config.LoadOptions) error{
		config.WithRegion(a.Region),
		config.WithHTTPClient(sdk),
		config.WithEndpointCredentialOptions(func(o *endpointcreds.Options) { o.HTTPClient = sdk }), // else its own, with HTTPS_PROXY
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
		config.WithLogger(logging.Nop{}),
		config.WithDefaultsMode(aws.DefaultsModeStandard), // "auto" asks the metadata service
		config.WithCredentialsCacheOptions(func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = 0 }),
	}
	if end, ok := ctx.Deadline(); ok {
		options = append(options, config.WithProcessCredentialOptions(func(o *processcreds.Options) { o.Timeout = time.Until(end) }))
	}
	if a.SharedProfile != "" {
		options = append(options, config.WithSharedConfigProfile(a.SharedProfile))
	}
	loaded, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return aws.Credentials{}, explainConfig(err)
	}
	credentials, err := loaded.Credentials.Retrieve(ctx)
	if err != nil || !credentials.HasKeys() {
		var sources []aws.CredentialSource
		if s, ok := loaded.Credentials.(aws.CredentialProviderSource); ok {
			sources = s.ProviderSources()
		}
		return aws.Credentials{}, explainAWS(err, sdk, slices.Contains(sources, aws.CredentialSourceIMDS))
	}
	return credentials, nil
}

// awsClient is the HTTP client of one acquisition. It binds the SDK, whose cache
// hides the context from its providers, to the acquisition's own context, and
// remembers what happened, since the SDK does not always pass it on.
type awsClient struct {
	ctx    context.Context
	client *http.Client

	mu      sync.Mutex
	asked   bool
	failure *Error        // of the last request; nil if there was an answer
	wait    time.Duration // that the last answer asked for
}

// Do implements the SDK's HTTP clients.
func (c *awsClient) Do(r *http.Request) (*http.Response, error) {
	resp, err := c.send(r)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked, c.failure, c.wait = true, nil, 0
	if err != nil {
		c.failure = networkError(err)
		return nil, c.failure
	}
	c.wait = retryAfter(resp)
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	return resp, nil
}

func (c *awsClient) send(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !onMachine(r.URL.Hostname()) {
		return nil, &Error{
			Class: Permanent, Code: "provider_unreachable",
			Hint: "an AWS endpoint of the environment or the shared config is http://, which would send secrets in clear",
		}
	}
	return c.client.Do(r.WithContext(c.ctx))
}

// last returns what is known of the last request.
func (c *awsClient) last() (asked bool, failure *Error, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure != nil {
		e := *c.failure
		failure = &e
	}
	return c.asked, failure, c.wait
}

// ec2IPv6 are the addresses that serve machines on EC2 (metadata, EKS pod identity).
var ec2IPv6 = netip.MustParsePrefix("fd00:ec2::/32")

// onMachine reports whether packets to the host stay on this machine or its
// hypervisor, as those to metadata services do.
func onMachine(host string) bool {
	ip, err := netip.ParseAddr(host)
	return loopback(host) || err == nil && (ip.IsLinkLocalUnicast() || ec2IPv6.Contains(ip))
}

// explainConfig says what is wrong with AWS's environment variables and files,
// none of which it shows.
func explainConfig(err error) *Error {
	e := &Error{
		Class: Permanent, Code: "no_credentials", Key: "shared_profile",
		Hint: "the AWS_* variables of the gateway's environment or its ~/.aws/config cannot be used; check them, or give access_key_id and secret_access_key",
	}
	if _, ok := errors.AsType[config.SharedConfigProfileNotExistError](err); ok {
		e.Hint = "no such profile in the shared config; check shared_profile and AWS_PROFILE, and whose ~/.aws the gateway reads (HOME, AWS_CONFIG_FILE, AWS_SHARED_CREDENTIALS_FILE)"
	}
	if _, ok := errors.AsType[config.AssumeRoleTokenProviderNotSetError](err); ok {
		e.Hint = "the profile's role wants a code (MFA), which nobody can type here; give one without mfa_serial"
	}
	return e
}

// explainAWS rebuilds why the SDK has no credentials, from what is safe to show:
// its own texts may hold bodies, paths and variables.
func explainAWS(err error, sdk *awsClient, metadata bool) *Error {
	asked, failure, wait := sdk.last()
	if failure != nil {
		return explainUnreached(failure, metadata)
	}
	status := 0
	if s, ok := errors.AsType[interface {
		error
		HTTPStatusCode() int
	}](err); ok {
		status = s.HTTPStatusCode()
	}
	e := &Error{Class: Transient, Code: "provider_answer", Status: status, RetryAfter: wait}
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		if known, ok := awsRefusals[api.ErrorCode()]; ok {
			e.Code, e.Class, e.Key, e.Hint = api.ErrorCode(), known.class, known.key, known.hint
			return e
		}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		e.Code = "provider_timeout"
		return explainUnreached(e, metadata)
	case !asked && metadata: // AWS_EC2_METADATA_DISABLED
		return noCredentials()
	case !asked:
		e.Code = "secret_unreadable"
		e.Hint = "what AWS's default chain points to cannot be used; check AWS_WEB_IDENTITY_TOKEN_FILE, AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE, and the profile's credential_process or login"
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable && wait > 0:
		e.Class, e.Hint = Throttled, "AWS asks to wait"
	case status >= 500:
		e.Hint = "AWS has a problem of its own"
	case status >= 300 && status < 400:
		e.Hint = "AWS's endpoint answers with a redirect, which is never followed; check AWS_ENDPOINT_URL_STS and captive portals"
	case status == http.StatusNotFound && metadata:
		e := noCredentials()
		e.Status, e.Hint = status, "the instance has no role; attach an instance profile, or "+e.Hint
		return e
	case status >= 400:
		e.Class, e.Hint = Permanent, "AWS refused to give credentials; check the role of the task, pod or instance, and AWS_CONTAINER_AUTHORIZATION_TOKEN"
	default:
		e.Hint = "AWS's answer holds no credentials"
	}
	return e
}

// explainUnreached is for a provider that gave no answer at all.
func explainUnreached(e *Error, metadata bool) *Error {
	e.Key = ""
	switch {
	case e.Class == Permanent:
	case e.Code == "provider_timeout" && metadata:
		e.Hint = "the instance metadata service does not answer; in a container on EC2 raise the instance's metadata hop limit to 2; elsewhere " + noCredentials().Hint
	case e.Code == "provider_timeout":
		e.Hint = "AWS did not answer within request_timeout"
	case e.Code == "provider_tls":
		e.Key, e.Hint = "ca_file", "the TLS handshake with AWS does not hold; if an inspecting proxy is in the way, give its CA as ca_file"
	case metadata: // no such service here, or the network or its agent is not up yet
		e.Hint = noCredentials().Hint
	default:
		e.Hint = "the AWS service that gives credentials cannot be reached; check region, the network and DNS"
	}
	return e
}

func noCredentials() *Error {
	return &Error{
		Class: Permanent, Code: "no_credentials", Key: "access_key_id",
		Hint: "give access_key_id and secret_access_key, or shared_profile, or run the gateway where AWS gives credentials (environment, web identity, container or instance role)",
	}
}

// awsRefusals says what the error codes of AWS STS and of the metadata service
// mean for whoever wrote the profile.
var awsRefusals = map[string]struct {
	class Class
	key   string
	hint  string
}{
	"AccessDenied":                 {Permanent, "", "AWS does not let this identity assume the role; check the role's trust policy"},
	"AssumeRoleUnauthorizedAccess": {Permanent, "", "EC2 cannot assume the instance's role; check the role's trust policy"},
	"ExpiredToken":                 {Transient, "", "a token that the gateway showed to AWS has expired; renew it (AWS_WEB_IDENTITY_TOKEN_FILE, AWS_SESSION_TOKEN or the profile's login)"},
	"ExpiredTokenException":        {Transient, "", "a token that the gateway showed to AWS has expired; renew it (AWS_WEB_IDENTITY_TOKEN_FILE, AWS_SESSION_TOKEN or the profile's login)"},
	"IDPCommunicationError":        {Transient, "", "AWS cannot reach the web identity's provider"},
	"IDPRejectedClaim":             {Permanent, "", "the web identity's provider rejected the token; check AWS_WEB_IDENTITY_TOKEN_FILE"},
	"InvalidClientTokenId":         {Permanent, "", "AWS does not know the access key; check AWS_ACCESS_KEY_ID or the shared profile"},
	"InvalidIdentityToken":         {Permanent, "", "AWS does not accept the web identity; check its provider in IAM and AWS_WEB_IDENTITY_TOKEN_FILE"},
	"RegionDisabledException":      {Permanent, "region", "AWS STS is not active in this region for the account"},
	"RequestExpired":               {Transient, "", "AWS says that the request is too old; check this machine's clock"},
	"SignatureDoesNotMatch":        {Permanent, "", "AWS refused the signature; check AWS_SECRET_ACCESS_KEY or the shared profile, and this machine's clock"},
	"Throttling":                   {Throttled, "", "AWS asks to wait"},
	"ThrottlingException":          {Throttled, "", "AWS asks to wait"},
	"ValidationError":              {Permanent, "", "AWS does not accept the role's name; check AWS_ROLE_ARN or role_arn"},
}
