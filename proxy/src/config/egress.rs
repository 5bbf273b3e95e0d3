//! The part of the configuration that is about sandboxes.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

use longhand_protocol::SessionId;
use serde::Deserialize;

use super::{
    KeptIn, RawAllow, RouteProblem, checked_name,
    way_out::{RawUpstreamProxy, UpstreamProxy, UpstreamProxyProblem},
};
use crate::{
    hosts::HostPattern,
    policy::{Host, InvalidHost, Rule},
};

const MAX_SANDBOXES: usize = 64;
const MAX_HOSTS: usize = 512;
const MAX_BINDINGS: usize = 128;

/// What the sandboxes of the session may reach, and with which credentials.
#[derive(Debug, Clone)]
pub struct Egress {
    /// The session.
    pub session: SessionId,
    /// The session service's Ed25519 key: the base64 of its 32 bytes.
    pub verify_key: String,
    /// What each sandbox may reach, by its name in the session.
    pub sandboxes: BTreeMap<String, Network>,
    /// The credentials.
    pub bindings: Vec<Binding>,
    /// Where uses and refusals are put on record.
    pub audit: Audit,
    /// Through which proxy of the cluster's owner the internet is reached, if not directly; that of the whole configuration if
    /// the section names none.
    pub upstream_proxy: Option<UpstreamProxy>,
    /// Certificates in PEM that upstreams are known by, besides those of the system; those of the whole configuration if the
    /// section has none.
    pub ca: Option<String>,
}

/// What a sandbox may reach, besides the hosts of bindings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// Every host with a public address.
    pub unrestricted: bool,
    /// Hosts.
    pub hosts: Vec<HostPattern>,
}

impl Network {
    /// Whether the sandbox may reach a host without a credential.
    #[must_use]
    pub fn allows(&self, host: &Host) -> bool {
        (self.unrestricted && host.is_name()) || self.hosts.iter().any(|pattern| pattern.covers(host))
    }
}

/// A credential for the sandboxes: they see its placeholder, and its value takes the place on the way out.
#[derive(Debug, Clone)]
pub struct Binding {
    /// The vault's name.
    pub vault: String,
    /// The credential's name in the vault.
    pub name: String,
    /// The file with its value.
    pub file: PathBuf,
    /// Where in a request it may stand.
    pub placement: BindingPlacement,
    /// Where it may go.
    pub rule: Rule,
    /// Where it is kept, if that is known.
    pub kept_in: Option<KeptIn>,
}

impl Binding {
    /// `<vault>/<credential>`, which may be shown.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{}/{}", self.vault, self.name)
    }
}

/// How the value of a binding is put into a request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
pub enum BindingPlacement {
    /// In place of its placeholder.
    EnvironmentVariable {
        /// Where the placeholder may stand.
        locations: Vec<Location>,
    },
    /// As the secret access key that requests to AWS are signed with.
    Aws(AwsKeys),
}

/// AWS keys: the other files, and what is signed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AwsKeys {
    /// The file with the access key id.
    #[serde(rename = "accessKeyIDFile")]
    pub access_key_id_file: PathBuf,
    /// The file with the session token of temporary keys.
    #[serde(default)]
    pub session_token_file: Option<PathBuf>,
    /// The services; any if empty.
    #[serde(default)]
    pub services: Vec<String>,
    /// The regions; any if empty.
    #[serde(default)]
    pub regions: Vec<String>,
}

/// A part of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Location {
    /// The values of its headers, and user name and password of HTTP Basic.
    Header,
    /// Its query.
    Query,
    /// Its path.
    Path,
    /// Its body.
    Body,
}

/// The session service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Audit {
    /// Its URL.
    pub url: String,
    /// The authorities that it is known by, in PEM; those of the system if absent.
    #[serde(default)]
    pub ca: Option<String>,
    /// The file with the proxy's own token.
    pub token_file: PathBuf,
}

