//! Endpoints that are known to hand out other credentials for the one that is placed. What they answer could not be scrubbed,
//! since nobody knows it before, and would be good for more than the binding allows. Pure.

use http::Method;

use super::endpoints::{Endpoint, Meaning};

const POST: &[Method] = &[Method::POST];
const WRITE: &[Method] = &[Method::POST, Method::PUT, Method::PATCH];
const ANY: &[Method] = &[];

const OAUTH: &str = "an OAuth token endpoint";
const TOKENS: &str = "it makes access tokens";
const ACCOUNT_KEYS: &str = "it hands out the account's keys";
const RUNNERS: &str = "it makes tokens for runners";
const REGISTRY: &str = "it makes tokens for the registry";

/// Each with the methods that count, and what it does.
const ENDPOINTS: &[(&[Method], &str, &str)] = &[
    // OAuth 2.0: RFC 6749, 3.2; the device grant: RFC 8628, 3.1. Also Microsoft Entra's /{tenant}/oauth2/v2.0/token
    // (learn.microsoft.com/entra/identity-platform/v2-oauth2-auth-code-flow) and Kubernetes' serviceaccounts/{name}/token
    // (kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-request-v1).
    (WRITE, "**/token", OAUTH),
    (ANY, "**/oauth/access_token", OAUTH),
    (ANY, "**/oauth2/access_token", OAUTH),
    (ANY, "**/oauth/device_token", OAUTH),
    (ANY, "**/device/code", OAUTH),
    (ANY, "**/devicecode", OAUTH),
    // Slack: docs.slack.dev/reference/methods/oauth.v2.access, tooling.tokens.rotate.
    (ANY, "**/oauth.access", OAUTH),
    (ANY, "**/oauth.v2.access", OAUTH),
    (ANY, "**/openid.connect.token", OAUTH),
    (ANY, "**/tooling.tokens.rotate", OAUTH),
    // Container registries are asked by GET: distribution.github.io/distribution/spec/auth/token. Quay's realm is /v2/auth,
    // GitLab's /jwt/auth (docs.gitlab.com/administration/packages/container_registry), Artifactory's below
    // /artifactory/api/docker/{repository}, and Azure's exchange is at github.com/Azure/acr/blob/main/docs/AAD-OAuth.md.
    (ANY, "token", OAUTH),
    (ANY, "*/token", OAUTH),
    (ANY, "**/v2/token", OAUTH),
    (ANY, "v2/auth", OAUTH),
    (ANY, "**/jwt/auth", OAUTH),
    (ANY, "**/oauth2/exchange", OAUTH),
    // Docker Hub: docs.docker.com/reference/api/hub/latest.
    (WRITE, "v2/users/login", "it logs in"),
    (WRITE, "v2/access-tokens", TOKENS),
    // GitHub and those that speak like it: docs.github.com/rest/apps/apps, /rest/apps/oauth-applications, /rest/actions/self-hosted-runners,
    // /rest/users/keys, /rest/deploy-keys.
    (POST, "**/access_tokens", TOKENS),
    (WRITE, "**/authorizations", TOKENS),
    (WRITE, "**/authorizations/clients/*", TOKENS),
    (WRITE, "**/applications/*/token/scoped", TOKENS),
    (POST, "**/registration-token", RUNNERS),
    (POST, "**/remove-token", RUNNERS),
    (POST, "**/generate-jitconfig", RUNNERS),
    (POST, "**/user/keys", "it adds a key to the account"),
    (POST, "**/user/gpg_keys", "it adds a key to the account"),
    (POST, "**/repos/*/*/keys", "it adds a key to the repository"),
    (POST, "**/app-manifests/*/conversions", "it hands out an application's keys"),
    // GitLab: docs.gitlab.com/api/personal_access_tokens, project_access_tokens, deploy_tokens, users, runners, pipeline_triggers,
    // cluster_agents. Gitea: docs.gitea.com/development/api-usage.
    (POST, "**/personal_access_tokens", TOKENS),
    (POST, "**/personal_access_tokens/*/rotate", TOKENS),
    (POST, "**/access_tokens/*/rotate", TOKENS),
    (POST, "**/impersonation_tokens", TOKENS),
    (POST, "**/deploy_tokens", "it makes deploy tokens"),
    (POST, "**/deploy_keys", "it adds a key to the repository"),
    (POST, "**/users/*/tokens", TOKENS),
    (POST, "**/projects/*/triggers", "it makes tokens for pipelines"),
    (POST, "**/cluster_agents/*/tokens", TOKENS),
    (POST, "**/user/runners", RUNNERS),
    (POST, "**/reset_authentication_token", RUNNERS),
    (POST, "**/reset_registration_token", RUNNERS),
    // Package registries: github.com/npm/registry/blob/main/docs, docs.pypi.org/trusted-publishers/using-a-publisher,
    // doc.rust-lang.org/cargo/reference/registry-web-api.html, guides.rubygems.org/rubygems-org-api,
    // jfrog.com/help/r/jfrog-rest-apis (access tokens).
    (WRITE, "**/-/npm/v1/tokens", REGISTRY),
    (ANY, "**/-/npm/v1/oidc/token/exchange/**", REGISTRY),
    (WRITE, "**/-/user/*", "it logs in to the registry"),
    (ANY, "**/-/v1/login", "it logs in to the registry"),
    (ANY, "**/mint-token", REGISTRY),
    (WRITE, "**/api/v1/me/tokens", REGISTRY),
    (WRITE, "**/trusted_publishing/tokens", REGISTRY),
    (ANY, "api/v1/api_key", REGISTRY),
    (WRITE, "**/access/api/v1/tokens", REGISTRY),
    // Google: docs.cloud.google.com/iam/docs/reference/credentials/rest, and /iam/docs/reference/rest/v1/projects.serviceAccounts.keys/create.
    (ANY, "**/*:generateaccesstoken", TOKENS),
    (ANY, "**/*:generateidtoken", TOKENS),
    (ANY, "**/*:signblob", "it signs as the account"),
    (ANY, "**/*:signjwt", "it signs as the account"),
    (WRITE, "**/serviceaccounts/*/keys", ACCOUNT_KEYS),
    (WRITE, "**/serviceaccounts/*/keys:upload", "it adds a key to the account"),
    // Azure: learn.microsoft.com/rest/api/storagerp/storage-accounts/list-keys, /rest/api/containerregistry/registries/list-credentials,
    // /rest/api/aks/managed-clusters/list-cluster-admin-credentials. Graph: learn.microsoft.com/graph/api/application-addpassword.
    (ANY, "**/listkeys", ACCOUNT_KEYS),
    (ANY, "**/regeneratekey", ACCOUNT_KEYS),
    (ANY, "**/listaccountsas", ACCOUNT_KEYS),
    (ANY, "**/listservicesas", ACCOUNT_KEYS),
    (ANY, "**/listcredentials", ACCOUNT_KEYS),
    (ANY, "**/regeneratecredential", ACCOUNT_KEYS),
    (ANY, "**/generatecredentials", ACCOUNT_KEYS),
    (ANY, "**/listclusteradmincredential", ACCOUNT_KEYS),
    (ANY, "**/listclusterusercredential", ACCOUNT_KEYS),
    (POST, "**/addpassword", "it adds a password to an application"),
    (POST, "**/addkey", "it adds a key to an application"),
    // OpenStack Keystone: docs.openstack.org/api-ref/identity/v3, and v2-ext.
    (ANY, "**/v3/auth/tokens", TOKENS),
    (POST, "**/v2.0/tokens", TOKENS),
    (POST, "**/users/*/application_credentials", TOKENS),
    (POST, "**/users/*/credentials/os-ec2", ACCOUNT_KEYS),
    // HashiCorp Vault: developer.hashicorp.com/vault/api-docs/auth/token, auth/userpass, auth/approle.
    (WRITE, "**/auth/token/create", "it makes tokens"),
    (WRITE, "**/auth/token/create/*", "it makes tokens"),
    (WRITE, "**/auth/token/create-orphan", "it makes tokens"),
    (WRITE, "**/auth/*/login", "it logs in"),
    (WRITE, "**/auth/*/login/*", "it logs in"),
    (WRITE, "**/auth/*/role/*/secret-id", "it makes tokens"),
    // Cloudflare: developers.cloudflare.com/api/resources/user/subresources/tokens. OpenAI:
    // platform.openai.com/docs/api-reference/realtime-sessions, /admin-api-keys, /project-service-accounts.
    (WRITE, "client/v4/user/tokens", TOKENS),
    (WRITE, "client/v4/user/tokens/*/value", TOKENS),
    (WRITE, "client/v4/accounts/*/tokens", TOKENS),
    (WRITE, "client/v4/accounts/*/tokens/*/value", TOKENS),
    (WRITE, "**/realtime/client_secrets", TOKENS),
    (WRITE, "**/realtime/sessions", TOKENS),
    (WRITE, "**/organization/admin_api_keys", ACCOUNT_KEYS),
    (WRITE, "**/organization/projects/*/service_accounts", ACCOUNT_KEYS),
];

