//! What the sandboxes of a session may reach, and with which credentials: what the operator configures a proxy with, and the
//! session service binds sandboxes by. Pure.

use std::collections::BTreeSet;

use crate::sandbox_template::{Egress, NetworkSpec};
use crate::vault::{CredentialSpec, VaultSpec};

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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{PACKAGE_HOSTS, placeholders, reach};
    use crate::sandbox_template::NetworkSpec;

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
