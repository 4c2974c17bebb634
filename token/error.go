package token

import (
	"fmt"
	"strings"
	"time"
)

// Class says what a failed acquisition means for the next one.
type Class int

// The classes of an [Error].
const (
	// Transient: worth another attempt soon (network, 5xx, nonsense).
	Transient Class = iota
	// Throttled: the provider asks to wait (429, or 503 with Retry-After).
	Throttled
	// Permanent: no attempt will help until somebody changes something.
	Permanent
)

// String returns the class in lower case, as logs show it.
func (c Class) String() string {
	return [...]string{"transient", "throttled", "permanent"}[c]
}

// Error is a failed acquisition, rebuilt from what is safe to show: never a
// response body, a URL with a query, or a secret.
type Error struct {
	Class Class
	// Code is the OAuth error (RFC 6749 section 5.2) or one of ours, such as
	// provider_unreachable, provider_tls, provider_timeout, provider_answer,
	// secret_unreadable, or secret_expired where a provider says more than
	// invalid_client. Providers' own codes come from fixed lists only.
	Code string
	// Status is the HTTP status of the provider's answer, 0 if there was none.
	Status int
	// Description is what the network layer said, capped and printable; never
	// the provider's text.
	Description string
	// Key is the TOML key to look at, relative to the profile; may be empty.
	Key string
	// Hint says what to change.
	Hint string
	// RetryAfter is the pause that the provider asked for, 0 if none.
	RetryAfter time.Duration
	// Skew is how far this machine's clock is ahead of the provider's; 0 when
	// they agree within 30 s, or when that is not known.
	Skew time.Duration
}

// tellClock adds to the hint that the clocks differ, if they do: assertions and
// tokens are refused for that, by errors that do not say so.
func (e *Error) tellClock() {
	if e.Class != Permanent || e.Skew == 0 || strings.Contains(e.Hint, "set the clock") {
		return
	}
	direction := "ahead of"
	if e.Skew < 0 {
		direction = "behind"
	}
	e.Hint += fmt.Sprintf("; also set the clock: it is %s %s the provider's", e.Skew.Abs().Round(time.Second), direction)
}

// Error returns what is wrong and what to change, without the provider's text.
func (e *Error) Error() string {
	msg := e.Code
	if e.Status != 0 {
		msg += fmt.Sprintf(" (HTTP %d)", e.Status)
	}
	if e.Hint != "" {
		msg += "; " + e.Hint
	}
	return msg
}

// Unavailable is the error of [Source.Token] when there is no usable token.
type Unavailable struct {
	// RetryAfter is when the provider will be asked again.
	RetryAfter time.Duration
	// Cause is the last failure; nil if none is known.
	Cause *Error
}

// Error implements error.
func (u *Unavailable) Error() string {
	if u.Cause == nil {
		return "no usable token"
	}
	return "no usable token: " + u.Cause.Error()
}

// Unwrap returns the cause.
func (u *Unavailable) Unwrap() error {
	if u.Cause == nil {
		return nil
	}
	return u.Cause
}
