//! The IO: reads, transactions, leases, each with a deadline; and the loop that carries a plan out.

use std::time::Duration;

use etcd_client::{Error, KeyValue, KvClient, TxnOpResponse, TxnResponse, WatchOptions, WatchStream};
use tokio::time::Instant;

use super::EtcdOptions;
use super::batch::Batcher;
use super::failure::{Failure, Trouble};
use super::keys::Keys;
use super::link::Link;
use super::plan::Plan;
use super::view::{Kv, Look, View};
use super::write::{Freshness, read_txn};
use crate::store::{Result, StoreError};

/// Answers hold at most a page of records or an inbox; both are bounded in number, and each value by etcd.
const MAX_ANSWER_BYTES: usize = 512 * 1024 * 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Etcd, with the loops that make its answers dependable.
#[derive(Clone)]
pub(crate) struct Etcd {
    link: Link,
    kv: KvClient,
    batcher: Batcher,
    timeout: Duration,
}

/// What a transaction that was carried out has removed.
pub(crate) type Removed = Vec<Kv>;

/// What became of a transaction.
#[derive(Debug)]
pub(super) enum Attempt {
    /// It was carried out.
    Done(Removed),
    /// A guard did not hold.
    Refused,
}

/// Who reads what a plan asks for once it has seen what it looked at first.
pub(crate) trait Again {
    /// Reads these.
    fn look_again(&self, looks: &[Look]) -> impl Future<Output = Result<View>> + Send;
}

impl Again for Etcd {
    async fn look_again(&self, looks: &[Look]) -> Result<View> {
        self.look(looks).await
    }
}

impl Etcd {
    /// Etcd may be away; it is connected to when it is first needed.
    pub(crate) async fn connect(endpoints: &[String], options: &EtcdOptions) -> Result<Self> {
        let link = Link::open(endpoints, options).await?;
        let kv = link.client().kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
        let batcher = Batcher::on(link.clone(), kv.clone(), Keys::new(&options.prefix), options.timeout);
        Ok(Self { link, kv, batcher, timeout: options.timeout })
    }

    /// The connection, for what only an administrator does.
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// How long one call may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Opens a watch over a prefix.
    pub(super) async fn watch(&self, prefix: &str, options: WatchOptions) -> Result<WatchStream> {
        self.link.watch(prefix, options).await.map_err(Failure::into_store)
    }

    /// A watch is broken for this reason.
    pub(super) async fn distrust(&self, reason: &str) {
        self.link.distrust(reason).await;
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
        self.link.call(call).await
    }

    /// Reads, at one revision. Tries again while etcd is away, until the deadline.
    pub(crate) async fn look(&self, looks: &[Look]) -> Result<View> {
        self.look_at(looks, Freshness::Linearizable).await
    }

    /// Reads, at one revision, which need not be the last.
    pub(crate) async fn look_at(&self, looks: &[Look], freshness: Freshness) -> Result<View> {
        let mut retry = Retry::new(self.timeout);
        loop {
            let mut kv = self.kv.clone();
            match self.call(kv.txn(read_txn(looks, freshness))).await {
                Ok(answer) => return view(looks, &answer),
                Err(Failure::Refused(error)) => return Err(error),
                Err(Failure::Trouble(trouble)) => retry.pause(trouble).await?,
            }
        }
    }

    /// Carries a plan out: first by what is assumed, if anything is; then by what is read. Nothing is refused by what is
    /// only assumed.
    ///
    /// After an ambiguous failure everything is read back before anything is tried again. The same events' identifiers
    /// and the same guards make a second attempt safe even if the first is still on its way.
    pub(crate) async fn carry_out<T>(
        &self,
        looks: &[Look],
        assumed: Option<View>,
        plan: impl Fn(&View) -> Result<Plan<T>> + Send,
    ) -> Result<(T, Removed)> {
        self.carry_out_with(self, looks, assumed, plan).await
    }

    /// The same; what a plan asks to read besides is read by `again`.
    pub(crate) async fn carry_out_with<T>(
        &self,
        again: &(impl Again + Sync),
        looks: &[Look],
        assumed: Option<View>,
        plan: impl Fn(&View) -> Result<Plan<T>> + Send,
    ) -> Result<(T, Removed)> {
        let mut retry = Retry::new(self.timeout.saturating_mul(2));
        let mut is_assumed = assumed.is_some();
        let mut next = assumed;
        let mut in_doubt = false;
        let mut no_space = false;
        loop {
            let mut view = match next.take() {
                Some(view) => view,
                None => self.look(looks).await?,
            };
            view.in_doubt = in_doubt;
            let planned = match plan(&view) {
                // What is out of date refuses nobody.
                Err(_) if is_assumed => {
                    is_assumed = false;
                    continue;
                }
                planned => planned?,
            };
            is_assumed = false;
            match planned {
                Plan::Done(outcome) => return Ok((outcome, Removed::new())),
                Plan::Read(more) => {
                    view.absorb(again.look_again(&more).await?);
                    next = Some(view);
                    retry.check("the session changes faster than it can be read")?;
                }
                Plan::Write(..) if no_space => return Err(StoreError::NoSpace),
                Plan::Write(write, outcome) => match self.batcher.submit(write).await {
                    Ok(Attempt::Done(removed)) => return Ok((outcome, removed)),
                    Ok(Attempt::Refused) => {
                        retry.check("the session changes faster than this change can be made")?;
                    }
                    Err(Failure::Refused(error)) => return Err(error),
                    Err(Failure::Trouble(Trouble::Busy)) if !in_doubt => return Err(Trouble::Busy.into_store()),
                    Err(Failure::Trouble(trouble)) => {
                        in_doubt = true;
                        no_space = trouble == Trouble::NoSpace;
                        if !no_space {
                            retry.pause(trouble).await?;
                        }
                    }
                },
            }
        }
    }

    /// Grants a lease.
    pub(crate) async fn grant(&self, ttl: Duration) -> Result<i64> {
        let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0)).max(1);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let mut leases = self.link.client().lease_client();
        let granted = self.call(leases.grant(seconds, None)).await.map_err(Failure::into_store)?;
        Ok(granted.id())
    }

    /// Renews a lease once; false when it has run out.
    pub(crate) async fn keep_alive(&self, lease: i64) -> Result<bool> {
        let mut leases = self.link.client().lease_client();
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
        let mut leases = self.link.client().lease_client();
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

    async fn pause(&mut self, trouble: Trouble) -> Result<()> {
        if Instant::now() + self.pause >= self.until {
            return Err(StoreError::Unavailable(trouble.to_string()));
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
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

/// What a transaction has read.
pub(super) fn view(looks: &[Look], answer: &TxnResponse) -> Result<View> {
    let mut view = View::default();
    for (look, response) in looks.iter().zip(answer.op_responses()) {
        if let TxnOpResponse::Get(found) = response {
            let kvs = found.kvs().iter().map(to_kv).collect::<Result<_>>()?;
            view.answer(look, kvs, usize::try_from(found.count()).unwrap_or(usize::MAX));
        }
    }
    Ok(view)
}
