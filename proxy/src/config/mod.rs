//! The configuration that the operator writes into the environment. It names files and holds no secret.

use std::{collections::HashSet, path::PathBuf};

use http::{HeaderName, Method, Uri};
use longhand_protocol::SessionId;
use serde::Deserialize;

pub use self::egress::{Audit, AwsKeys, Binding, BindingPlacement, Egress, Location, Network};
pub use self::kept_in::KeptIn;
pub use self::oauth::{ClientAuth, OAuth, OAuthClient, Service};
pub use self::way_out::{NoProxy, UpstreamProxy, UpstreamProxyProblem};
use self::{
    egress::{EgressProblem, RawEgress},
    oauth::RawOAuth,
    way_out::RawUpstreamProxy,
};
use crate::{
    hosts::HostPattern,
    policy::{AmbiguousPath, Host, InvalidHost, PlainPath, Rule, Scheme},
};

mod egress;
mod kept_in;
mod oauth;
mod way_out;

const MAX_ROUTES: usize = 64;
const MAX_NAME_LENGTH: usize = 253;

/// All that a proxy serves, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The routes; none has the prefix of another.
    pub routes: Vec<Route>,
    /// The egress mode, if the session's sandboxes may reach anything.
    pub egress: Option<Egress>,
    /// Through which proxy of the cluster's owner upstreams are reached, if not directly.
    pub upstream_proxy: Option<UpstreamProxy>,
    /// Certificates in PEM that upstreams are known by, besides those of the system.
    pub ca: Option<String>,
    /// The session that the harness serves, if it is one alone: whose log uses are put into, and for which access tokens are
    /// refreshed.
    pub service: Option<Service>,
}

impl Config {
    /// Where uses and refusals are put on record, if it is known of which session they are.
    #[must_use]
    pub fn log(&self) -> Option<Service> {
        let of_sandboxes = |Egress { session, audit, .. }: &Egress| {
            let Audit { url, ca, token_file } = audit.clone();
            Service { session: session.clone(), url, ca, token_file }
        };
        self.service.clone().or_else(|| self.egress.as_ref().map(of_sandboxes))
    }
}

/// One upstream and the credential for it.
#[derive(Debug, Clone)]
pub struct Route {
    /// A short name, used as a metric's label.
    pub name: String,
    /// The prefix of local paths, without a slash at its end.
    pub prefix: PlainPath,
    /// Where requests go.
    pub upstream: Origin,
    /// The path that takes the place of the prefix, without a slash at its end; empty for none.
    pub base_path: String,
    /// The only path and query, if the route leads to one URL and not to what is below it.
    pub exact: Option<String>,
    /// The only methods; none means any that the credential may be used with.
    pub methods: Vec<Method>,
    /// What is sent with them; nothing for a server that needs no credential.
    pub credential: Option<Credential>,
    /// Whether the upstream may have an address of a private network.
    pub allow_private: bool,
    /// Whether the harness can do nothing without the credential.
    pub required: bool,
}

/// A server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// Its host.
    pub host: Host,
    /// Its port.
    pub port: u16,
}

/// A credential: where its value is, where it may go, and how it is placed.
#[derive(Debug, Clone)]
pub struct Credential {
    /// Its name, which may be shown.
    pub name: String,
    /// The name of its vault.
    pub vault: Option<String>,
    /// The file with its value.
    pub file: PathBuf,
    /// How it is placed into a request.
    pub placement: Placement,
    /// Where it may go.
    pub rule: Rule,
    /// How it is refreshed, if it is an access token that can be.
    pub oauth: Option<OAuth>,
    /// Where it is kept, if that is known.
    pub kept_in: Option<KeptIn>,
}

impl Credential {
    /// `<vault>/<credential>`, which may be shown.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.vault {
            Some(vault) => format!("{vault}/{}", self.name),
            None => self.name.clone(),
        }
    }
}

