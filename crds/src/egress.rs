//! What the sandboxes of a session may reach, and with which credentials: what the operator configures a proxy with, and the
//! session service binds sandboxes by. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::sandbox_template::{Egress, NetworkSpec};
use crate::session_resource::SessionResource;
use crate::vault::{
    Allow, CredentialSpec, InjectionLocation, Method, Placement, PlacementKind, PrivateAddresses, Scheme, Variable,
    VaultSpec,
};

/// Every host with a public address.
pub const ANY: &str = "*";

/// Where public package managers get packages from: of `allowPackageManagers`.
pub const PACKAGE_HOSTS: [&str; 23] = [
    "archive.ubuntu.com",
    "crates.io",
    "deb.debian.org",
    "dl-cdn.alpinelinux.org",
    "files.pythonhosted.org",
    "index.crates.io",
    "index.rubygems.org",
    "ports.ubuntu.com",
    "proxy.golang.org",
    "pypi.org",
    "registry.npmjs.org",
    "registry.yarnpkg.com",
    "repo.maven.apache.org",
    "repo1.maven.org",
    "rubygems.org",
    "security.debian.org",
    "security.ubuntu.com",
    "services.gradle.org",
    "static.crates.io",
    "static.rust-lang.org",
    "sum.golang.org",
    "plugins.gradle.org",
    "repo.packagist.org",
];

/// The hosts that `network` allows; `mcp` are those of the session's MCP servers.
#[must_use]
pub fn hosts(network: &NetworkSpec, mcp: &[String]) -> BTreeSet<String> {
    if network.egress == Egress::Unrestricted {
        return BTreeSet::from([ANY.to_owned()]);
    }
    let named = network.allowed_hosts.iter().map(|host| normal(host));
    let servers = mcp.iter().filter(|_| network.allow_mcp_servers).map(|host| normal(host));
    let packages = PACKAGE_HOSTS.iter().filter(|_| network.allow_package_managers).map(|host| (*host).to_owned());
    named.chain(servers).chain(packages).collect()
}

/// The hosts that a sandbox may reach: those of its template, and of them only what the session leaves.
#[must_use]
pub fn reach(template: Option<&NetworkSpec>, session: Option<&NetworkSpec>, mcp: &[String]) -> BTreeSet<String> {
    let template = template.map(|network| hosts(network, mcp)).unwrap_or_default();
    match session {
        None => template,
        Some(network) => both(&template, &hosts(network, mcp)),
    }
}

/// The names that are in both sets.
fn both(left: &BTreeSet<String>, right: &BTreeSet<String>) -> BTreeSet<String> {
    let narrower = |left: &String, right: &String| {
        if covers(left, right) { Some(right.clone()) } else { covers(right, left).then(|| left.clone()) }
    };
    left.iter().flat_map(|one| right.iter().filter_map(move |other| narrower(one, other))).collect()
}

/// Whether every name that `inner` stands for is one of `outer`.
fn covers(outer: &str, inner: &str) -> bool {
    if outer == inner || outer == ANY {
        return true;
    }
    let below = outer.strip_prefix('*');
    let name = inner.strip_prefix('*').unwrap_or(inner);
    below.is_some_and(|below| name.len() > below.len() && name.ends_with(below))
}

