package token_test

import (
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"orthanc-dicomweb-oauth/token"
)

// A refusal tells of clocks that differ, since assertions and tokens are refused
// for that by errors that do not say so.
func TestRefusalTellsOfAClockThatIsOff(t *testing.T) {
	for _, row := range []struct {
		name string
		off  time.Duration // the provider's clock against ours
		want string
	}{
		{name: "agreeing clocks"},
		{name: "ours is ahead", off: -2 * time.Hour, want: "also set the clock: it is 2h0m0s ahead of the provider's"},
		{name: "ours is behind", off: 2 * time.Hour, want: "also set the clock: it is 2h0m0s behind the provider's"},
	} {
		t.Run(row.name, func(t *testing.T) {
			date := http.Header{"Date": {time.Now().Add(row.off).UTC().Format(http.TimeFormat)}}
			e := serve(t, answers(http.StatusBadRequest, date, `{"error":"invalid_client"}`))
			a, err := e.settings().Acquirer(token.Env{})
			if err != nil {
				t.Fatal(err)
			}
			s := token.NewSource(a, token.DefaultLifecycle(), slog.New(slog.DiscardHandler))
			defer s.Close()
			_, err = s.Token(t.Context())
			if err == nil || strings.Contains(err.Error(), "clock") != (row.want != "") {
				t.Fatalf("got %v, want a word on the clock: %v", err, row.want != "")
			}
			// A second is lost on the way now and then.
			got := strings.NewReplacer("2h0m1s", "2h0m0s", "1h59m59s", "2h0m0s", "1h59m58s", "2h0m0s").Replace(err.Error())
			if !strings.Contains(got, row.want) {
				t.Errorf("got %q, want %q in it", got, row.want)
			}
		})
	}
}
