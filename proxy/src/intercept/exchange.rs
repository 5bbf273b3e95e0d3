//! What becomes of a request to a host with a binding: checked, judged, put on record, given its credentials, sent, and its
//! answer passed on without them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header, request::Parts, uri::PathAndQuery,
};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, upgrade::OnUpgrade};

use super::{
    Shared,
    aws::{self, outgoing::Keys},
    bodies::{BoxError, Scrubbed, Shown, Watched, scrub_headers},
    foreign::credential_parameter,
    head::{self, Form, asks_for_websocket, path_and_query},
    judge::{self, Allowed, Asked, Candidate, Denial, judge},
    place::{Growth, NotPlaced, Placed, into_body, into_headers, into_url, is_form},
    placeholder::find,
    refused::Refused,
    scrub::{Values, fits},
    sealed::{self, COPIES, Link, MAX_ANSWER},
    upgrade,
    upstream::{Outgoing, Tasks, Upstream},
    whole::{NotWhole, Whole},
};
use crate::{
    audit::Subject,
    body::Relayed,
    egress::{Answer, SessionContext, Target},
    headers::{framing_conflict, is_encoded, prepare_intercepted_request, prepare_intercepted_response},
    linger::Lingering,
    secret::Secret,
    upstream::IDLE_TIMEOUT,
};

/// How long a client may be silent in the middle of its request.
const REQUEST_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// The largest body into which a credential is placed: it is read as a whole.
const MAX_PLACED_BODY: usize = 1024 * 1024;
/// By how much a head may grow by what is placed in it.
const HEAD_GROWTH: usize = 64 * 1024;

/// Requests of one connection to one target.
pub struct Exchange {
    shared: Arc<Shared>,
    target: Target,
    context: Arc<SessionContext>,
    /// Of the bindings, in their order.
    placeholders: Vec<String>,
    upstream: Upstream,
    tasks: Tasks,
    form: Form,
}

/// A request that may go out.
struct Ready {
    request: Request<Outgoing>,
    /// Whether the body was ended because of a placeholder in it.
    shown: Shown,
    websocket: bool,
    /// Whether it has a credential.
    credentialed: bool,
    /// The binding that the answer's status says something of.
    authenticates: Option<usize>,
    /// What must not come back.
    values: Values,
    /// What was kept by the proxy and must not come back either.
    kept: Values,
    /// Whether the answer may hand out credentials of Git LFS.
    lfs: bool,
    /// The first of what it is asked with, by its name.
    credential: Option<Arc<str>>,
    head_only: bool,
}

impl Exchange {
    /// Exchanges for a target; what they start belongs to `tasks`. `multiplexed` says that the client speaks HTTP/2.
    pub fn new(
        shared: Arc<Shared>,
        target: Target,
        context: Arc<SessionContext>,
        tasks: Tasks,
        form: Form,
        multiplexed: bool,
    ) -> Self {
        let placeholder =
            |bound: &crate::egress::Bound| context.seed.placeholder(&bound.binding.vault, &bound.binding.name);
        let placeholders = context.bindings.iter().map(placeholder).collect();
        let upstream = Upstream::new(target.clone(), &context, &tasks, multiplexed);
        Self { shared, target, context, placeholders, upstream, tasks, form }
    }

    /// Answers a request. Every request is answered, logged and counted, and every refusal is put on record.
    pub async fn handle(&self, request: Request<Lingering<Incoming>>) -> Answer {
        let (parts, body) = request.into_parts();
        let host = self.target.host.to_string();
        let sandbox = self.context.sandbox.clone();
        let subject = Subject::request(sandbox, &host, self.target.port, parts.method.as_str(), parts.uri.path());
        let (outcome, answer) = match self.exchange(parts, body, &subject).await {
            Ok(answer) => ("forwarded", answer),
            Err(refused) => {
                tracing::warn!(%host, method = %subject.method, credential = refused.credential(), reason = %refused, "refused");
                if refused.is_decision() {
                    self.context.audit.denied(refused.credential(), &subject, &refused.to_string());
                }
                (refused.rule().1, refused.answer())
            }
        };
        metrics::counter!("longhand_proxy_intercepted_total", "outcome" => outcome).increment(1);
        answer
    }

