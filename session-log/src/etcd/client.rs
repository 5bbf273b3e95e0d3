//! The IO: reads, transactions, leases, each with a deadline; and the loop that carries a plan out.

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error, KeyValue, KvClient, TxnOpResponse, TxnResponse};
use tokio::time::{Instant, timeout};
use tonic::Code;

use super::plan::Plan;
use super::view::{Kv, Look, View};
use super::write::{Write, read_txn};
use crate::store::{Result, StoreError};

/// Answers hold at most a page of records or an inbox; both are bounded in number, and each value by etcd.
const MAX_ANSWER_BYTES: usize = 512 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Etcd refuses pings that come more often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A connection to etcd that gives every call a deadline.
#[derive(Clone)]
pub(crate) struct Etcd {
    client: Client,
    kv: KvClient,
    timeout: Duration,
}

/// Why a call to etcd failed.
#[derive(Debug)]
enum Failure {
    /// It was not carried out, and trying again would not help.
    Refused(StoreError),
    /// Whether it was carried out is not known.
    Unknown(String),
}

/// What a transaction that was carried out has removed.
pub(crate) type Removed = Vec<Kv>;

enum Attempt {
    Done(Removed),
    /// A guard did not hold; this is what was there.
    Refused(View),
}

impl Etcd {
    /// Etcd may be away; it is connected to when it is first needed.
    pub(crate) async fn connect(endpoints: &[String], deadline: Duration) -> Result<Self> {
        let options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        let connecting = Client::connect(endpoints, Some(options));
        let client = timeout(deadline, connecting)
            .await
            .map_err(|_| StoreError::Unavailable("etcd did not answer in time".to_owned()))?
            .map_err(|error| StoreError::Unavailable(format!("etcd at {}: {error}", endpoints.join(", "))))?;
        let kv = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
        Ok(Self { client, kv, timeout: deadline })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// One call to etcd, within the deadline.
    async fn call<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
        match timeout(self.timeout, call).await {
            Ok(answer) => answer.map_err(Failure::from),
            Err(_) => Err(Failure::Unknown(format!("etcd did not answer within {:?}", self.timeout))),
        }
    }

    /// Reads, at one revision. Tries again while etcd is away, until the deadline.
    pub(crate) async fn look(&self, looks: &[Look]) -> Result<View> {
        let mut retry = Retry::new(self.timeout);
        loop {
            let mut kv = self.kv.clone();
            match self.call(kv.txn(read_txn(looks))).await {
                Ok(answer) => return view(looks, &answer),
                Err(Failure::Refused(error)) => return Err(error),
                Err(Failure::Unknown(reason)) => retry.pause(reason).await?,
            }
        }
    }

    /// Carries a plan out: first by what is assumed, if anything is; then by what is read.
    ///
    /// After an ambiguous failure everything is read back before anything is tried again. The same events' identifiers
    /// and the same guards make a second attempt safe even if the first is still on its way.
    pub(crate) async fn carry_out<T>(
        &self,
        looks: &[Look],
        assumed: Option<View>,
        plan: impl Fn(&View) -> Result<Plan<T>> + Send,
    ) -> Result<(T, Removed)> {
        let mut retry = Retry::new(self.timeout.saturating_mul(2));
        let mut next = assumed;
        let mut in_doubt = false;
        loop {
            let mut view = match next.take() {
                Some(view) => view,
                None => self.look(looks).await?,
            };
            view.in_doubt = in_doubt;
            match plan(&view)? {
                Plan::Done(outcome) => return Ok((outcome, Removed::new())),
                Plan::Read(more) => {
                    view.absorb(self.look(&more).await?);
                    next = Some(view);
                    retry.check("the session changes faster than it can be read")?;
                }
                Plan::Write(write, outcome) => match self.attempt(write, looks).await {
                    Ok(Attempt::Done(removed)) => return Ok((outcome, removed)),
                    Ok(Attempt::Refused(found)) => {
                        next = Some(found);
                        retry.check("the session changes faster than this change can be made")?;
                    }
                    Err(Failure::Refused(error)) => return Err(error),
                    Err(Failure::Unknown(reason)) => {
                        in_doubt = true;
                        retry.pause(reason).await?;
                    }
                },
            }
        }
    }

    async fn attempt(&self, write: Write, otherwise: &[Look]) -> Result<Attempt, Failure> {
        let mut kv = self.kv.clone();
        let answer = self.call(kv.txn(write.into_txn(otherwise))).await?;
        if !answer.succeeded() {
            return view(otherwise, &answer).map(Attempt::Refused).map_err(Failure::Refused);
        }
        let mut removed = Removed::new();
        for response in answer.op_responses() {
            if let TxnOpResponse::Delete(deleted) = response {
                for kv in deleted.prev_kvs() {
                    removed.push(to_kv(kv).map_err(Failure::Refused)?);
                }
            }
        }
        Ok(Attempt::Done(removed))
    }

