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
use longhand_protocol::egress::MAX_METHOD;
use rustls::ClientConfig;
use tokio::time::timeout;

use super::{
    answer::{AnswerBody, answer},
    known::Known,
    token::SessionToken,
};
use crate::{
    audit::{Audit, Subject},
    body::Relayed,
    config::{Config, Credential, KeptIn, Origin, Placement, Route},
    error::{Malformed, Refusal},
    headers::{framing_conflict, prepare_request},
    intercept::scrub::{Unscrubbable, Values, fits},
    oauth::{self, Refresher, refresher::Timing},
    policy::{Destination, Mismatch, PlainPath},
    refusals::{LastWord, Word},
    secret::{FileCondition, Secret, SecretFile},
    unusable::Unusable,
    upstream::{Outgoing, Reach, Upstream, Way},
};

/// How long a client may be silent in the middle of its request.
const REQUEST_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A body up to this size is kept where a request may have to be sent once more, with another token.
const MAX_KEPT: u64 = 256 * 1024;

/// The sandbox that a request of the harness is of.
const HARNESS: &str = "";

/// The proxy of one harness pod.
pub struct Proxy {
    token: SessionToken,
    routes: Vec<BoundRoute>,
    /// Where uses and refusals are put on record, if it is known of which session they are.
    audit: Option<Audit>,
}

/// A route with its credential's file and its connections.
struct BoundRoute {
    route: Route,
    source: Option<(Source, Arc<Known>)>,
    upstream: Upstream,
    last_word: LastWord,
}

/// A request, and where it is put on record.
#[derive(Clone, Copy)]
struct Record<'a> {
    audit: &'a Audit,
    subject: &'a Subject,
}

/// Where a credential's value comes from.
enum Source {
    /// From its file, as it is.
    File(SecretFile),
    /// From its file at first, and then from its provider.
    OAuth(Arc<Refresher>),
}

/// What routes with one credential share, by its vault and name.
type Shared = HashMap<(String, String), (Arc<Refresher>, Arc<Known>)>;

impl Source {
    /// One refresher for each credential of a vault, however many routes have it: a refresh token is good once.
    fn of(
        credential: &Credential,
        way: &Way,
        service: Option<&Arc<dyn oauth::service::Service>>,
        shared: &mut Shared,
    ) -> (Self, Arc<Known>) {
        let known = || Arc::new(Known::new(credential.placement.clone()));
        let (Some(oauth), Some(service)) = (&credential.oauth, service) else {
            return (Self::File(SecretFile::new(credential.file.clone())), known());
        };
        let refresher = || Refresher::new(credential, oauth.clone(), way, service.clone(), Timing::default());
        let (refresher, known) =
            shared.entry((oauth.vault.clone(), credential.name.clone())).or_insert_with(|| (refresher(), known()));
        (Self::OAuth(refresher.clone()), known.clone())
    }

    /// Why there is nothing to send, if that is known.
    fn condition(&self, now: Instant) -> Option<Unusable> {
        match self {
            Self::File(file) => match file.current(now) {
                // One that is too short is sent, and not looked for.
                Ok(secret) => match fits(secret.expose()) {
                    Err(problem @ (Unscrubbable::TooLong | Unscrubbable::TooMany)) => Some(Unusable::Length(problem)),
                    Err(Unscrubbable::TooShort) | Ok(()) => None,
                },
                Err(condition) => Some(Unusable::File(condition)),
            },
            Self::OAuth(refresher) => refresher.condition().map(Unusable::Token),
        }
    }
}

/// Whether a credential can be used, for `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialState {
    /// The route's name.
    pub route: String,
    /// The credential's name.
    pub credential: String,
    /// The name of its vault.
    pub vault: Option<String>,
    /// Where it is kept, if that is known.
    pub kept_in: Option<KeptIn>,
    /// Why it cannot be used, if it cannot.
    pub condition: Option<Unusable>,
    /// Whether the harness can do nothing without it.
    pub required: bool,
    /// What the upstream said of it last.
    pub last_word: Option<Word>,
}

impl Proxy {
    /// A proxy with these routes, whose refreshed tokens go to `service`. What it does is put on record by `audit`; without one
    /// it is not known of which session a request is.
    #[must_use]
    pub fn new(
        config: Config,
        token_file: PathBuf,
        tls: &Arc<ClientConfig>,
        service: Option<&Arc<dyn oauth::service::Service>>,
        audit: Option<Audit>,
    ) -> Self {
        let way = Way { tls: tls.clone(), proxy: config.upstream_proxy };
        let mut shared = HashMap::new();
        let bind = |route: Route| BoundRoute {
            source: route.credential.as_ref().map(|credential| Source::of(credential, &way, service, &mut shared)),
            upstream: Upstream::new(&way, Reach::of(route.allow_private)),
            last_word: LastWord::default(),
            route,
        };
        Self { token: SessionToken::new(token_file), routes: config.routes.into_iter().map(bind).collect(), audit }
    }