fn normal(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

/// The credentials of a vault that sandboxes see a placeholder of.
pub fn placeholders(vault: &VaultSpec) -> impl Iterator<Item = &CredentialSpec> {
    let live = vault.credentials.iter().filter(|credential| credential.archived_at.is_none());
    live.filter(|credential| !credential.placement.variables().is_empty())
}

/// What stands in the place of a vault's name for the tokens of a session's repositories. No vault can have this name.
pub const OF_RESOURCES: &str = ".resources";

/// The credential that the token of a session's repository is: for that repository alone, over HTTP Basic. None without a
/// token, or with a URL of which it cannot be said where the token would go.
#[must_use]
pub fn of_repository(resource: &SessionResource) -> Option<CredentialSpec> {
    let repository = resource.github_repository.as_ref()?;
    let secret_ref = repository.token_ref.clone()?;
    let (host, port, path) = repository_parts(&repository.url)?;
    Some(CredentialSpec {
        name: resource.name.clone(),
        id: None,
        display_name: None,
        metadata: BTreeMap::new(),
        secret_ref,
        allow: Allow {
            scheme: Scheme::Https,
            hosts: vec![host],
            port,
            methods: vec![Method::Get, Method::Post],
            path_prefixes: vec![path],
            private_addresses: PrivateAddresses::Refuse,
        },
        placement: Placement {
            // No process finds it under this name: it is in the configuration of the repository.
            variable: Some(Variable { name: "TOKEN".to_owned(), locations: vec![InjectionLocation::Header] }),
            ..Placement::of(PlacementKind::EnvironmentVariable)
        },
        mcp_server_url: None,
        model_base_url: None,
        oauth: None,
        created_at: None,
        updated_at: None,
        archived_at: None,
    })
}

/// Host, port and path of a repository, if they are plain.
fn repository_parts(url: &str) -> Option<(String, Option<i32>, String)> {
    let (authority, path) = url.strip_prefix("https://")?.split_once('/')?;
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(i32::from(port.parse::<u16>().ok().filter(|port| *port > 0)?))),
        None => (authority, None),
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let path = path.trim_end_matches('/');
    let whole = path.split('/').all(|part| !matches!(part, "" | "." | "..") && part.bytes().all(plain));
    let named = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    (whole && named).then(|| (normal(host), port, format!("/{path}")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{PACKAGE_HOSTS, of_repository, placeholders, reach};
    use crate::sandbox_template::NetworkSpec;

    #[rstest]
    #[case("https://github.com/o/r.git", Some(("github.com", None, "/o/r.git")))]
    #[case("https://Git.Test:8443/a/b/c/", Some(("git.test", Some(8443), "/a/b/c")))]
    #[case("https://github.com/", None)]
    #[case("https://github.com", None)]
    #[case("http://github.com/o/r", None)]
    #[case("https://me@github.com/o/r", None)]
    #[case("https://github.com:0/o/r", None)]
    #[case("https://github.com/o/../r", None)]
    #[case("https://github.com/o//r", None)]
    #[case("https://github.com/o/r?x=1", None)]
    #[case("https://*/o/r", None)]
    fn a_token_goes_to_its_repository_alone(#[case] url: &str, #[case] parts: Option<(&str, Option<i32>, &str)>) {
        let resource = |token: Value| {
            let repository = json!({"url": url, "tokenRef": token});
            serde_json::from_value(json!({"name": "r", "mountPath": "/w/r", "githubRepository": repository})).unwrap()
        };
        assert_eq!(of_repository(&resource(json!(null))), None);
        let credential = of_repository(&resource(json!({"name": "s", "key": "token"})));
        let allow = credential.map(|credential| credential.allow);
        let seen = allow.as_ref().map(|allow| (allow.hosts[0].as_str(), allow.port, allow.path_prefixes[0].as_str()));
        assert_eq!(seen, parts);
    }

    fn network(value: Value) -> NetworkSpec {
        serde_json::from_value(value).unwrap()
    }

    fn named(hosts: &[&str]) -> NetworkSpec {
        network(json!({ "allowedHosts": hosts }))
    }

    #[rstest]
    #[case(&["a.test", "b.test"], &["b.test", "c.test"], &["b.test"])]
    #[case(&["*.test"], &["a.test", "test", "a.other"], &["a.test"])]
    #[case(&["a.b.test"], &["*.test"], &["a.b.test"])]
    #[case(&["*.test"], &["*.b.test"], &["*.b.test"])]
    #[case(&["*"], &["A.test."], &["a.test"])]
    #[case(&["*.b.test"], &["*.c.test"], &[])]
    #[case(&["*.test"], &["a.besttest"], &[])]
    #[case(&["a.test"], &[], &[])]
    fn a_session_narrows_and_never_widens(#[case] template: &[&str], #[case] session: &[&str], #[case] left: &[&str]) {
        let expected: BTreeSet<String> = left.iter().map(|host| (*host).to_owned()).collect();
        assert_eq!(reach(Some(&named(template)), Some(&named(session)), &[]), expected);
        assert_eq!(reach(Some(&named(session)), Some(&named(template)), &[]), expected, "in either order");
    }

    #[test]
    fn what_is_not_said_is_not_allowed() {
        assert!(reach(None, None, &[]).is_empty());
        assert!(reach(None, Some(&network(json!({ "egress": "Unrestricted" }))), &[]).is_empty());
        assert!(reach(Some(&network(json!({}))), None, &["mcp.test".to_owned()]).is_empty());
    }

    #[test]
    fn presets_are_hosts() {
        let all = network(json!({ "allowMCPServers": true, "allowPackageManagers": true }));
        let mcp = ["mcp.test".to_owned()];
        assert_eq!(reach(Some(&all), None, &mcp).len(), PACKAGE_HOSTS.len() + 1);
        let open = network(json!({ "egress": "Unrestricted" }));
        assert_eq!(reach(Some(&open), None, &mcp), BTreeSet::from(["*".to_owned()]));
        assert_eq!(reach(Some(&open), Some(&all), &mcp).len(), PACKAGE_HOSTS.len() + 1);
    }

    #[test]
    fn only_live_variables_have_placeholders() {
        let credential = |name: &str, placement: Value, archived: Option<&str>| {
            json!({
                "name": name, "secretRef": {"name": "s", "key": "k"}, "allow": {"hosts": ["a.test"]},
                "placement": placement, "archivedAt": archived,
            })
        };
        let variable = json!({"type": "environmentVariable", "variable": {"name": "T", "locations": ["header"]}});
        let vault = serde_json::from_value(json!({ "credentials": [
            credential("one", variable.clone(), None),
            credential("two", json!({"type": "bearer"}), None),
            credential("three", variable, Some("2026-01-01T00:00:00Z")),
            credential("four", json!({"type": "aws", "aws": {"accessKeyIDKey": "id"}}), None),
        ]}))
        .unwrap();
        assert_eq!(placeholders(&vault).map(|one| one.name.as_str()).collect::<Vec<_>>(), ["one", "four"]);
    }
}