/// How a credential is placed into a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// As the value of a header.
    Header(HeaderName),
    /// As `authorization: Bearer ...`.
    Bearer,
    /// As `authorization: Basic ...`, with this user name.
    Basic(String),
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not the JSON that is expected.
    #[error("PROXY_CONFIG is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// Too many routes, or none.
    #[error("PROXY_CONFIG has {0} routes, but must have 1 to {MAX_ROUTES}")]
    RouteCount(usize),
    /// A route that cannot be used.
    #[error("route {route:?}: {problem}")]
    Route {
        /// Its name.
        route: String,
        /// What is wrong.
        problem: RouteProblem,
    },
    /// A token that is refreshed, and nobody to hand it over to.
    #[error("route {0:?} has credential.oauth, and there is no service: a refreshed token could not be kept")]
    NoService(String),
    /// Two sessions in one proxy.
    #[error("service and egress name different sessions, {0} and {1}")]
    TwoSessions(SessionId, SessionId),
    /// A file that is not named in full.
    #[error("service.tokenFile {0} is not an absolute path")]
    ServiceToken(PathBuf),
    /// An egress section that cannot be used.
    #[error("egress: {0}")]
    Egress(#[from] EgressProblem),
    /// An upstream proxy that cannot be used.
    #[error(transparent)]
    UpstreamProxy(#[from] UpstreamProxyProblem),
}

/// What is wrong with a route.
#[derive(Debug, thiserror::Error)]
pub enum RouteProblem {
    /// A name that is no label.
    #[error("{0:?} is not a name: 1 to {MAX_NAME_LENGTH} lower-case letters, digits, dots and hyphens")]
    Name(String),
    /// Two routes of one name.
    #[error("another route has the same name")]
    SameName,
    /// Two routes for one path.
    #[error("its prefix and that of route {0:?} overlap")]
    Overlap(String),
    /// A prefix that is not plain.
    #[error("prefix {0:?}: {1}")]
    Prefix(String, AmbiguousPath),
    /// The prefix `/` or one that ends with a slash.
    #[error("prefix {0:?} must not end with a slash")]
    PrefixSlash(String),
    /// An upstream that is not a plain URL.
    #[error("upstream {0:?} must be http:// or https:// with a host, and neither user, query nor fragment")]
    Upstream(String),
    /// An upstream's path that is not plain.
    #[error("upstream {0:?}: {1}")]
    UpstreamPath(String, AmbiguousPath),
    /// A host that is none.
    #[error("allow.hosts: {0}")]
    Host(#[from] InvalidHost),
    /// A rule without a host.
    #[error("allow.hosts is empty: it would allow nothing")]
    NoHost,
    /// A path prefix that is not plain.
    #[error("allow.pathPrefixes {0:?}: {1}")]
    PathPrefix(String, AmbiguousPath),
    /// A method that is none.
    #[error("allow.methods: {0:?} is not a method")]
    Method(String),
    /// Private addresses are allowed by the route and by its credential.
    #[error("allowPrivate belongs to a route without a credential, whose rule says it otherwise")]
    Private,
    /// A header that is none, or that frames or routes the request.
    #[error("placement: a credential cannot be placed into header {0:?}")]
    Header(String),
    /// A user name that HTTP Basic cannot have.
    #[error("placement: a user name of HTTP Basic is printable ASCII, without a colon")]
    Username,
    /// A file that is not named in full.
    #[error("credential file {0} is not an absolute path")]
    File(PathBuf),
    /// A token endpoint without TLS.
    #[error("credential.oauth.tokenEndpoint {0:?} must be https://: the refresh token goes there")]
    TokenEndpoint(String),
    /// A text that is empty or too long.
    #[error("credential.oauth: clientID is empty, or clientID, scope or resource is too long")]
    OAuthText,
    /// A secret for no client, or a client without its secret.
    #[error("credential.oauth.clientSecretFile belongs to every auth but none")]
    ClientSecret,
    /// An access token that is no bearer.
    #[error("credential.oauth belongs to the placement bearer")]
    NotABearer,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawConfig {
    routes: Vec<RawRoute>,
    #[serde(default)]
    egress: Option<RawEgress>,
    #[serde(default)]
    upstream_proxy: Option<RawUpstreamProxy>,
    #[serde(default)]
    ca: Option<String>,
    #[serde(default)]
    service: Option<Service>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawRoute {
    name: String,
    prefix: String,
    upstream: String,
    #[serde(default)]
    exact: bool,
    #[serde(default)]
    methods: Vec<String>,
    #[serde(default)]
    allow_private: bool,
    #[serde(default = "yes")]
    required: bool,
    #[serde(default)]
    credential: Option<RawCredential>,
}

const fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawCredential {
    name: String,
    #[serde(default)]
    vault: Option<String>,
    file: PathBuf,
    placement: RawPlacement,
    allow: RawAllow,
    #[serde(default)]
    oauth: Option<RawOAuth>,
    #[serde(default)]
    kept_in: Option<KeptIn>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
enum RawPlacement {
    Header { name: String },
    Bearer {},
    Basic { username: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawAllow {
    scheme: Scheme,
    hosts: Vec<String>,
    port: u16,
    #[serde(default)]
    methods: Vec<String>,
    #[serde(default)]
    path_prefixes: Vec<String>,
    #[serde(default)]
    allow_private: bool,
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// [`ConfigError`] names the route and what is wrong with it.
    pub fn parse(json: &str) -> Result<Self, ConfigError> {
        let raw: RawConfig = serde_json::from_str(json)?;
        if !(1..=MAX_ROUTES).contains(&raw.routes.len()) {
            return Err(ConfigError::RouteCount(raw.routes.len()));
        }
        let mut names = HashSet::new();
        let mut routes: Vec<Route> = Vec::new();
        for raw in raw.routes {
            let name = raw.name.clone();
            let at = |problem| ConfigError::Route { route: name.clone(), problem };
            if !names.insert(name.clone()) {
                return Err(at(RouteProblem::SameName));
            }
            let route = Route::try_from(raw).map_err(&at)?;
            let overlap = |other: &&Route| route.prefix.is_under(&other.prefix) || other.prefix.is_under(&route.prefix);
            if let Some(other) = routes.iter().find(overlap) {
                return Err(at(RouteProblem::Overlap(other.name.clone())));
            }
            routes.push(route);
        }
        let upstream_proxy = raw.upstream_proxy.map(UpstreamProxy::try_from).transpose()?;
        let mut egress = raw.egress.map(Egress::try_from).transpose()?;
        if let Some(egress) = &mut egress {
            egress.upstream_proxy = egress.upstream_proxy.take().or_else(|| upstream_proxy.clone());
            egress.ca = egress.ca.take().or_else(|| raw.ca.clone());
        }
        if let (Some(Service { session, .. }), Some(egress)) = (&raw.service, &egress)
            && *session != egress.session
        {
            return Err(ConfigError::TwoSessions(session.clone(), egress.session.clone()));
        }
        let refreshed = |route: &&Route| route.credential.as_ref().is_some_and(|credential| credential.oauth.is_some());
        match (&raw.service, routes.iter().find(refreshed)) {
            (None, Some(route)) => return Err(ConfigError::NoService(route.name.clone())),
            (Some(service), _) if !service.token_file.is_absolute() => {
                return Err(ConfigError::ServiceToken(service.token_file.clone()));
            }
            _ => {}
        }
        Ok(Self { routes, egress, upstream_proxy, ca: raw.ca, service: raw.service })
    }
}

impl TryFrom<RawRoute> for Route {
    type Error = RouteProblem;

    fn try_from(raw: RawRoute) -> Result<Self, RouteProblem> {
        let RawRoute { name, prefix, upstream, exact, methods, allow_private, required, credential } = raw;
        let name = checked_name(name)?;
        if prefix.ends_with('/') {
            return Err(RouteProblem::PrefixSlash(prefix));
        }
        let prefix = PlainPath::parse(&prefix).map_err(|problem| RouteProblem::Prefix(prefix.clone(), problem))?;
        let (upstream, path) = parse_upstream(&upstream, exact)?;
        let credential: Option<Credential> = credential.map(TryInto::try_into).transpose()?;
        let allow_private = match &credential {
            Some(_) if allow_private => return Err(RouteProblem::Private),
            Some(credential) => credential.rule.allow_private,
            None => allow_private,
        };
        let (base_path, exact) = if exact { (String::new(), Some(path)) } else { (path, None) };
        let methods = methods.into_iter().map(parse_method).collect::<Result<_, _>>()?;
        Ok(Self { name, prefix, upstream, base_path, exact, methods, credential, allow_private, required })
    }
}

fn parse_method(text: String) -> Result<Method, RouteProblem> {
    Method::from_bytes(text.as_bytes()).map_err(|_| RouteProblem::Method(text))
}

impl TryFrom<RawCredential> for Credential {
    type Error = RouteProblem;

    fn try_from(raw: RawCredential) -> Result<Self, RouteProblem> {
        let RawCredential { name, vault, file, placement, allow, oauth, kept_in } = raw;
        if !file.is_absolute() {
            return Err(RouteProblem::File(file));
        }
        let placement = match placement {
            RawPlacement::Bearer {} => Placement::Bearer,
            RawPlacement::Basic { username } => {
                if !username.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') {
                    return Err(RouteProblem::Username);
                }
                Placement::Basic(username)
            }
            RawPlacement::Header { name } => match HeaderName::from_bytes(name.as_bytes()) {
                Ok(header) if !crate::headers::is_reserved(&header) => Placement::Header(header),
                _ => return Err(RouteProblem::Header(name)),
            },
        };
        if oauth.is_some() && placement != Placement::Bearer {
            return Err(RouteProblem::NotABearer);
        }
        Ok(Self {
            name: checked_name(name)?,
            vault: vault.map(checked_name).transpose()?,
            file,
            placement,
            oauth: oauth.map(OAuth::try_from).transpose()?,
            kept_in,
            rule: allow.rule(|text| Host::parse(text).map(HostPattern::Exact))?,
        })
    }
}

impl RawAllow {
    /// The rule, with hosts as `host` reads them.
    fn rule(self, host: fn(&str) -> Result<HostPattern, InvalidHost>) -> Result<Rule, RouteProblem> {
        let RawAllow { scheme, hosts, port, methods, path_prefixes, allow_private } = self;
        if hosts.is_empty() {
            return Err(RouteProblem::NoHost);
        }
        let path = |text: String| PlainPath::parse(&text).map_err(|problem| RouteProblem::PathPrefix(text, problem));
        Ok(Rule {
            scheme,
            hosts: hosts.iter().map(|text| host(text)).collect::<Result<_, _>>()?,
            port,
            methods: methods.into_iter().map(parse_method).collect::<Result<_, _>>()?,
            path_prefixes: path_prefixes.into_iter().map(path).collect::<Result<_, _>>()?,
            allow_private,
        })
    }
}

fn checked_name(name: String) -> Result<String, RouteProblem> {
    let fits = (1..=MAX_NAME_LENGTH).contains(&name.len());
    if fits && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.') {
        Ok(name)
    } else {
        Err(RouteProblem::Name(name))
    }
}

/// The server and the path; all of it, and the query too, of an exact one.
fn parse_upstream(text: &str, exact: bool) -> Result<(Origin, String), RouteProblem> {
    let refuse = || RouteProblem::Upstream(text.to_owned());
    let uri: Uri = text.parse().map_err(|_| refuse())?;
    let scheme = match uri.scheme_str() {
        Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        _ => return Err(refuse()),
    };
    let authority = uri.authority().ok_or_else(refuse)?;
    if authority.as_str().contains('@') || uri.query().is_some() && !exact || text.contains('#') {
        return Err(refuse());
    }
    let host = Host::parse(authority.host()).map_err(|_| refuse())?;
    let port = match authority.port() {
        Some(port) => port.as_u16(),
        None if authority.as_str().ends_with(':') => return Err(refuse()),
        None => scheme.default_port(),
    };
    let path = PlainPath::parse(uri.path()).map_err(|problem| RouteProblem::UpstreamPath(text.to_owned(), problem))?;
    let path = match uri.query() {
        _ if !exact => path.as_str().trim_end_matches('/').to_owned(),
        Some(query) => format!("{}?{query}", path.as_str()),
        None => path.as_str().to_owned(),
    };
    Ok((Origin { scheme, host, port }, path))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
