package orthancjson

import (
	"fmt"
	"strings"
)

// knownKeys are those that are read, to tell which one a misspelt one was.
var knownKeys = []string{
	"Url", "TokenEndpoint", "ClientId", "ClientSecret", "Scope", "Audience", "TokenRefreshBufferSeconds", "VerifySSL", "Provider", "ProviderType",
	"UseManagedIdentity", "TenantId", "Region", "Project", "Location", "Dataset", "DicomStore", "ServiceAccountFile", "AuthorizedUserFile",
	"AuthorizedUserClientId", "AuthorizedUserClientSecret", "AuthorizedUserRefreshToken", "Accounts", "BaseUrl", "Servers",
}

// googlePlugin converts the section of Orthanc's Google Cloud Platform plugin
// (Orthanc Book, "Google Cloud Platform plugin").
func (c *converter) googlePlugin(section *object) {
	base, _ := c.text(section, "BaseUrl")
	if base == "" {
		base = "https://healthcare.googleapis.com/v1/"
	}
	if !strings.HasSuffix(base, "/") {
		base += "/"
	}
	accounts := c.object(section, "Accounts")
	if accounts == nil {
		if len(c.problems) == 0 {
			c.problem(section.key("Accounts"), "is missing", "add it, or remove the section")
		}
		return
	}
	c.sectionRest(section, nil)
	for _, name := range accounts.keys {
		if account := c.object(accounts, name); account != nil {
			c.googleAccount(name, account, base)
		} else if accounts.values[name] == nil {
			c.problem(accounts.key(name), "is null", "write the account as {...}")
		}
	}
}

func (c *converter) googleAccount(name string, o *object, base string) {
	b := c.begin(name, o)
	project, _ := c.required(o, "Project")
	location, _ := c.required(o, "Location")
	dataset, _ := c.required(o, "Dataset")
	store, _ := c.required(o, "DicomStore")
	b.setURL("", fmt.Sprintf("%sprojects/%s/locations/%s/datasets/%s/dicomStores/%s/dicomWeb/", base, project, location, dataset, store))
	for _, part := range []string{project, location, dataset, store} {
		if strings.Contains(part, "/") && !hasVariable(part) {
			b.turnOff("", fmt.Sprintf("%q has a slash; Project, Location, Dataset and DicomStore are names", part))
		}
	}
	// The plugin takes the first of the three that is there.
	user := []string{"AuthorizedUserClientId", "AuthorizedUserClientSecret", "AuthorizedUserRefreshToken"}
	less := "AuthorizedUserFile"
	if path, key := c.text(o, "ServiceAccountFile"); path != "" {
		b.profile.set("type", quote("google_service_account"))
		b.file(&b.profile, key, "credentials_file", path)
		b.restInstead(key, append(user, less))
		return
	}
	if path, key := c.text(o, "AuthorizedUserFile"); path != "" {
		b.profile.set("type", quote("google_authorized_user"))
		b.decide(&b.profile, key, `the file must have "type": "authorized_user"; one that "gcloud auth print-access-token" wrote may not, `+
			`one of "gcloud auth application-default login" has it`)
		b.file(&b.profile, key, "credentials_file", path)
		b.restInstead(key, user)
		return
	}
	id, _ := c.text(o, user[0])
	secret, _ := c.text(o, user[1])
	refresh, _ := c.text(o, user[2])
	if id == "" || secret == "" || refresh == "" {
		c.problem(o.path, "has no credential", "give ServiceAccountFile, AuthorizedUserFile, or all three of "+strings.Join(user, ", "))
		return
	}
	b.profile.set("type", quote("google_authorized_user"))
	b.profile.set("client_id", c.value(id))
	b.secret(user[1], "client_secret", secret)
	b.secret(user[2], "refresh_token", refresh)
	b.rest(nil)
}

// restInstead notes the keys that nobody has read, credentials that lose
// against the one at key among them.
func (b *block) restInstead(key string, credentials []string) {
	why := map[string]string{}
	for _, k := range credentials {
		why[k] = "was not taken over: " + key + " goes before it, as in the plugin"
	}
	b.rest(why)
}

// sectionRest notes the settings of a whole section.
func (c *converter) sectionRest(section *object, why map[string]string) {
	for _, key := range section.unread() {
		if reason := why[key]; reason != "" {
			c.note(section.key(key), reason)
			c.global.comment(section.key(key) + " " + reason)
			continue
		}
		c.note(section.key(key), unknown(key))
		c.global.comment("decide: in " + section.path + " " + unknown(key))
	}
}
