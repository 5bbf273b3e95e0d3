//! Endpoints that are known to hand out other credentials for the one that is placed. What they answer could not be scrubbed,
//! since nobody knows it before, and would be good for more than the binding allows. Pure.

use http::Method;

use super::placeholder::percent_decode;

/// A pattern of paths: `*` is one segment, `**` at the beginning any number of them.
struct Endpoint {
    host: Option<&'static str>,
    /// None: any method.
    methods: &'static [Method],
    path: &'static str,
    what: &'static str,
}

const POST: &[Method] = &[Method::POST];
const WRITE: &[Method] = &[Method::POST, Method::PUT, Method::PATCH];
const ANY: &[Method] = &[];

const fn on_any(methods: &'static [Method], path: &'static str, what: &'static str) -> Endpoint {
    Endpoint { host: None, methods, path, what }
}

const OAUTH: &str = "an OAuth token endpoint";
const ENDPOINTS: &[Endpoint] = &[
    on_any(WRITE, "**/token", OAUTH),
    // Those of container registries are asked by GET.
    on_any(ANY, "token", OAUTH),
    on_any(ANY, "*/token", OAUTH),
    on_any(ANY, "**/oauth/access_token", OAUTH),
    on_any(ANY, "**/oauth/device_token", OAUTH),
    on_any(ANY, "**/oauth2/exchange", OAUTH),
    on_any(ANY, "**/device/code", OAUTH),
    // GitHub and those that speak like it.
    on_any(POST, "**/access_tokens", "it makes access tokens"),
    on_any(WRITE, "**/authorizations", "it makes access tokens"),
    on_any(WRITE, "**/authorizations/clients/*", "it makes access tokens"),
    on_any(WRITE, "**/applications/*/token/scoped", "it makes access tokens"),
    on_any(POST, "**/registration-token", "it makes tokens for runners"),
    on_any(POST, "**/remove-token", "it makes tokens for runners"),
    on_any(POST, "**/generate-jitconfig", "it makes tokens for runners"),
    on_any(POST, "**/user/keys", "it adds a key to the account"),
    on_any(POST, "**/user/gpg_keys", "it adds a key to the account"),
    on_any(POST, "**/repos/*/*/keys", "it adds a key to the repository"),
    on_any(POST, "**/app-manifests/*/conversions", "it hands out an application's keys"),
    // GitLab, Gitea.
    on_any(POST, "**/personal_access_tokens", "it makes access tokens"),
    on_any(POST, "**/personal_access_tokens/*/rotate", "it makes access tokens"),
    on_any(POST, "**/access_tokens/*/rotate", "it makes access tokens"),
    on_any(POST, "**/impersonation_tokens", "it makes access tokens"),
    on_any(POST, "**/deploy_tokens", "it makes deploy tokens"),
    on_any(POST, "**/deploy_keys", "it adds a key to the repository"),
    on_any(POST, "**/users/*/tokens", "it makes access tokens"),
    on_any(POST, "**/user/runners", "it makes tokens for runners"),
    on_any(POST, "**/reset_authentication_token", "it makes tokens for runners"),
    on_any(POST, "**/reset_registration_token", "it makes tokens for runners"),
    // Package registries.
    on_any(WRITE, "**/-/npm/v1/tokens", "it makes tokens for the registry"),
    on_any(ANY, "**/-/npm/v1/oidc/token/exchange/**", "it makes tokens for the registry"),
    on_any(WRITE, "**/-/user/*", "it logs in to the registry"),
    on_any(ANY, "**/-/v1/login", "it logs in to the registry"),
    on_any(ANY, "**/mint-token", "it makes tokens for the registry"),
    on_any(WRITE, "**/api/v1/me/tokens", "it makes tokens for the registry"),
    on_any(WRITE, "**/trusted_publishing/tokens", "it makes tokens for the registry"),
    // Clouds.
    on_any(ANY, "**/*:generateaccesstoken", "it makes access tokens"),
    on_any(ANY, "**/*:generateidtoken", "it makes access tokens"),
    on_any(ANY, "**/*:signblob", "it signs as the account"),
    on_any(ANY, "**/*:signjwt", "it signs as the account"),
    on_any(ANY, "**/listkeys", "it hands out the account's keys"),
    on_any(ANY, "**/regeneratekey", "it hands out the account's keys"),
    on_any(WRITE, "**/auth/token/create", "it makes tokens"),
    on_any(WRITE, "**/auth/*/login", "it logs in"),
    Endpoint { host: Some("sts."), methods: ANY, path: "**", what: "a security token service" },
    Endpoint { host: Some("sts-fips."), methods: ANY, path: "**", what: "a security token service" },
    Endpoint { host: Some("iamcredentials."), methods: ANY, path: "**", what: "a service that makes tokens" },
];

/// What an endpoint hands out, if it is known to. A path counts by what a lenient server could take it for.
#[must_use]
pub fn minted_at(host: &str, method: &Method, path: &str) -> Option<&'static str> {
    let decoded = percent_decode(path.as_bytes()).to_ascii_lowercase();
    let decoded = String::from_utf8_lossy(&decoded).replace('\\', "/");
    let segments: Vec<&str> = decoded
        .split('/')
        .map(|segment| segment.split(';').next().unwrap_or_default())
        .filter(|segment| !segment.is_empty())
        .collect();
    ENDPOINTS
        .iter()
        .find(|endpoint| {
            endpoint.host.is_none_or(|prefix| host.starts_with(prefix))
                && (endpoint.methods.is_empty() || endpoint.methods.contains(method))
                && covers(&endpoint.path.split('/').collect::<Vec<_>>(), &segments)
        })
        .map(|endpoint| endpoint.what)
}

fn covers(pattern: &[&str], segments: &[&str]) -> bool {
    match pattern.split_first() {
        None => segments.is_empty(),
        Some((&"**", rest)) => (0..=segments.len()).any(|skipped| covers(rest, &segments[skipped..])),
        Some((part, rest)) => segments.split_first().is_some_and(|(segment, tail)| {
            let same = match part.strip_prefix('*') {
                Some(end) => segment.ends_with(end),
                None => part == segment,
            };
            same && covers(rest, tail)
        }),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("auth.example", "POST", "/oauth/token", true)]
    #[case("auth.example", "POST", "/oauth2/v2.0/token", true)]
    #[case("auth.example", "GET", "/token", true)]
    #[case("github.com", "POST", "/login/oauth/access_token", true)]
    #[case("github.com", "POST", "/login/oauth%2Faccess_token", true)]
    #[case("github.com", "POST", "/login//oauth/Access_Token/", true)]
    #[case("api.github.com", "POST", "/app/installations/1/access_tokens", true)]
    #[case("api.github.com", "GET", "/app/installations/1/access_tokens", false)]
    #[case("api.github.com", "GET", "/repos/a/b/issues", false)]
    #[case("api.github.com", "POST", "/repos/a/b/actions/runners/registration-token", true)]
    #[case("gitlab.example", "POST", "/api/v4/users/1/personal_access_tokens", true)]
    #[case("gitlab.example", "POST", "/api/v4/projects/1/access_tokens/2/rotate", true)]
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
    #[case("github.com", "GET", "/a/b.git/info/refs", false)]
    #[case("github.com", "POST", "/a/b.git/git-receive-pack", false)]
    fn endpoints(#[case] host: &str, #[case] method: Method, #[case] path: &str, #[case] expected: bool) {
        assert_eq!(minted_at(host, &method, path).is_some(), expected);
    }
}
