package rules

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/token"
)

// invalid holds what is said about each file of testdata/invalid: one mistake per file, and what a user reads about it.
// TYPES stands for the list of all profile types.
var invalid = map[string][]string{
	"admin_password_alone.toml": {
		`gateway.toml:1: admin.username: is missing (password and username go together)`,
	},
	"bom.toml": {
		`gateway.toml:2: proxy.lisen: unknown key (did you mean "listen"?)`,
	},
	"crlf.toml": {
		`gateway.toml:2: proxy.lisen: unknown key (did you mean "listen"?)`,
	},
	"duration_negative.toml": {
		`gateway.toml:2: token.refresh_buffer: "-5m" is not a duration above zero (write it with a unit, such as "10s", "5m" or "1h")`,
	},
	"duration_unit_unknown.toml": {
		`gateway.toml:2: proxy.idle_timeout: "2 minutes" is not a duration above zero (write it with a unit, such as "10s", "5m" or "1h")`,
	},
	"duration_without_unit.toml": {
		`gateway.toml:2: proxy.stall_timeout: "120" is not a duration above zero (write it with a unit, such as "10s", "5m" or "1h")`,
	},
	"duration_zero.toml": {
		`gateway.toml:2: proxy.stall_timeout: "0s" is not a duration above zero (write it with a unit, such as "10s", "5m" or "1h")`,
	},
	"empty.toml": {
		`gateway.toml: there is no [[rule]], so there is nothing to do (add a [[rule]] with name, url and profile)`,
	},
	"inline_empty.toml": {
		`gateway.toml: there is no [[rule]], so there is nothing to do (add a [[rule]] with name, url and profile)`,
		`gateway.toml:1: rule: must be an array of tables (write [[rule]], with two brackets)`,
	},
	"inline_rules.toml": {
		`gateway.toml: there is no [[rule]], so there is nothing to do (add a [[rule]] with name, url and profile)`,
		`gateway.toml:1: rule: must be an array of tables (write [[rule]], with two brackets)`,
	},
	"key_case.toml": {
		`gateway.toml:2: proxy.Listen: unknown key (did you mean "listen"?)`,
	},
	"key_typo.toml": {
		`gateway.toml:2: proxy.lisen: unknown key (did you mean "listen"?)`,
	},
	"key_typo_rule.toml": {
		`gateway.toml:5: rule[0].methds: unknown key (did you mean "methods"?)`,
	},
	"key_unknown.toml": {
		`gateway.toml:2: proxy.banana: unknown key`,
	},
	"listen_admin_no_port.toml": {
		`gateway.toml:2: admin.listen: "127.0.0.1" is not host:port (write it as "127.0.0.1:PORT")`,
	},
	"listen_admin_open.toml": {
		`gateway.toml:2: admin.listen: "192.0.2.1:3129" can be reached from other machines (set username and password under [admin], or listen on 127.0.0.1)`,
	},
	"listen_bad_port.toml": {
		`gateway.toml:2: proxy.listen: "127.0.0.1:http" is not host:port (write it as "127.0.0.1:PORT")`,
	},
	"listen_every.toml": {
		`gateway.toml:2: proxy.listen: ":3128" can be reached from other machines, and whoever reaches it may use your credentials (set allow_clients = ["ADDRESS-OF-ORTHANC/32"], or username and password, or listen on 127.0.0.1)`,
	},
	"listen_no_port.toml": {
		`gateway.toml:2: proxy.listen: "127.0.0.1" is not host:port (write it as "127.0.0.1:PORT")`,
	},
	"listen_open.toml": {
		`gateway.toml:2: proxy.listen: "0.0.0.0:3128" can be reached from other machines, and whoever reaches it may use your credentials (set allow_clients = ["ADDRESS-OF-ORTHANC/32"], or username and password, or listen on 127.0.0.1)`,
	},
	"log_audit_key_missing.toml": {
		`gateway.toml:2: log.audit_key_file: open none: no such file or directory (make it with: head -c 32 /dev/urandom > FILE)`,
	},
	"log_audit_key_short.toml": {
		`gateway.toml:2: log.audit_key_file: the file has 7 bytes, want at least 32 (make it with: head -c 32 /dev/urandom > FILE)`,
	},
	"log_audit_empty.toml": {
		`gateway.toml:2: log.audit: is empty (write "off" to have no audit log)`,
	},
	"log_format.toml": {
		`gateway.toml:2: log.format: "xml" is not one of auto, text, json`,
	},
	"log_level.toml": {
		`gateway.toml:2: log.level: "warning" is not one of debug, info, warn, error (did you mean "warn"?)`,
	},
	"no_rule.toml": {
		`gateway.toml: there is no [[rule]], so there is nothing to do (add a [[rule]] with name, url and profile)`,
	},
	"profile_aws_nobody_asked.toml": {
		`gateway.toml:11: profile.aws.refresh_buffer: has no effect with access_key_id and secret_access_key, as nobody is asked for credentials (remove it, or the two keys)`,
		`gateway.toml:12: profile.aws.request_timeout: has no effect with access_key_id and secret_access_key, as nobody is asked for credentials (remove it, or the two keys)`,
	},
	"profile_double_bracket.toml": {
		`gateway.toml:4: rule[0].profile: there is no [profile.azure] (add the table)`,
		`gateway.toml:6: profile.azure: must be a table (write [profile.azure])`,
	},
	"profile_endpoint_and_issuer.toml": {
		`gateway.toml:11: profile.azure.issuer: both issuer and token_endpoint are given (keep one of them)`,
	},
	"profile_endpoint_http.toml": {
		`gateway.toml:8: profile.azure.token_endpoint: http:// would send the secret in clear (use an https:// URL; http:// only on loopback with insecure_http = true)`,
	},
	"profile_endpoint_missing.toml": {
		`gateway.toml:6: profile.azure.token_endpoint: is missing (give token_endpoint, or issuer for OpenID Connect discovery)`,
	},
	"profile_file_for_no_secret.toml": {
		`gateway.toml:11: profile.azure.client_id_file: unknown key (did you mean "client_id"?)`,
	},
	"profile_is_value.toml": {
		`gateway.toml:4: rule[0].profile: there is no [profile.azure] (add the table)`,
		`gateway.toml:7: profile.azure: must be a table (write [profile.azure])`,
	},
	"profile_key_foreign.toml": {
		`gateway.toml:11: profile.azure.tenant_id: has no meaning for type "client_credentials" (it belongs to azure_workload_identity, azure_client_secret, azure_client_certificate; remove it or change type)`,
	},
	"profile_secret_foreign.toml": {
		`gateway.toml:11: profile.azure.secret_access_key_file: has no meaning for type "client_credentials" (it belongs to aws_sigv4; remove it or change type)`,
	},
	"profile_key_typo.toml": {
		`gateway.toml:11: profile.azure.token_endpont: unknown key (did you mean "token_endpoint"?)`,
	},
	"profile_key_unknown.toml": {
		`gateway.toml:11: profile.azure.client_ident: unknown key (did you mean "client_id"?)`,
	},
	"profile_name_bad.toml": {
		`gateway.toml:12: profile.my azure: a profile's name has letters, digits, '.', '_' and '-' only`,
	},
	"profile_params_reserved.toml": {
		`gateway.toml:11: profile.azure.params.grant_type: is set by the gateway itself (use the profile's own key for it)`,
		`gateway.toml:11: profile.azure.params.resource: is set by the gateway itself (use the profile's own key for it)`,
		`gateway.toml:11: profile.azure.params.scope: is set by the gateway itself (use the profile's own key for it)`,
	},
	"profile_secret_and_file.toml": {
		`gateway.toml:11: profile.azure.client_secret_file: both client_secret and client_secret_file are given (keep one of them)`,
	},
	"profile_secret_file_blank.toml": {
		`gateway.toml:10: profile.azure.client_secret_file: is empty (give the path of a file that holds the secret)`,
	},
	"profile_secret_file_empty.toml": {
		`gateway.toml:10: profile.azure.client_secret_file: read secret: "empty" is empty (the file must exist, hold the secret, and be readable for the gateway's user)`,
	},
	"profile_secret_file_missing.toml": {
		`gateway.toml:10: profile.azure.client_secret_file: read secret: open no-such-secret: no such file or directory (the file must exist, hold the secret, and be readable for the gateway's user)`,
	},
	"profile_secret_file_type.toml": {
		`gateway.toml:10: profile.azure.client_secret_file: want a string, got true or false`,
	},
	"profile_secret_missing.toml": {
		`gateway.toml:6: profile.azure.client_secret: is missing (give client_secret = "${VARIABLE}", or client_secret_file)`,
	},
	"profile_type_missing.toml": {
		`gateway.toml:6: profile.azure.type: is missing (one of TYPES)`,
	},
	"profile_type_number.toml": {
		`gateway.toml:7: profile.azure.type: want a string, got a whole number`,
	},
	"profile_type_unknown.toml": {
		`gateway.toml:7: profile.azure.type: unknown type "client_credential" (did you mean "client_credentials"?)`,
	},
	"profile_type_unknown_far.toml": {
		`gateway.toml:7: profile.azure.type: unknown type "kerberos" (one of TYPES)`,
	},
	"proxy_clients_bad.toml": {
		`gateway.toml:2: proxy.allow_clients[1]: "10.0.0.5" is not a network (write it as "10.1.2.0/24", or a single address as "10.1.2.3/32")`,
	},
	"proxy_clients_bad_length.toml": {
		`gateway.toml:2: proxy.allow_clients[0]: "10.0.0.0/33" is not a network (write it as "10.1.2.0/24", or a single address as "10.1.2.3/32")`,
	},
	"proxy_connections.toml": {
		`gateway.toml:2: proxy.max_connections: must be at least 1 (Orthanc opens up to 60 connections at once)`,
	},
	"proxy_password_alone.toml": {
		`gateway.toml:1: proxy.username: is missing (password and username go together)`,
	},
	"proxy_tls_key_missing.toml": {
		`gateway.toml:1: proxy.tls_key: is missing (tls_cert and tls_key go together)`,
	},
	"proxy_unmatched.toml": {
		`gateway.toml:2: proxy.unmatched: "allow" is not one of deny, pass`,
	},
	"proxy_upstream_https.toml": {
		`gateway.toml:2: proxy.upstream_proxy: is not an http:// URL with host and port (write http://user:pass@proxy.example.org:8080)`,
	},
	"proxy_upstream_no_port.toml": {
		`gateway.toml:2: proxy.upstream_proxy: is not an http:// URL with host and port (write http://user:pass@proxy.example.org:8080)`,
	},
	"proxy_username_alone.toml": {
		`gateway.toml:1: proxy.password: is missing (username and password go together)`,
	},
	"proxy_username_colon.toml": {
		`gateway.toml:2: proxy.username: must not contain a colon (RFC 7617 ends the user name at the first colon)`,
	},
	"rule_action_unknown.toml": {
		`gateway.toml:5: rule[0].action: "injct" is not one of inject, pass, deny (did you mean "inject"?)`,
	},
	"rule_action_unknown_profile_unknown.toml": {
		`gateway.toml:4: rule[0].profile: there is no [profile.azur] (did you mean "azure"?)`,
		`gateway.toml:5: rule[0].action: "injct" is not one of inject, pass, deny (did you mean "inject"?)`,
	},
	"rule_ca_file_missing.toml": {
		`gateway.toml:5: rule[0].ca_file: open no-such-ca.pem: no such file or directory (give a PEM file with CA certificates)`,
	},
	"rule_ca_file_not_pem.toml": {
		`gateway.toml:5: rule[0].ca_file: no PEM certificate in gateway.toml (give a PEM file with CA certificates)`,
	},
	"rule_client_key_missing.toml": {
		`gateway.toml:1: rule[0].client_key: is missing (client_cert and client_key go together)`,
	},
	"rule_client_pair_missing.toml": {
		`gateway.toml:5: rule[0].client_cert: open client.pem: no such file or directory (give a PEM certificate (chain) and its private key)`,
	},
	"rule_header_authorization.toml": {
		`gateway.toml:5: rule[0].headers.Authorization: the profile sets this header`,
	},
	"rule_header_forwarded.toml": {
		`gateway.toml:5: rule[0].headers.X-Forwarded-For: the gateway owns this header`,
	},
	"rule_header_host.toml": {
		`gateway.toml:5: rule[0].headers.Host: the gateway owns this header`,
	},
	"rule_header_name.toml": {
		`gateway.toml:5: rule[0].headers.X Key: is not a header name`,
	},
	"rule_header_value.toml": {
		`gateway.toml:5: rule[0].headers.X-Site: the value has a control character`,
	},
	"rule_method_unknown.toml": {
		`gateway.toml:5: rule[0].methods[0]: "get" is not a method that DICOMweb uses (methods are upper case: GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS)`,
	},
	"rule_methods_empty.toml": {
		`gateway.toml:5: rule[0].methods: is empty (leave it out for the usual methods)`,
	},
	"rule_mode_unknown.toml": {
		`gateway.toml:5: rule[0].mode: "dry-run" is not one of enforce, report`,
	},
	"rule_name_bad.toml": {
		`gateway.toml:2: rule[0].name: a rule's name has letters, digits, '.', '_' and '-' only`,
	},
	"rule_name_duplicate.toml": {
		`gateway.toml:7: rule[1].name: "one" is taken by an earlier rule (names are unique)`,
	},
	"rule_name_missing.toml": {
		`gateway.toml:1: rule[0].name: is missing (give the rule a name of its own, such as "azure-dicom")`,
	},
	"rule_networks_bad.toml": {
		`gateway.toml:5: rule[0].allow_networks[1]: "10.0.0.5" is not a network (write it as "10.1.2.0/24", or a single address as "10.1.2.3/32")`,
	},
	"rule_profile_for_pass.toml": {
		`gateway.toml:4: rule[0].profile: has no meaning for action "pass" (remove it, or use action = "inject")`,
	},
	"rule_profile_missing.toml": {
		`gateway.toml:1: rule[0].profile: is missing (name the [profile.NAME] whose credential this rule injects)`,
	},
	"rule_profile_unknown.toml": {
		`gateway.toml:4: rule[0].profile: there is no [profile.azur] (did you mean "azure"?)`,
	},
	"rule_profile_unknown_far.toml": {
		`gateway.toml:4: rule[0].profile: there is no [profile.google] (add the table)`,
	},
	"rule_single_bracket.toml": {
		`gateway.toml: there is no [[rule]], so there is nothing to do (add a [[rule]] with name, url and profile)`,
		`gateway.toml:1: rule: must be an array of tables (write [[rule]], with two brackets)`,
	},
	"rule_url_duplicate.toml": {
		`gateway.toml:8: rule[1].url: is the same URL as that of rule "one" (remove one of the two)`,
	},
	"rule_url_duplicate_case.toml": {
		`gateway.toml:8: rule[1].url: is the same URL as that of rule "one" (remove one of the two)`,
	},
	"rule_url_duplicate_dot.toml": {
		`gateway.toml:8: rule[1].url: is the same URL as that of rule "one" (remove one of the two)`,
	},
	"rule_url_duplicate_idna.toml": {
		`gateway.toml:8: rule[1].url: is the same URL as that of rule "one" (remove one of the two)`,
	},
	"rule_url_duplicate_ip.toml": {
		`gateway.toml:8: rule[1].url: is the same URL as that of rule "one" (remove one of the two)`,
	},
	"rule_url_duplicate_port.toml": {
		`gateway.toml:8: rule[1].url: is the same URL as that of rule "one" (remove one of the two)`,
	},
	"rule_url_duplicate_slash.toml": {
		`gateway.toml:8: rule[1].url: is the same URL as that of rule "one" (remove one of the two)`,
	},
	"rule_url_duplicate_wildcard.toml": {
		`gateway.toml:8: rule[1].url: is the same URL as that of rule "one" (remove one of the two)`,
	},
	"rule_url_missing.toml": {
		`gateway.toml:1: rule[0].url: is missing (copy the Url of the server from DicomWeb.Servers)`,
	},
	"rules_plural.toml": {
		`gateway.toml: there is no [[rule]], so there is nothing to do (add a [[rule]] with name, url and profile)`,
		`gateway.toml:1: rules: unknown table or key (did you mean "rule"?)`,
	},
	"several.toml": {
		`gateway.toml:2: proxy.listen: "0.0.0.0:3128" can be reached from other machines, and whoever reaches it may use your credentials (set allow_clients = ["ADDRESS-OF-ORTHANC/32"], or username and password, or listen on 127.0.0.1)`,
		`gateway.toml:3: proxy.stal_timeout: unknown key (did you mean "stall_timeout"?)`,
		`gateway.toml:4: proxy.max_connections: want a whole number, got a string`,
		`gateway.toml:8: rule[0].url: a credential is never sent over http:// (use https://, or action = "pass" or "deny")`,
		`gateway.toml:9: rule[0].profile: there is no [profile.azur] (did you mean "azure"?)`,
		`gateway.toml:11: rule[1].profile: is missing (name the [profile.NAME] whose credential this rule injects)`,
		`gateway.toml:12: rule[1].name: "azure" is taken by an earlier rule (names are unique)`,
		`gateway.toml:18: profile.azure.client_id: variable NOT_SET is not set (set the variable in the environment of the gateway, or write ${VAR:-default})`,
		`gateway.toml:21: logs: unknown table or key (did you mean "log"?)`,
	},
	"syntax.toml": {
		`gateway.toml:5: rule.profile: Key 'rule.profile' has already been defined.`,
	},
	"syntax_unclosed.toml": {
		`gateway.toml:2: expected '.' or ']' to end table name, but got '\n' instead`,
	},
	"syntax_value.toml": {
		`gateway.toml:2: proxy.listen: Invalid float value: "…" (put text into quotes: key = "text")`,
	},
	"table_is_value.toml": {
		`gateway.toml:1: proxy: must be a table (write [proxy])`,
	},
	"table_unknown.toml": {
		`gateway.toml:1: prxy: unknown table or key (did you mean "proxy"?)`,
	},
	"table_unknown_far.toml": {
		`gateway.toml:1: database: unknown table or key`,
	},
	"token_attempts.toml": {
		`gateway.toml:2: token.max_attempts: 0 is not between 1 and 10`,
	},
	"token_attempts_many.toml": {
		`gateway.toml:2: token.max_attempts: 11 is not between 1 and 10`,
	},
	"tunnel_headers.toml": {
		`gateway.toml:10: rule[1].headers: has no effect inside a tunnel (TLS of a host without an inject rule is not terminated; remove this, or add an inject rule for the host)`,
	},
	"tunnel_methods.toml": {
		`gateway.toml:10: rule[1].methods: has no effect inside a tunnel (TLS of a host without an inject rule is not terminated; remove this, or add an inject rule for the host)`,
	},
	"tunnel_path.toml": {
		`gateway.toml:8: rule[1].url: nobody can see the path /dicom-web/ of this host (TLS of a host without an inject rule is not terminated; remove this, or add an inject rule for the host)`,
	},
	"tunnel_path_deny.toml": {
		`gateway.toml:8: rule[1].url: nobody can see the path /dicom-web/ of this host (TLS of a host without an inject rule is not terminated; remove this, or add an inject rule for the host)`,
	},
	"type_date_for_string.toml": {
		`gateway.toml:2: rule[0].name: want a string, got a date or time`,
	},
	"type_float.toml": {
		`gateway.toml:2: proxy.max_connections: want a whole number, got a number`,
	},
	"type_list_for_table.toml": {
		`gateway.toml:5: rule[0].headers: want a table, got a list`,
	},
	"type_number_for_duration.toml": {
		`gateway.toml:2: proxy.stall_timeout: want a string, got a whole number`,
	},
	"type_number_for_string.toml": {
		`gateway.toml:2: proxy.listen: want a string, got a whole number`,
	},
	"type_number_in_list.toml": {
		`gateway.toml:5: rule[0].methods[1]: want a string, got a whole number`,
	},
	"type_string_for_bool.toml": {
		`gateway.toml:2: proxy.permissive_modes: want true or false, got a string`,
	},
	"type_string_for_list.toml": {
		`gateway.toml:5: rule[0].methods: want a list, got a string`,
	},
	"type_string_for_number.toml": {
		`gateway.toml:2: proxy.max_connections: want a whole number, got a string`,
	},
	"url_backslash.toml": {
		`gateway.toml:3: rule[0].url: the path must be plain: no dot segment, empty segment, backslash, semicolon or % escape (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_control.toml": {
		`gateway.toml:3: rule[0].url: the path has a character that no request's path can have as it stands (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_dot_segment.toml": {
		`gateway.toml:3: rule[0].url: the path must be plain: no dot segment, empty segment, backslash, semicolon or % escape (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_empty_segment.toml": {
		`gateway.toml:3: rule[0].url: the path must be plain: no dot segment, empty segment, backslash, semicolon or % escape (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_encoded.toml": {
		`gateway.toml:3: rule[0].url: the path must be plain: no dot segment, empty segment, backslash, semicolon or % escape (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_fragment.toml": {
		`gateway.toml:3: rule[0].url: a rule's URL has no query and no fragment (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_host_character.toml": {
		`gateway.toml:3: rule[0].url: host "dicom example.org": character ' ' is not allowed (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_host_label.toml": {
		`gateway.toml:3: rule[0].url: host "dicom..example.org": empty label (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_host_missing.toml": {
		`gateway.toml:3: rule[0].url: empty host (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_http_inject.toml": {
		`gateway.toml:3: rule[0].url: a credential is never sent over http:// (use https://, or action = "pass" or "deny")`,
	},
	"url_ip_decimal.toml": {
		`gateway.toml:3: rule[0].url: host "2130706433" looks like an IP address but is not in its canonical form (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_ip_hex.toml": {
		`gateway.toml:3: rule[0].url: host "0x7f.0.0.1" looks like an IP address but is not in its canonical form (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_ip_octal.toml": {
		`gateway.toml:3: rule[0].url: host "0177.0.0.1" looks like an IP address but is not in its canonical form (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_ip_short.toml": {
		`gateway.toml:3: rule[0].url: host "127.1" looks like an IP address but is not in its canonical form (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_ipv6_bare.toml": {
		`gateway.toml:3: rule[0].url: an IPv6 address needs brackets (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_ipv6_unclosed.toml": {
		`gateway.toml:3: rule[0].url: missing ] after IPv6 address (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_ipv6_zone.toml": {
		`gateway.toml:3: rule[0].url: an address with a zone is not supported (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_non_ascii.toml": {
		`gateway.toml:3: rule[0].url: the path has a character that no request's path can have as it stands (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_parameter.toml": {
		`gateway.toml:3: rule[0].url: the path must be plain: no dot segment, empty segment, backslash, semicolon or % escape (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_port_bad.toml": {
		`gateway.toml:3: rule[0].url: bad port "https" (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_port_empty.toml": {
		`gateway.toml:3: rule[0].url: empty port (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_port_large.toml": {
		`gateway.toml:3: rule[0].url: bad port "65536" (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_port_zero.toml": {
		`gateway.toml:3: rule[0].url: bad port "0" (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_query.toml": {
		`gateway.toml:3: rule[0].url: a rule's URL has no query and no fragment (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_scheme_ftp.toml": {
		`gateway.toml:3: rule[0].url: the URL must begin with https:// (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_scheme_missing.toml": {
		`gateway.toml:3: rule[0].url: the URL must begin with https:// (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_space.toml": {
		`gateway.toml:3: rule[0].url: the path has a character that no request's path can have as it stands (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_userinfo.toml": {
		`gateway.toml:3: rule[0].url: a rule's URL has no user or password; credentials belong into a profile (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_wildcard_all.toml": {
		`gateway.toml:3: rule[0].url: a wildcard stands for the whole first label only: *.example.org (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_wildcard_double.toml": {
		`gateway.toml:3: rule[0].url: a wildcard stands for the whole first label only: *.example.org (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_wildcard_ip.toml": {
		`gateway.toml:3: rule[0].url: a wildcard cannot stand before an IP address (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_wildcard_middle.toml": {
		`gateway.toml:3: rule[0].url: a wildcard stands for the whole first label only: *.example.org (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_wildcard_partial.toml": {
		`gateway.toml:3: rule[0].url: a wildcard stands for the whole first label only: *.example.org (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"url_wildcard_tld.toml": {
		`gateway.toml:3: rule[0].url: *.org would cover a whole top-level domain (write it as in DicomWeb.Servers: https://dicom.example.org/dicom-web/)`,
	},
	"variable_bad_name.toml": {
		`gateway.toml:9: profile.azure.client_id: what stands in ${} is not a variable name; write $$ for a literal $ (set the variable in the environment of the gateway, or write ${VAR:-default})`,
	},
	"variable_empty_name.toml": {
		`gateway.toml:9: profile.azure.client_id: what stands in ${} is not a variable name; write $$ for a literal $ (set the variable in the environment of the gateway, or write ${VAR:-default})`,
	},
	"variable_in_list.toml": {
		`gateway.toml:5: rule[0].methods[1]: variable NOT_SET is not set (set the variable in the environment of the gateway, or write ${VAR:-default})`,
	},
	"variable_set_but_empty.toml": {
		`gateway.toml:9: profile.azure.client_id: is missing (give the client's id at the provider)`,
	},
	"variable_unset.toml": {
		`gateway.toml:10: profile.azure.client_secret: variable NOT_SET is not set (set the variable in the environment of the gateway, or write ${VAR:-default})`,
	},
	"variable_unset_url.toml": {
		`gateway.toml:3: rule[0].url: variable NOT_SET is not set (set the variable in the environment of the gateway, or write ${VAR:-default})`,
	},
	"variable_unterminated.toml": {
		`gateway.toml:9: profile.azure.client_id: ${ without }; write $$ for a literal $ (set the variable in the environment of the gateway, or write ${VAR:-default})`,
	},
}

func TestEachMistakeIsNamed(t *testing.T) {
	files, err := filepath.Glob("testdata/invalid/*.toml")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(invalid) {
		t.Errorf("%d files in testdata/invalid, %d rows", len(files), len(invalid))
	}
	for _, file := range files {
		name := filepath.Base(file)
		t.Run(strings.TrimSuffix(name, ".toml"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			path := writeConfig(t, string(text))
			dir := filepath.Dir(path) + string(filepath.Separator)
			write(t, dir+"empty", "", 0o600)
			write(t, dir+"secret", "s3cr3t\n", 0o600)
			c, err := Load(path, variables)
			if c != nil || err == nil {
				t.Fatalf("got %+v, %v, want an error", c, err)
			}
			if strings.Contains(err.Error(), "s3cr3t") {
				t.Errorf("the error shows a secret: %v", err)
			}
			said := strings.Split(strings.NewReplacer(dir, "", strings.Join(token.Types(), ", "), "TYPES").Replace(err.Error()), "\n")
			if diff := cmp.Diff(invalid[name], said); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// A list in another order at each try cannot be worked off.
func TestProblemsComeInTheSameOrderEachTime(t *testing.T) {
	text, err := os.ReadFile("testdata/invalid/profile_params_reserved.toml")
	if err != nil {
		t.Fatal(err)
	}
	path := writeConfig(t, string(text))
	_, first := Load(path, variables)
	for range 30 {
		if _, err := Load(path, variables); err.Error() != first.Error() {
			t.Fatalf("got\n%v\nthen\n%v", first, err)
		}
	}
}
