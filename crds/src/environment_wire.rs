//! A `SandboxTemplate` as the wire API has it, and back.

use longhand_protocol::wire::environments as wire;

use crate::sandbox_template::{Egress, NetworkSpec, Packages, SandboxTemplate, SandboxTemplateSpec};

impl SandboxTemplate {
    /// The name that people know it by.
    #[must_use]
    pub fn display_name(&self) -> &str {
        let own = self.spec.display_name.as_deref();
        own.or(self.metadata.name.as_deref()).unwrap_or_default()
    }
}

impl SandboxTemplateSpec {
    /// As the wire API shows it.
    #[must_use]
    pub fn wire_config(&self) -> wire::EnvironmentConfig {
        if self.self_hosted {
            return wire::EnvironmentConfig::SelfHosted;
        }
        let network = self.network.clone().unwrap_or_default();
        let networking = match network.egress {
            Egress::Unrestricted => wire::Networking::Unrestricted,
            Egress::Limited => wire::Networking::Limited {
                allowed_hosts: network.allowed_hosts,
                allow_mcp_servers: network.allow_mcp_servers,
                allow_package_managers: network.allow_package_managers,
            },
        };
        let Packages { apt, cargo, gem, go, npm, pip } = self.packages.clone().unwrap_or_default();
        let packages = wire::Packages { kind: wire::PackagesTag::Packages, apt, cargo, gem, go, npm, pip };
        wire::EnvironmentConfig::Cloud { networking, packages }
    }

    /// Takes over what a request says of the configuration; what it leaves out stays.
    pub fn set_wire_config(&mut self, config: wire::ConfigParam) {
        let (networking, packages) = match config {
            wire::ConfigParam::SelfHosted {} => {
                (self.self_hosted, self.network, self.packages) = (true, None, None);
                return;
            }
            wire::ConfigParam::Cloud { networking, packages } => (networking, packages),
        };
        self.self_hosted = false;
        if let Some(networking) = networking {
            self.network = Some(network(self.network.take(), networking));
        }
        if let Some(given) = packages {
            let mut all = self.packages.take().unwrap_or_default();
            let wire::PackagesParam { kind: _, apt, cargo, gem, go, npm, pip } = given;
            let managers = [
                (&mut all.apt, apt),
                (&mut all.cargo, cargo),
                (&mut all.gem, gem),
                (&mut all.go, go),
                (&mut all.npm, npm),
                (&mut all.pip, pip),
            ];
            for (kept, given) in managers {
                if let Some(given) = given {
                    *kept = given;
                }
            }
            self.packages = Some(all).filter(|all| *all != Packages::default());
        }
    }
}

fn network(old: Option<NetworkSpec>, given: wire::NetworkingParam) -> NetworkSpec {
    match given {
        wire::NetworkingParam::Unrestricted {} => {
            NetworkSpec { egress: Egress::Unrestricted, ..NetworkSpec::default() }
        }
        wire::NetworkingParam::Limited { allowed_hosts, allow_mcp_servers, allow_package_managers } => {
            let old = old.filter(|old| old.egress == Egress::Limited).unwrap_or_default();
            NetworkSpec {
                egress: Egress::Limited,
                allowed_hosts: allowed_hosts.unwrap_or(old.allowed_hosts),
                allow_mcp_servers: allow_mcp_servers.unwrap_or(old.allow_mcp_servers),
                allow_package_managers: allow_package_managers.unwrap_or(old.allow_package_managers),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    use crate::sandbox_template::SandboxTemplateSpec;

    /// What a template shows after these requests, each through the API server's JSON.
    fn after(requests: &[Value]) -> Value {
        let mut stored = json!({});
        for request in requests {
            let mut spec: SandboxTemplateSpec = serde_json::from_value(stored).unwrap();
            spec.set_wire_config(serde_json::from_value(request.clone()).unwrap());
            stored = serde_json::to_value(spec).unwrap();
        }
        let spec: SandboxTemplateSpec = serde_json::from_value(stored).unwrap();
        serde_json::to_value(spec.wire_config()).unwrap()
    }

    fn packages(pip: &[&str]) -> Value {
        json!({"type": "packages", "apt": [], "cargo": [], "gem": [], "go": [], "npm": [], "pip": pip})
    }

    fn limited(hosts: &[&str], mcp: bool, managers: bool) -> Value {
        json!({"type": "limited", "allowed_hosts": hosts, "allow_mcp_servers": mcp, "allow_package_managers": managers})
    }

    #[rstest]
    #[case::a_template_of_kubectl(&[], limited(&[], false, false), &[])]
    #[case::what_is_left_out_is_kept(
        &[json!({"type": "cloud", "networking": limited(&["a.test"], true, true), "packages": {"pip": ["p"]}}),
          json!({"type": "cloud", "networking": {"type": "limited", "allow_mcp_servers": false}, "packages": {"npm": []}})],
        limited(&["a.test"], false, true), &["p"])]
    #[case::nothing_is_kept_of_another_kind(
        &[json!({"type": "cloud", "networking": limited(&["a.test"], true, true)}),
          json!({"type": "cloud", "networking": {"type": "unrestricted"}}),
          json!({"type": "cloud", "networking": {"type": "limited"}})],
        limited(&[], false, false), &[])]
    #[case::back_from_self_hosted(
        &[json!({"type": "cloud", "networking": {"type": "unrestricted"}}), json!({"type": "self_hosted"}), json!({"type": "cloud"})],
        limited(&[], false, false), &[])]
    fn an_update_changes_what_it_names(#[case] requests: &[Value], #[case] networking: Value, #[case] pip: &[&str]) {
        assert_eq!(after(requests), json!({"type": "cloud", "networking": networking, "packages": packages(pip)}));
    }

    #[test]
    fn self_hosted_is_only_that() {
        let requests =
            [json!({"type": "cloud", "networking": {"type": "unrestricted"}}), json!({"type": "self_hosted"})];
        assert_eq!(after(&requests), json!({"type": "self_hosted"}));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_what_was_sent(
            hosts in prop::collection::vec("[a-z]{1,9}\\.test", 0..4),
            flags: [bool; 3],
            lists in prop::collection::vec(prop::collection::vec("[a-z]{1,9}(==[0-9.]{1,5})?", 0..3), 6),
        ) {
            let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
            let networking = if flags[0] { json!({"type": "unrestricted"}) } else { limited(&hosts, flags[1], flags[2]) };
            let mut all = packages(&[]);
            for (manager, list) in ["apt", "cargo", "gem", "go", "npm", "pip"].into_iter().zip(lists) {
                all[manager] = json!(list);
            }
            let sent = json!({"type": "cloud", "networking": networking, "packages": all});
            prop_assert_eq!(after(std::slice::from_ref(&sent)), sent);
        }
    }
}