/// What is wrong with the egress section.
#[derive(Debug, thiserror::Error)]
pub enum EgressProblem {
    /// A list that is too long.
    #[error("{what} has {count} entries, more than {limit}")]
    TooMany {
        /// Which.
        what: String,
        /// How many.
        count: usize,
        /// How many it may have.
        limit: usize,
    },
    /// A host that is none.
    #[error("sandbox {sandbox:?}: {problem}")]
    Host {
        /// The sandbox.
        sandbox: String,
        /// What is wrong.
        problem: InvalidHost,
    },
    /// A binding that cannot be used.
    #[error("binding {binding:?}: {problem}")]
    Binding {
        /// Its vault and name.
        binding: String,
        /// What is wrong.
        problem: RouteProblem,
    },
    /// Two bindings of one name.
    #[error("binding {0:?} is there twice")]
    SameBinding(String),
    /// A placement that places nothing.
    #[error("binding {0:?}: placement.locations is empty: the credential could go nowhere")]
    NoLocation(String),
    /// An upstream proxy that cannot be used.
    #[error(transparent)]
    UpstreamProxy(#[from] UpstreamProxyProblem),
    /// A file that is not named in full.
    #[error("{what} {path} is not an absolute path")]
    File {
        /// Which.
        what: &'static str,
        /// What was given.
        path: PathBuf,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawEgress {
    session: SessionId,
    verify_key: String,
    sandboxes: BTreeMap<String, RawNetwork>,
    #[serde(default)]
    bindings: Vec<RawBinding>,
    audit: Audit,
    #[serde(default)]
    upstream_proxy: Option<RawUpstreamProxy>,
    #[serde(default)]
    ca: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawNetwork {
    #[serde(default)]
    unrestricted: bool,
    #[serde(default)]
    hosts: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawBinding {
    vault: String,
    name: String,
    file: PathBuf,
    placement: BindingPlacement,
    allow: RawAllow,
    #[serde(default)]
    kept_in: Option<KeptIn>,
}

impl TryFrom<RawEgress> for Egress {
    type Error = EgressProblem;

    fn try_from(raw: RawEgress) -> Result<Self, EgressProblem> {
        let RawEgress { session, verify_key, sandboxes, bindings, audit, upstream_proxy, ca } = raw;
        bounded("sandboxes", sandboxes.len(), MAX_SANDBOXES)?;
        bounded("bindings", bindings.len(), MAX_BINDINGS)?;
        absolute("audit.tokenFile", &audit.token_file)?;
        let mut names = HashSet::new();
        let bindings: Vec<Binding> = bindings.into_iter().map(binding).collect::<Result<_, _>>()?;
        if let Some(twice) = bindings.iter().map(Binding::label).find(|label| !names.insert(label.clone())) {
            return Err(EgressProblem::SameBinding(twice));
        }
        let sandboxes = sandboxes
            .into_iter()
            .map(|(sandbox, raw)| network(&sandbox, &raw).map(|network| (sandbox, network)))
            .collect::<Result<_, _>>()?;
        let upstream_proxy = upstream_proxy.map(UpstreamProxy::try_from).transpose()?;
        Ok(Self { session, verify_key, sandboxes, bindings, audit, upstream_proxy, ca })
    }
}

fn bounded(what: &str, count: usize, limit: usize) -> Result<(), EgressProblem> {
    if count > limit { Err(EgressProblem::TooMany { what: what.to_owned(), count, limit }) } else { Ok(()) }
}

fn absolute(what: &'static str, path: &Path) -> Result<(), EgressProblem> {
    if path.is_absolute() { Ok(()) } else { Err(EgressProblem::File { what, path: path.to_owned() }) }
}

fn network(sandbox: &str, raw: &RawNetwork) -> Result<Network, EgressProblem> {
    bounded(&format!("sandboxes.{sandbox}.hosts"), raw.hosts.len(), MAX_HOSTS)?;
    let host = |text: &String| {
        HostPattern::parse(text).map_err(|problem| EgressProblem::Host { sandbox: sandbox.to_owned(), problem })
    };
    let hosts = raw.hosts.iter().map(host).collect::<Result<_, _>>()?;
    Ok(Network { unrestricted: raw.unrestricted, hosts })
}

fn binding(raw: RawBinding) -> Result<Binding, EgressProblem> {
    let RawBinding { vault, name, file, placement, allow, kept_in } = raw;
    let label = format!("{vault}/{name}");
    let files: Vec<&PathBuf> = match &placement {
        BindingPlacement::EnvironmentVariable { locations } if locations.is_empty() => {
            return Err(EgressProblem::NoLocation(label));
        }
        BindingPlacement::EnvironmentVariable { .. } => vec![&file],
        BindingPlacement::Aws(keys) => {
            [&file, &keys.access_key_id_file].into_iter().chain(&keys.session_token_file).collect()
        }
    };
    let relative = files.into_iter().find(|file| !file.is_absolute()).cloned();
    let checked = || {
        if let Some(file) = relative {
            return Err(RouteProblem::File(file));
        }
        Ok((checked_name(vault)?, checked_name(name)?, allow.rule(HostPattern::parse)?))
    };
    match checked() {
        Ok((vault, name, rule)) => Ok(Binding { vault, name, file, placement, rule, kept_in }),
        Err(problem) => Err(EgressProblem::Binding { binding: label, problem }),
    }
}

#[cfg(test)]
#[path = "egress_tests.rs"]
mod tests;
