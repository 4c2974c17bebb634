package token_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// The SDK reads AZURE_SDK_GO_LOGGING before main, so another process has to
// show that the log stays off, and that it would be on without us.
func TestAzureSDKLogStaysOff(t *testing.T) {
	const marker = "TEST_AZURE_LOG"
	switch os.Getenv(marker) {
	case "ours":
		e := entra(t, numbered())
		if _, err := build(t, e.azureSecret()).Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		return
	case "theirs":
		e := entra(t, numbered())
		options := azidentity.ClientSecretCredentialOptions{ClientOptions: azcore.ClientOptions{Transport: e.Client()}, DisableInstanceDiscovery: true}
		options.Cloud.ActiveDirectoryAuthorityHost = e.URL
		c, err := azidentity.NewClientSecretCredential(azureTenant, azureClient, clientSecret, &options)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{azureScope}}); err != nil {
			t.Fatal(err)
		}
		return
	}
	for mode, want := range map[string]bool{"ours": false, "theirs": true} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAzureSDKLogStaysOff$", "-test.count=1")
		cmd.Env = append(os.Environ(), marker+"="+mode, "AZURE_SDK_GO_LOGGING=all")
		var stderr strings.Builder
		cmd.Stderr = &stderr
		if out, err := cmd.Output(); err != nil {
			t.Fatalf("%s: %v\n%s%s", mode, err, out, stderr.String())
		}
		if got := stderr.Len() > 0; got != want {
			t.Errorf("%s: standard error has %d bytes: %.300s", mode, stderr.Len(), stderr.String())
		}
	}
}