    async fn exchange(&self, parts: Parts, body: Lingering<Incoming>, subject: &Subject) -> Result<Answer, Refused> {
        head::check(&parts, &self.target, self.form)?;
        let mut parts = parts;
        let client = parts.extensions.remove::<OnUpgrade>();
        let ready = self.prepare(parts, body, subject).await?;
        let Ready { request, shown, websocket, credentialed, authenticates, values, kept, lfs, credential, head_only } =
            ready;
        let mut response = self.upstream.send(request, websocket).await.map_err(|error| {
            if shown.is_set() { Denial::Unresolved { place: "body" }.into() } else { Refused::from(error) }
        })?;
        if let Some(number) = authenticates {
            self.context.bindings[number].last_word.note(response.status());
        }
        if framing_conflict(response.headers()) {
            return Err(Refused::BadAnswer("two lengths for one body"));
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS && websocket {
            let client = client.ok_or(Refused::BadAnswer("a switch of protocols that this connection cannot make"))?;
            let server = hyper::upgrade::on(&mut response);
            self.tasks.spawn(upgrade::relay(client, server, values.clone()));
            let mut headers = std::mem::take(response.headers_mut());
            prepare_intercepted_response(&mut headers, credentialed);
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            scrub_headers(&mut headers, &values);
            return Ok(answer(StatusCode::SWITCHING_PROTOCOLS, headers, Full::new(Bytes::new())));
        }
        if response.status().is_informational() {
            return Err(Refused::BadAnswer("a switch of protocols that was not asked for"));
        }
        let encoded = is_encoded(response.headers());
        if encoded && credentialed && !head_only && response.status() != StatusCode::NOT_MODIFIED {
            return Err(Refused::BadAnswer(
                "a compressed body, although it was asked not to: it cannot be looked into",
            ));
        }
        let (mut head, body) = response.into_parts();
        prepare_intercepted_response(&mut head.headers, credentialed);
        for values in [&values, &kept] {
            scrub_headers(&mut head.headers, values);
        }
        let body = Relayed::new(body, IDLE_TIMEOUT).with_trailers();
        if let Some(credential) = credential.filter(|_| credentialed && !head_only)
            && sealed::is_due(lfs, head.status.is_success(), &head.headers)
        {
            let sealed = Full::new(self.seal(body, &credential).await?.into_bytes());
            head.headers.remove(header::CONTENT_LENGTH);
            let sealed = sealed.map_err(|never| match never {});
            return Ok(answer(head.status, head.headers, Scrubbed::<_>::new(sealed, values)));
        }
        if encoded {
            // Only of a request without a credential: what is in it cannot be seen.
            return Ok(answer(head.status, head.headers, body));
        }
        let body = Scrubbed::new(body, values);
        Ok(if kept.is_empty() {
            answer(head.status, head.headers, body)
        } else {
            answer(head.status, head.headers, Scrubbed::new(body, kept))
        })
    }

    /// Judges a request, puts what it uses on record, and gives it its credentials.
    async fn prepare(&self, parts: Parts, body: Lingering<Incoming>, subject: &Subject) -> Result<Ready, Refused> {
        let Parts { method, uri, mut headers, version, .. } = parts;
        let now = Instant::now();
        // Another part of the proxy knows the handle, and the judge must not take it for a foreign credential.
        let websocket = self.form == Form::Tunnel && asks_for_websocket(&method, version, &headers);
        prepare_intercepted_request(&mut headers);
        let Target { scheme, host, port, .. } = self.target.clone();
        let link = Link { scheme, host, port, path: path_and_query(&uri).to_owned() };
        let opened = self.shared.sealed.open(&mut headers, &method, &link, now).map_err(|_| Refused::Handle)?;
        let candidates = self.candidates();
        let claim = aws::take(&mut headers, &candidates)?;
        let allowed = judge(&self.asked(&method, &uri, &headers, claim.as_ref()), &candidates)?;

        let in_head = self.secrets(&allowed.used, now)?;
        let placed = self.placed(&in_head);
        let mut room = Growth(HEAD_GROWTH);
        let target = into_url(&uri, &placed, &mut room).map_err(not_placed)?;
        into_headers(&mut headers, &placed, &mut room).map_err(not_placed)?;
        // A secret key only signs: nothing goes out that a server could send back and that is of use to anybody.
        let signs = |number: &usize| claim.as_ref().is_some_and(|claim| claim.number == *number);
        let keys = in_head.iter().find(|(number, _)| signs(number)).map(|(number, secret)| {
            Keys::read(&self.shared.values, &self.context.bindings[*number], secret.clone(), now)
        });
        let keys = keys.transpose()?;
        let shown = Shown::default();
        let (body, in_body, payload) = match &claim {
            Some(claim) => {
                let body = Relayed::new(body, REQUEST_IDLE_TIMEOUT);
                let (body, payload) = aws::outgoing::body(body, claim, shown.clone(), &self.shared.room).await?;
                (body, Vec::new(), payload)
            }
            None => {
                let (body, used) = self.body(body, &headers, &allowed, shown.clone(), now).await?;
                (body, used, String::new())
            }
        };
        let authenticates = allowed.authenticates.filter(|_| in_body.is_empty() && opened.is_empty());
        let mut used = allowed.used.clone();
        used.extend(in_body.iter().map(|(number, _)| *number).filter(|number| !allowed.used.contains(number)));
        let mut labels: Vec<Arc<str>> =
            used.iter().map(|number| self.context.bindings[*number].binding.label().into()).collect();
        for (.., made_for) in &opened {
            if !labels.contains(made_for) {
                labels.push(made_for.clone());
            }
        }
        let kept = opened.iter().filter_map(|(_, value, _)| value.as_bytes().rsplit(|byte| *byte == b' ').next());
        let kept = Values::new(kept.filter(|value| fits(value).is_ok()));
        let kept = kept.map_err(|_| Refused::Handle)?;
        let credentialed = !used.iter().all(signs) || !opened.is_empty();
        for (name, value, _) in opened {
            headers.insert(name, value);
        }
        if credentialed {
            // A value could be taken apart by asking for a piece at a time.
            headers.remove(header::RANGE);
            headers.remove(header::IF_RANGE);
        }
        if websocket {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            // Compressed frames could not be looked into.
            headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
        }
        // What was read before the body came may not be what is in the files by now.
        let placed = in_head.iter().chain(&in_body).map(|(_, secret)| secret).chain(keys.iter().flat_map(Keys::all));
        let placed: Vec<Arc<Secret>> = placed.cloned().collect();
        let values = self.shared.values.of(&self.target.host, &self.context.bindings, &placed, Instant::now());
        let values = values.map_err(|_| Refused::BadAnswer("more values of credentials than can be looked for"))?;
        for label in &labels {
            self.context.audit.used(label, subject).await?;
        }
        let lfs = sealed::is_asked(&method, uri.path(), &headers);
        let uri = self.url(target)?;
        if let Some(claim) = &claim {
            let keys = keys.as_ref().ok_or(Refused::Malformed("it is not signed"))?;
            aws::outgoing::sign(claim, keys, (&method, &uri), &mut headers, &payload)?;
        }
        let credential = labels.into_iter().next();
        let head_only = method == Method::HEAD;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        Ok(Ready { request, shown, websocket, credentialed, authenticates, values, kept, lfs, credential, head_only })
    }

    fn url(&self, target: PathAndQuery) -> Result<Uri, Refused> {
        let uri = Uri::builder().scheme(self.target.scheme.as_str()).authority(self.target.authority());
        let uri = uri.path_and_query(target).build();
        uri.map_err(|_| Refused::Malformed("its path and query make no URL"))
    }

    fn candidates(&self) -> Vec<Candidate<'_>> {
        let pairs = self.placeholders.iter().zip(self.context.bindings.iter());
        pairs.map(|(placeholder, bound)| Candidate { placeholder, binding: &bound.binding }).collect()
    }