/// Hosts that do nothing else: docs.aws.amazon.com/general/latest/gr/sts.html, and Google's as above.
const HOSTS: &[(&str, &str)] = &[
    ("sts.", "a security token service"),
    ("sts-fips.", "a security token service"),
    ("iamcredentials.", "a service that makes tokens"),
];

/// Packages may be named like an endpoint: npm's are asked for at `/@{scope}/{name}` (github.com/npm/registry/blob/main/docs/REGISTRY-API.md),
/// those of Python at `/simple/{name}/` (packaging.python.org/en/latest/specifications/simple-repository-api).
fn is_package(meaning: &Meaning, method: &Method) -> bool {
    let mut segments = meaning.segments();
    let below = segments.next().is_some_and(|first| first.starts_with('@') || first == "simple");
    below && segments.count() == 1 && [Method::GET, Method::HEAD].contains(method)
}

/// What an endpoint hands out, if it is known to. A path counts by what a lenient server could take it for.
#[must_use]
pub fn minted_at(host: &str, method: &Method, path: &str) -> Option<&'static str> {
    let meaning = Meaning::of(path);
    let of_host = HOSTS.iter().find(|(prefix, _)| host.starts_with(prefix)).map(|(_, what)| *what);
    let of_path = || {
        if is_package(&meaning, method) {
            return None;
        }
        let mut endpoints = ENDPOINTS.iter();
        endpoints.find(|&&(methods, path, _)| meaning.is(&Endpoint { methods, path }, method)).map(|(_, _, what)| *what)
    };
    of_host.or_else(of_path)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("auth.example", "POST", "/oauth/token", true)]
    #[case("auth.example", "POST", "/oauth/token.json", true)]
    #[case("auth.example", "POST", "/oauth2/v2.0/token", true)]
    #[case("auth.example", "GET", "/token", true)]
    #[case("auth.example", "GET", "/service/token", true)]
    #[case("npm.pkg.github.com", "GET", "/@acme%2ftoken", false)]
    #[case("npm.pkg.github.com", "POST", "/@acme%2ftoken", true)]
    #[case("pypi.example", "GET", "/simple/token/", false)]
    #[case("pypi.example", "GET", "/simple/x/oauth/access_token", true)]
    #[case("login.microsoftonline.com", "POST", "/tenant/oauth2/v2.0/devicecode", true)]
    #[case("quay.io", "GET", "/v2/auth", true)]
    #[case("gitlab.example", "GET", "/jwt/auth", true)]
    #[case("jfrog.example", "GET", "/artifactory/api/docker/images/v2/token", true)]
    #[case("registry.example", "GET", "/v2/library/token/manifests/latest", false)]
    #[case("registry.example", "GET", "/v2/", false)]
    #[case("slack.com", "POST", "/api/oauth.v2.access", true)]
    #[case("slack.com", "POST", "/api/chat.postMessage", false)]
    #[case("github.com", "POST", "/login/oauth/access_token", true)]
    #[case("github.com", "POST", "/login/oauth%2Faccess_token", true)]
    #[case("github.com", "POST", "/login/oauth/%2561ccess_token", true)]
    #[case("github.com", "POST", "/login//oauth/Access_Token/", true)]
    #[case("api.github.com", "POST", "/app/installations/1/access_tokens", true)]
    #[case("api.github.com", "GET", "/app/installations/1/access_tokens", false)]
    #[case("api.github.com", "GET", "/repos/a/b/issues", false)]
    #[case("api.github.com", "POST", "/repos/a/b/actions/runners/registration-token", true)]
    #[case("gitlab.example", "POST", "/api/v4/users/1/personal_access_tokens", true)]
    #[case("gitlab.example", "POST", "/api/v4/users/1/personal_access_tokens.json", true)]
    #[case("gitlab.example", "POST", "/api/v4/projects/1/access_tokens/2/rotate", true)]
    #[case("gitlab.example", "POST", "/api/v4/projects/1/triggers", true)]
    #[case("gitlab.example", "POST", "/api/v4/projects/1/trigger/pipeline", false)]
    #[case("registry.npmjs.org", "PUT", "/-/user/org.couchdb.user:x", true)]
    #[case("registry.npmjs.org", "POST", "/-/npm/v1/tokens", true)]
    #[case("registry.npmjs.org", "POST", "/-/npm/v1/oidc/token/exchange/package/x", true)]
    #[case("registry.npmjs.org", "GET", "/tokens", false)]
    #[case("pypi.org", "POST", "/_/oidc/mint-token", true)]
    #[case("upload.pypi.org", "POST", "/legacy/", false)]
    #[case("crates.io", "PUT", "/api/v1/me/tokens", true)]
    #[case("crates.io", "PUT", "/api/v1/crates/new", false)]
    #[case("sts.eu-west-1.amazonaws.com", "POST", "/", true)]
    #[case("s3.amazonaws.com", "GET", "/bucket/key", false)]
    #[case("iam.googleapis.com", "POST", "/v1/projects/-/serviceAccounts/x:generateAccessToken", true)]
    #[case("iam.googleapis.com", "POST", "/v1/projects/p/serviceAccounts/x/keys", true)]
    #[case("iam.googleapis.com", "GET", "/v1/projects/p/serviceAccounts/x/keys", false)]
    #[case("iamcredentials.googleapis.com", "POST", "/v1/projects/-/serviceAccounts/x:signJwt", true)]
    #[case("keystone.example", "POST", "/v3/auth/tokens", true)]
    #[case("keystone.example", "POST", "/identity/v3/auth/tokens", true)]
    #[case("keystone.example", "GET", "/v3/projects", false)]
    #[case("management.azure.com", "POST", "/subscriptions/1/providers/x/storageAccounts/y/listKeys", true)]
    #[case("graph.microsoft.com", "POST", "/v1.0/applications/1/addPassword", true)]
    #[case("vault.example", "POST", "/v1/auth/userpass/login/me", true)]
    #[case("api.openai.com", "POST", "/v1/realtime/client_secrets", true)]
    #[case("api.openai.com", "POST", "/v1/responses", false)]
    #[case("github.com", "GET", "/a/b.git/info/refs", false)]
    #[case("github.com", "POST", "/a/b.git/git-receive-pack", false)]
    fn endpoints(#[case] host: &str, #[case] method: Method, #[case] path: &str, #[case] expected: bool) {
        assert_eq!(minted_at(host, &method, path).is_some(), expected);
    }
}