    /// Grants a lease.
    pub(crate) async fn grant(&self, ttl: Duration) -> Result<i64> {
        let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0)).max(1);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let mut leases = self.client.lease_client();
        let granted = self.call(leases.grant(seconds, None)).await.map_err(Failure::into_store)?;
        Ok(granted.id())
    }

    /// Renews a lease once; false when it has run out.
    pub(crate) async fn keep_alive(&self, lease: i64) -> Result<bool> {
        let mut leases = self.client.lease_client();
        let renewed = async {
            match leases.keep_alive(lease).await {
                Ok(_) => Ok(true),
                Err(Error::LeaseKeepAliveError(_)) => Ok(false),
                Err(error) => Err(error),
            }
        };
        self.call(renewed).await.map_err(Failure::into_store)
    }

    /// Ends a lease. If that fails it ends by itself.
    pub(crate) async fn revoke(&self, lease: i64) {
        let mut leases = self.client.lease_client();
        if let Err(failure) = self.call(leases.revoke(lease)).await {
            tracing::debug!(lease, ?failure, "a lease was not revoked and runs out by itself");
        }
    }

    /// Removes keys from `from` up to, but without, `to`.
    pub(crate) async fn remove_range(&self, from: &str, to: &str) -> Result<()> {
        let mut kv = self.kv.clone();
        let options = etcd_client::DeleteOptions::new().with_range(to);
        self.call(kv.delete(from, Some(options))).await.map_err(Failure::into_store)?;
        Ok(())
    }

    /// At most `limit` keys with the prefix, in order, without their values.
    pub(crate) async fn keys(&self, prefix: &str, limit: i64) -> Result<Vec<String>> {
        let mut kv = self.kv.clone();
        let options = etcd_client::GetOptions::new().with_prefix().with_keys_only().with_limit(limit);
        let answer = self.call(kv.get(prefix, Some(options))).await.map_err(Failure::into_store)?;
        answer.kvs().iter().map(|kv| to_kv(kv).map(|kv| kv.key)).collect()
    }

    /// Every key with the prefix and the revision at which that was so.
    pub(crate) async fn snapshot(&self, prefix: &str) -> Result<(Vec<Kv>, i64)> {
        let mut kv = self.kv.clone();
        let options = etcd_client::GetOptions::new().with_prefix();
        let answer = self.call(kv.get(prefix, Some(options))).await.map_err(Failure::into_store)?;
        let kvs = answer.kvs().iter().map(to_kv).collect::<Result<_>>()?;
        Ok((kvs, answer.header().map_or(0, etcd_client::ResponseHeader::revision)))
    }

    /// The revision of the last change of anything; `key` is one that may be read.
    pub(crate) async fn revision(&self, key: &str) -> Result<i64> {
        let mut kv = self.kv.clone();
        let options = etcd_client::GetOptions::new().with_keys_only();
        let answer = self.call(kv.get(key, Some(options))).await.map_err(Failure::into_store)?;
        Ok(answer.header().map_or(0, etcd_client::ResponseHeader::revision))
    }
}

/// Growing pauses until a deadline.
struct Retry {
    until: Instant,
    pause: Duration,
}

impl Retry {
    fn new(limit: Duration) -> Self {
        Self { until: Instant::now() + limit, pause: FIRST_PAUSE }
    }

    fn check(&self, reason: &str) -> Result<()> {
        if Instant::now() >= self.until { Err(StoreError::Unavailable(reason.to_owned())) } else { Ok(()) }
    }

    async fn pause(&mut self, reason: String) -> Result<()> {
        if Instant::now() + self.pause >= self.until {
            return Err(StoreError::Unavailable(reason));
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

impl Failure {
    fn into_store(self) -> StoreError {
        match self {
            Self::Refused(error) => error,
            Self::Unknown(reason) => StoreError::Unavailable(reason),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) => match status.code() {
                // Keys are never empty and never put twice, so it is the size.
                Code::InvalidArgument => Self::Refused(StoreError::TooLarge(status.message().to_owned())),
                Code::NotFound
                | Code::PermissionDenied
                | Code::Unauthenticated
                | Code::ResourceExhausted
                | Code::FailedPrecondition
                | Code::OutOfRange
                | Code::Unimplemented => {
                    Self::Refused(StoreError::Unavailable(format!("etcd refuses: {}", status.message())))
                }
                _ => Self::Unknown(status.message().to_owned()),
            },
            Error::TransportError(_) | Error::IoError(_) | Error::WatchError(_) | Error::LeaseKeepAliveError(_) => {
                Self::Unknown(error.to_string())
            }
            _ => Self::Refused(StoreError::Unavailable(error.to_string())),
        }
    }
}

/// A key as etcd gives it. All of ours are text.
pub(crate) fn to_kv(kv: &KeyValue) -> Result<Kv> {
    let key = kv.key_str().map_err(|error| StoreError::Corrupt {
        key: String::from_utf8_lossy(kv.key()).into_owned(),
        reason: error.to_string(),
    })?;
    Ok(Kv {
        key: key.to_owned(),
        value: kv.value().to_vec(),
        create_revision: kv.create_revision(),
        mod_revision: kv.mod_revision(),
        lease: kv.lease(),
    })
}

fn view(looks: &[Look], answer: &TxnResponse) -> Result<View> {
    let mut view = View::default();
    for (look, response) in looks.iter().zip(answer.op_responses()) {
        if let TxnOpResponse::Get(found) = response {
            let kvs = found.kvs().iter().map(to_kv).collect::<Result<_>>()?;
            view.answer(look, kvs, usize::try_from(found.count()).unwrap_or(usize::MAX));
        }
    }
    Ok(view)
}