    fn asked<'a>(
        &'a self,
        method: &'a Method,
        uri: &'a Uri,
        headers: &'a HeaderMap,
        signing: Option<&'a aws::Claim>,
    ) -> Asked<'a> {
        Asked {
            scheme: self.target.scheme,
            host: &self.target.host,
            port: self.target.port,
            private: self.target.is_private(),
            open: self.context.network.allows(&self.target.host) && !self.target.is_private(),
            method,
            path: uri.path(),
            query: uri.query(),
            headers,
            signing,
        }
    }

    /// The values of some bindings, all of which are there and can be taken out of answers.
    fn secrets(&self, numbers: &[usize], now: Instant) -> Result<Vec<(usize, Arc<Secret>)>, Refused> {
        let secret = |number: &usize| {
            let bound = &self.context.bindings[*number];
            let credential = || bound.binding.label();
            let secret = self.shared.values.read(&bound.file, now);
            let secret = secret.map_err(|condition| Refused::Unavailable { credential: credential(), condition })?;
            fits(secret.expose()).map_err(|_| Refused::Unscrubbable { credential: credential() })?;
            Ok((*number, secret))
        };
        numbers.iter().map(secret).collect()
    }

    fn placed<'a>(&'a self, secrets: &'a [(usize, Arc<Secret>)]) -> Vec<Placed<'a>> {
        let placed =
            |(number, secret): &'a (usize, Arc<Secret>)| Placed { placeholder: &self.placeholders[*number], secret };
        secrets.iter().map(placed).collect()
    }

    /// The body as it goes out, with what of the bindings is in it.
    async fn body(
        &self,
        body: Lingering<Incoming>,
        headers: &HeaderMap,
        allowed: &Allowed,
        shown: Shown,
        now: Instant,
    ) -> Result<(Outgoing, Vec<(usize, Arc<Secret>)>), Refused> {
        let large = body.size_hint().lower() > MAX_PLACED_BODY as u64;
        let body = Relayed::new(body, REQUEST_IDLE_TIMEOUT);
        if allowed.body.is_empty() || large || headers.contains_key(header::CONTENT_ENCODING) {
            return Ok((Watched::new(body, shown).boxed_unsync(), Vec::new()));
        }
        // As it comes, and as it goes on.
        let whole = self.shared.room.read(body, MAX_PLACED_BODY, 2).await;
        let whole = whole.map_err(|problem| Refused::of_body(&problem, MAX_PLACED_BODY))?;
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        // A form has parameters as a query has, and servers take either.
        let form = std::str::from_utf8(whole.bytes()).ok().filter(|_| is_form(kind));
        let foreign = form.and_then(|form| credential_parameter(form, false));
        if let Some(name) = foreign {
            return Err(Denial::Foreign { place: "form", name }.into());
        }
        let asked = find(whole.bytes());
        let asked_for = |number: &&usize| {
            let placeholder = self.placeholders[**number].as_bytes();
            asked.iter().any(|found| &whole.bytes()[found.range.clone()] == placeholder)
        };
        let numbers: Vec<usize> = allowed.body.iter().filter(asked_for).copied().collect();
        let secrets = self.secrets(&numbers, now)?;
        let mut room = Growth(MAX_PLACED_BODY.saturating_sub(whole.bytes().len()));
        let filled = into_body(whole.bytes(), kind, &self.placed(&secrets), &mut room);
        let filled = filled.map_err(|problem| match problem {
            NotPlaced::TooLarge => Refused::BodyTooLarge { limit: MAX_PLACED_BODY },
            NotPlaced::Unresolved | NotPlaced::Unfit => Denial::Unresolved { place: "body" }.into(),
        })?;
        let whole = match filled {
            Some(filled) => whole.with(filled),
            None => whole,
        };
        Ok((Full::new(whole.into_bytes()).map_err(|never| match never {}).boxed_unsync(), secrets))
    }

    /// Keeps what Git LFS hands out.
    async fn seal(&self, body: Relayed<Incoming>, credential: &Arc<str>) -> Result<Whole, Refused> {
        let whole = self.shared.room.read(body, MAX_ANSWER, COPIES).await.map_err(|problem| match problem {
            NotWhole::Busy => Refused::Busy,
            NotWhole::TooLarge | NotWhole::Broken(_) => {
                Refused::BadAnswer("credentials for Git LFS, which is too large or ended early")
            }
        })?;
        let bound = |link: &Link, method: &Method| {
            let Link { scheme, host, port, .. } = link;
            let mut rules = self.context.bindings.iter().map(|bound| &bound.binding.rule);
            rules.any(|rule| judge::matches(rule, *scheme, host, *port, method, link.path_only()).is_ok())
        };
        let sealed = self.shared.sealed.seal(whole.bytes(), credential, bound, Instant::now())?;
        Ok(whole.with(sealed))
    }
}

fn not_placed(problem: NotPlaced) -> Refused {
    match problem {
        NotPlaced::TooLarge => Refused::HeadTooLarge,
        NotPlaced::Unfit => Refused::Malformed("its head is none with its credential"),
        NotPlaced::Unresolved => Denial::Unresolved { place: "head" }.into(),
    }
}

fn answer<B>(status: StatusCode, headers: HeaderMap, body: B) -> Answer
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let mut answer = Response::new(body.map_err(Into::into).boxed_unsync());
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    answer
}
