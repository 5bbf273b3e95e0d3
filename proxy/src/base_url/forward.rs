//! What becomes of a request: checked, stripped, given its credential, sent, and its answer passed on as it comes.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::Incoming;
use rustls::ClientConfig;
use tokio::time::timeout;

use super::token::SessionToken;
use crate::{
    body::Relayed,
    config::{Config, Credential, Placement, Route},
    error::{Malformed, Refusal},
    headers::{framing_conflict, prepare_request, prepare_response},
    oauth::{self, Refresher, refresher::Timing},
    policy::{Destination, Mismatch, PlainPath},
    secret::{FileCondition, Secret, SecretFile},
    upstream::{IDLE_TIMEOUT, Outgoing, Reach, Upstream, Way},
};

/// How long a client may be silent in the middle of its request.
const REQUEST_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A body up to this size is kept where a request may have to be sent once more, with another token.
const MAX_KEPT: u64 = 256 * 1024;

/// The body of an answer: the upstream's, or the proxy's own.
pub type AnswerBody = Either<Relayed<Incoming>, Full<Bytes>>;

/// The proxy of one harness pod.
pub struct Proxy {
    token: SessionToken,
    routes: Vec<BoundRoute>,
}

/// A route with its credential's file and its connections.
struct BoundRoute {
    route: Route,
    source: Option<Source>,
    upstream: Upstream,
}

/// Where a credential's value comes from.
enum Source {
    /// From its file, as it is.
    File(SecretFile),
    /// From its file at first, and then from its provider.
    OAuth(Arc<Refresher>),
}

impl Source {
    /// One refresher for each credential of a vault, however many routes have it: a refresh token is good once.
    fn of(
        credential: &Credential,
        way: &Way,
        service: Option<&Arc<dyn oauth::service::Service>>,
        shared: &mut HashMap<(String, String), Arc<Refresher>>,
    ) -> Self {
        let (Some(oauth), Some(service)) = (&credential.oauth, service) else {
            return Self::File(SecretFile::new(credential.file.clone()));
        };
        let refresher = shared
            .entry((oauth.vault.clone(), credential.name.clone()))
            .or_insert_with(|| Refresher::new(credential, oauth.clone(), way, service.clone(), Timing::default()));
        Self::OAuth(refresher.clone())
    }
}

/// Whether a credential can be used, for `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialState {
    /// The route's name.
    pub route: String,
    /// The credential's name.
    pub credential: String,
    /// Why it cannot be used, if it cannot.
    pub condition: Option<Unusable>,
    /// Whether the harness can do nothing without it.
    pub required: bool,
}

/// Why a credential cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Its file gives no value.
    #[error("{0}")]
    File(FileCondition),
    /// It has expired, and is not renewed.
    #[error("{0}")]
    Token(oauth::Problem),
}

impl Unusable {
    /// Whether there is no file at all.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        let (Self::File(condition) | Self::Token(oauth::Problem::File { condition, .. })) = self else { return false };
        *condition == FileCondition::Missing
    }
}

impl Proxy {
    /// A proxy with these routes, whose refreshed tokens go to `service`.
    #[must_use]
    pub fn new(
        config: Config,
        token_file: PathBuf,
        tls: &Arc<ClientConfig>,
        service: Option<&Arc<dyn oauth::service::Service>>,
    ) -> Self {
        let way = Way { tls: tls.clone(), proxy: config.upstream_proxy };
        let mut shared = HashMap::new();
        let bind = |route: Route| BoundRoute {
            source: route.credential.as_ref().map(|credential| Source::of(credential, &way, service, &mut shared)),
            upstream: Upstream::new(&way, Reach::of(route.allow_private)),
            route,
        };
        Self { token: SessionToken::new(token_file), routes: config.routes.into_iter().map(bind).collect() }
    }