    /// The state of every credential, in the order of the configuration.
    #[must_use]
    pub fn credentials(&self, now: Instant) -> Vec<CredentialState> {
        let state = |bound: &BoundRoute| {
            let credential = bound.route.credential.as_ref()?;
            Some(CredentialState {
                route: bound.route.name.clone(),
                credential: credential.name.clone(),
                vault: credential.vault.clone(),
                kept_in: credential.kept_in.clone(),
                condition: bound.source.as_ref()?.0.condition(now),
                required: bound.route.required,
                last_word: bound.last_word.get(),
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
            if let Some((Source::OAuth(refresher), _)) = &bound.source {
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
            Ok((bound, token)) => {
                (Some(bound), bound.answered(parts, body, &token, self.audit.as_ref(), started).await)
            }
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
        if parts.method.as_str().len() > MAX_METHOD {
            return Err(Refusal::Malformed(Malformed::Method));
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

    /// Answers a request, and puts on record what becomes of it.
    async fn answered(
        &self,
        parts: Parts,
        body: Incoming,
        token: &Secret,
        audit: Option<&Audit>,
        now: Instant,
    ) -> Result<Response<AnswerBody>, Refusal> {
        let Origin { host, port, .. } = &self.route.upstream;
        let (path, _) = self.unjudged(&parts);
        let subject = Subject::request(HARNESS.into(), host.as_str(), *port, parts.method.as_str(), &path);
        let record = audit.map(|audit| Record { audit, subject: &subject });
        let answered = self.forward(parts, body, token, record, now).await;
        if let (Err(refusal), Some(Record { audit, .. })) = (&answered, record)
            && refusal.is_decision()
        {
            let credential = self.route.credential.as_ref().map(Credential::label);
            audit.denied(credential.as_deref(), &subject, &refusal.to_string());
        }
        answered
    }

    async fn forward(
        &self,
        parts: Parts,
        body: Incoming,
        token: &Secret,
        record: Option<Record<'_>>,
        now: Instant,
    ) -> Result<Response<AnswerBody>, Refusal> {
        let uri = self.target(&parts)?;
        let (host, method) = (self.route.upstream.host.as_str(), parts.method.clone());
        let mut secret = self.secret(now).await?;
        let mut values = self.values(secret.as_ref())?;
        let Some((Source::OAuth(refresher), _)) = &self.source else {
            let body = Either::Left(Relayed::new(body, REQUEST_IDLE_TIMEOUT));
            let response = self.send(parts, uri, body, token, secret.as_deref(), record).await?;
            return answer(host, &method, response, values);
        };
        let (body, kept) = keep(body).await?;
        let again = kept.map(|body| (parts.clone(), body));
        let mut response = self.send(parts, uri.clone(), body, token, secret.as_deref(), record).await?;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(used) = &secret
            && let Some(renewed) = refresher.rejected(used).await
            && let Some((parts, body)) = again
        {
            secret = Some(renewed);
            values = self.values(secret.as_ref())?;
            let body = Either::Right(Full::new(body));
            response = self.send(parts, uri, body, token, secret.as_deref(), record).await?;
        }
        answer(host, &method, response, values)
    }

    /// What must not come back in the answer to a request with this value.
    fn values(&self, secret: Option<&Arc<Secret>>) -> Result<Values, Refusal> {
        let (Some((_, known)), Some(secret), Some(credential)) = (&self.source, secret, &self.route.credential) else {
            return Ok(Values::default());
        };
        let unscrubbable = |problem| Refusal::Unscrubbable { credential: credential.name.clone(), problem };
        known.with(secret).map_err(unscrubbable)
    }

    /// Sends a request with this credential, and nothing that was meant for the proxy.
    async fn send(
        &self,
        parts: Parts,
        uri: Uri,
        body: Outgoing,
        token: &Secret,
        secret: Option<&Secret>,
        record: Option<Record<'_>>,
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
        if let (Some(Record { audit, subject }), Some(credential)) = (record, &self.route.credential) {
            audit.used(&credential.label(), subject).await?;
        }
        let response = self.upstream.send(host, outgoing).await?;
        self.last_word.note(response.status());
        Ok(response)
    }

    /// The credential's value, if the route has a credential.
    async fn secret(&self, now: Instant) -> Result<Option<Arc<Secret>>, Refusal> {
        let (Some(credential), Some((source, _))) = (&self.route.credential, &self.source) else {
            return Ok(None);
        };
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

    /// Path and query on the upstream, which nobody has judged.
    fn unjudged<'a>(&'a self, parts: &'a Parts) -> (String, Option<&'a str>) {
        let Route { base_path, exact, .. } = &self.route;
        let (path, query) = match exact {
            Some(exact) => {
                exact.split_once('?').map_or((exact.clone(), None), |(path, query)| (path.to_owned(), Some(query)))
            }
            None => {
                let rest = self.rest(parts.uri.path()).unwrap_or_default();
                (format!("{base_path}{rest}"), parts.uri.query())
            }
        };
        (if path.is_empty() { "/".to_owned() } else { path }, query)
    }

    /// Where on the upstream the route leads.
    fn path_and_query<'a>(&'a self, parts: &'a Parts) -> Result<(PlainPath, Option<&'a str>), Refusal> {
        let Route { upstream, exact, methods, .. } = &self.route;
        let off = |what| Refusal::OffRoute { host: upstream.host.to_string(), what };
        if !methods.is_empty() && !methods.contains(&parts.method) {
            return Err(off("the method is none of those that it has"));
        }
        // TRACE answers with the headers that it was sent; CONNECT would be a tunnel.
        if [Method::TRACE, Method::CONNECT].contains(&parts.method) && self.route.credential.is_none() {
            return Err(off("the method is dangerous"));
        }
        let rest = self.rest(parts.uri.path()).unwrap_or_default();
        if exact.is_some() && (!rest.is_empty() || parts.uri.query().is_some()) {
            return Err(off("neither path nor query can be added"));
        }
        let (path, query) = self.unjudged(parts);
        Ok((PlainPath::parse(&path).map_err(|path| self.refused(path.into()))?, query))
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
