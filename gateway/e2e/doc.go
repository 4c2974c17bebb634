// Package e2e tests the built binary against real servers, as a hospital would run them: one Orthanc sends its DICOMweb
// requests through the gateway to a second one, which stands behind a TLS server that asks for a bearer token of a real
// authorization server (npm's oidc-provider).
//
//	Orthanc --HttpProxy--> gateway --TLS, bearer token--> TLS server --> Orthanc with the DICOMweb plugin
//	                          |                               | verifies the token's signature, issuer, audience, expiry
//	                          +-----> oidc-provider <---------+
//
// The tests of faults have a relay on the way to either server, which delays, cuts or refuses connections; see also TestSoak.
// Other tests have Keycloak for the authorization server, and the ways in which clients of oidc-provider prove themselves.
//
// All of it but this page has the build tag e2e. The package starts every server itself, on loopback, and ends it with
// the test; setup.sh installs them. A test whose servers are missing is skipped, but fails where CI=true. Each test has
// servers of its own, so the order does not matter. Linux only.
package e2e