    /// The state of every credential, in the order of the configuration.
    #[must_use]
    pub fn credentials(&self, now: Instant) -> Vec<CredentialState> {
        let state = |bound: &BoundRoute| {
            Some(CredentialState {
                route: bound.route.name.clone(),
                credential: bound.route.credential.as_ref()?.name.clone(),
                condition: match bound.source.as_ref()? {
                    Source::File(file) => file.current(now).err().map(Unusable::File),
                    Source::OAuth(refresher) => refresher.condition().map(Unusable::Token),
                },
                required: bound.route.required,
            })
        };
        self.routes.iter().filter_map(state).collect()
    }

    /// The condition of the session token's file, if it cannot be used.
    #[must_use]
    pub fn token_condition(&self, now: Instant) -> Option<FileCondition> {
        self.token.usable(now).err()
    }

    /// Returns when every token that a provider gave is in its vault.
    pub async fn settled(&self) {
        for bound in &self.routes {
            if let Some(Source::OAuth(refresher)) = &bound.source {
                refresher.settled().await;
            }
        }
    }

    /// Answers a request. Every request is answered, logged and counted.
    pub async fn handle(&self, request: Request<Incoming>) -> Response<AnswerBody> {
        let started = Instant::now();
        let method = method_label(request.method());
        let (parts, body) = request.into_parts();
        let (bound, result) = match self.admit(&parts, started) {
            Ok((bound, token)) => (Some(bound), bound.forward(parts, body, &token, started).await),
            Err(refusal) => (None, Err(refusal)),
        };
        let route = bound.map_or("none", |bound| &bound.route.name);
        let credential = bound.and_then(|bound| bound.route.credential.as_ref());
        let credential = credential.map_or("none", |credential| &credential.name);
        let host = bound.map_or("none", |bound| bound.route.upstream.host.as_str());
        let (decision, response) = match result {
            Ok(response) => ("forwarded", response),
            Err(refusal) => {
                tracing::warn!(credential, host, method, reason = %refusal, "refused");
                (refusal.decision(), refusal.response().map(Either::Right))
            }
        };
        let status = response.status();
        tracing::info!(credential, host, method, status = status.as_u16(), decision, "answered");
        let labels = [
            ("route", route.to_owned()),
            ("decision", decision.to_owned()),
            ("status_class", class(status).to_owned()),
        ];
        metrics::counter!("longhand_proxy_requests_total", &labels).increment(1);
        metrics::histogram!("longhand_proxy_response_head_seconds", "route" => route.to_owned())
            .record(started.elapsed());
        response
    }

    /// Who asks, and for which route.
    fn admit(&self, parts: &Parts, now: Instant) -> Result<(&BoundRoute, Arc<Secret>), Refusal> {
        if framing_conflict(&parts.headers) {
            return Err(Refusal::Malformed(Malformed::Framing));
        }
        if parts.uri.scheme().is_some() || parts.uri.authority().is_some() || !parts.uri.path().starts_with('/') {
            return Err(Refusal::Malformed(Malformed::Target));
        }
        if parts.headers.get_all(header::HOST).iter().count() > 1 {
            return Err(Refusal::Malformed(Malformed::Hosts));
        }
        let token = self.token.verify(&parts.headers, now)?;
        let bound = self.routes.iter().find(|bound| bound.rest(parts.uri.path()).is_some()).ok_or_else(|| {
            let known: Vec<&str> = self.routes.iter().map(|bound| bound.route.prefix.as_str()).collect();
            Refusal::UnknownRoute { known: known.join(", ") }
        })?;
        Ok((bound, token))
    }
}

impl BoundRoute {
    /// What a path has behind this route's prefix. The comparison is byte by byte: an encoded prefix is no prefix.
    fn rest<'a>(&self, path: &'a str) -> Option<&'a str> {
        path.strip_prefix(self.route.prefix.as_str()).filter(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    async fn forward(
        &self,
        parts: Parts,
        body: Incoming,
        token: &Secret,
        now: Instant,
    ) -> Result<Response<AnswerBody>, Refusal> {
        let uri = self.target(&parts)?;
        let mut secret = self.secret(now).await?;
        let Some(Source::OAuth(refresher)) = &self.source else {
            let body = Either::Left(Relayed::new(body, REQUEST_IDLE_TIMEOUT));
            let response = self.send(parts, uri, body, token, secret.as_deref()).await?;
            return self.answer(response, secret.as_deref());
        };
        let (body, kept) = keep(body).await?;
        let again = kept.map(|body| (parts.clone(), body));
        let mut response = self.send(parts, uri.clone(), body, token, secret.as_deref()).await?;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(used) = &secret
            && let Some(renewed) = refresher.rejected(used).await
            && let Some((parts, body)) = again
        {
            response = self.send(parts, uri, Either::Right(Full::new(body)), token, Some(&renewed)).await?;
            secret = Some(renewed);
        }
        self.answer(response, secret.as_deref())
    }

    /// Sends a request with this credential, and nothing that was meant for the proxy.
    async fn send(
        &self,
        parts: Parts,
        uri: Uri,
        body: Outgoing,
        token: &Secret,
        secret: Option<&Secret>,
    ) -> Result<Response<Incoming>, Refusal> {
        let host = self.route.upstream.host.as_str();
        let placed = match (&self.route.credential, secret) {
            (Some(credential), Some(secret)) => {
                let (name, value) = match &credential.placement {
                    Placement::Header(name) => (name.clone(), secret.header("")),
                    Placement::Bearer => (header::AUTHORIZATION, secret.header("Bearer ")),
                    Placement::Basic(username) => (header::AUTHORIZATION, secret.basic(username)),
                };
                Some((name, value.map_err(|_| unavailable(credential, FileCondition::NotPrintable))?))
            }
            _ => None,
        };
        let placement = placed.as_ref().map(|(name, _)| name.clone());

        let mut headers = parts.headers;
        prepare_request(&mut headers, placed);
        let leaks = |(header, value): (&HeaderName, &HeaderValue)| {
            Some(header) != placement.as_ref() && token.occurs_in(value.as_bytes())
        };
        if headers.iter().any(leaks) || token.occurs_in(uri.to_string().as_bytes()) {
            return Err(Refusal::TokenWouldLeak { host: host.to_owned() });
        }
        let mut outgoing = Request::new(body);
        *outgoing.method_mut() = parts.method;
        *outgoing.uri_mut() = uri;
        *outgoing.version_mut() = Version::HTTP_11;
        *outgoing.headers_mut() = headers;
        self.upstream.send(host, outgoing).await
    }

    /// What of an answer is passed on.
    fn answer(&self, response: Response<Incoming>, secret: Option<&Secret>) -> Result<Response<AnswerBody>, Refusal> {
        let host = self.route.upstream.host.as_str();
        let status = response.status();
        if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
            return Err(Refusal::Redirect { host: host.to_owned(), status: status.as_u16() });
        }
        if status.is_informational() {
            return Err(Refusal::BadAnswer {
                host: host.to_owned(),
                what: "a switch of protocols that was not asked for",
            });
        }
        if framing_conflict(response.headers()) {
            return Err(Refusal::BadAnswer { host: host.to_owned(), what: "two lengths for one body" });
        }
        let (mut head, body) = response.into_parts();
        prepare_response(&mut head.headers, secret);
        if let (Some(credential), Some(secret)) = (&self.route.credential, secret)
            && let Placement::Basic(username) = &credential.placement
        {
            prepare_response(&mut head.headers, Some(&secret.encoded(username)));
        }
        let mut answer = Response::new(Either::Left(Relayed::new(body, IDLE_TIMEOUT)));
        *answer.status_mut() = status;
        *answer.headers_mut() = head.headers;
        Ok(answer)
    }

    /// The credential's value, if the route has a credential.
    async fn secret(&self, now: Instant) -> Result<Option<Arc<Secret>>, Refusal> {
        let (Some(credential), Some(source)) = (&self.route.credential, &self.source) else { return Ok(None) };
        match source {
            Source::File(file) => file.current(now).map(Some).map_err(|condition| unavailable(credential, condition)),
            Source::OAuth(refresher) => match refresher.token().await {
                Ok(token) => Ok(Some(token)),
                Err(problem) => Err(Refusal::TokenNotRenewed { credential: credential.name.clone(), problem }),
            },
        }
    }

    /// The upstream's URL for a request, once the route and the credential's rule allow it.
    fn target(&self, parts: &Parts) -> Result<Uri, Refusal> {
        let upstream = &self.route.upstream;
        let (path, query) = self.path_and_query(parts)?;
        if let Some(credential) = &self.route.credential {
            let destination = Destination {
                scheme: upstream.scheme,
                host: &upstream.host,
                port: upstream.port,
                method: &parts.method,
                path: &path,
            };
            credential.rule.judge(&destination).map_err(|mismatch| self.refused(mismatch))?;
        }
        let query = query.map_or_else(String::new, |query| format!("?{query}"));
        let authority = if upstream.port == upstream.scheme.default_port() {
            upstream.host.in_authority()
        } else {
            format!("{}:{}", upstream.host.in_authority(), upstream.port)
        };
        Uri::builder()
            .scheme(upstream.scheme.as_str())
            .authority(authority)
            .path_and_query(format!("{}{query}", path.as_str()))
            .build()
            .map_err(|_| Refusal::Malformed(Malformed::Url))
    }

    /// Where on the upstream the route leads.
    fn path_and_query<'a>(&'a self, parts: &'a Parts) -> Result<(PlainPath, Option<&'a str>), Refusal> {
        let Route { upstream, base_path, exact, methods, .. } = &self.route;
        let off = |what| Refusal::OffRoute { host: upstream.host.to_string(), what };
        if !methods.is_empty() && !methods.contains(&parts.method) {
            return Err(off("the method is none of those that it has"));
        }
        // TRACE answers with the headers that it was sent; CONNECT would be a tunnel.
        if [Method::TRACE, Method::CONNECT].contains(&parts.method) && self.route.credential.is_none() {
            return Err(off("the method is dangerous"));
        }
        let rest = self.rest(parts.uri.path()).unwrap_or_default();
        let (path, query) = match exact {
            Some(_) if !rest.is_empty() || parts.uri.query().is_some() => {
                return Err(off("neither path nor query can be added"));
            }
            Some(exact) => {
                exact.split_once('?').map_or((exact.clone(), None), |(path, query)| (path.to_owned(), Some(query)))
            }
            None => (format!("{base_path}{rest}"), parts.uri.query()),
        };
        let path = if path.is_empty() { "/" } else { &path };
        Ok((PlainPath::parse(path).map_err(|path| self.refused(path.into()))?, query))
    }

    fn refused(&self, mismatch: Mismatch) -> Refusal {
        let host = self.route.upstream.host.to_string();
        match &self.route.credential {
            Some(credential) => Refusal::NotAllowed { credential: credential.name.clone(), host, mismatch },
            None => Refusal::OffRoute { host, what: "the path can be read in two ways" },
        }
    }
}

fn unavailable(credential: &Credential, condition: FileCondition) -> Refusal {
    Refusal::CredentialUnavailable {
        credential: credential.name.clone(),
        path: credential.file.display().to_string(),
        condition,
    }
}

/// A small body of known length as a whole, and a copy of it; any other as it comes.
async fn keep(body: Incoming) -> Result<(Outgoing, Option<Bytes>), Refusal> {
    let small = body.size_hint().exact().is_some_and(|length| length <= MAX_KEPT);
    let body = Relayed::new(body, REQUEST_IDLE_TIMEOUT);
    if !small {
        return Ok((Either::Left(body), None));
    }
    match timeout(REQUEST_IDLE_TIMEOUT, body.collect()).await {
        Ok(Ok(whole)) => {
            let whole = whole.to_bytes();
            Ok((Either::Right(Full::new(whole.clone())), Some(whole)))
        }
        Ok(Err(_)) | Err(_) => Err(Refusal::Malformed(Malformed::Body)),
    }
}

/// Methods come from clients, and labels must be few.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    }
}
