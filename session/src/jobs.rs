//! What the log needs from time to time: old events leave etcd, what nothing refers to is removed, etcd gets room.
//!
//! Every replica watches how full etcd is. One of them, which holds a lease in etcd, does the rest; when the lease is
//! lost its work stops, and another begins. Each job is safe to be broken off anywhere.

pub mod config;
mod files;
mod namespaces;
mod plan;
mod space;

use std::collections::BTreeMap;
use std::future::ready;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use longhand_session_log::StoreError;
use longhand_session_log::archive::ArchivePolicy;
use longhand_session_log::etcd::EtcdStore;
use longhand_session_log::objects::DEADLINE;
use longhand_session_log::requests::{EtcdRequests, Requests as _};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

pub(crate) use self::files::FileJobs;
pub(crate) use self::namespaces::Namespaces;
pub(crate) use self::space::{Alarm, ShardAlarm, watch};
use crate::jobs::config::JobsConfig;
use crate::metrics;
use crate::resources::Cluster;

/// The right to do the jobs runs out so long after it was last renewed.
const LEASE: Duration = Duration::from_secs(15);
/// Members of a full etcd stand still for a defragmentation at most so often.
const DEFRAGMENT_AGAIN: Duration = Duration::from_secs(600);
/// How often it is looked for requests whose `Idempotency-Key` is over, and for files that are over.
const FORGET: Duration = Duration::from_secs(600);
/// Sessions that are looked at together.
const PAGE: usize = 256;
/// Segments of one session that are made before the next session's turn.
const SEGMENTS_AT_ONCE: usize = 16;

/// What the jobs work on.
pub(crate) struct Jobs {
    pub(crate) store: EtcdStore,
    pub(crate) config: JobsConfig,
    pub(crate) alarm: ShardAlarm,
    /// Who is told of namespaces that are full, if it is these jobs' to do so.
    pub(crate) namespaces: Option<Namespaces>,
    /// Files that clients upload, if they are kept here.
    pub(crate) files: Option<FileJobs<Cluster>>,
    /// Requests with an `Idempotency-Key`, if they are kept here.
    pub(crate) requests: Option<EtcdRequests>,
}

impl Jobs {
    /// Does the jobs whenever this replica is the one to do them, until `end`.
    pub(crate) async fn run(mut self, end: CancellationToken) {
        while !end.is_cancelled() {
            match self.store.lead("jobs", LEASE).await {
                Ok(Some(mut lead)) => {
                    tracing::info!("this replica maintains the log");
                    let keep = async {
                        while lead.renew().await {
                            sleep(lead.interval()).await;
                        }
                    };
                    tokio::select! {
                        () = end.cancelled() => {}
                        () = keep => tracing::warn!("another replica may maintain the log from now on"),
                        () = self.work() => {}
                    }
                    lead.resign().await;
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "etcd does not say who maintains the log"),
            }
            end.run_until_cancelled(sleep(LEASE / 3)).await;
        }
    }

    /// All jobs in turn, for ever.
    async fn work(&mut self) {
        let config = self.config.clone();
        let now = Instant::now();
        let (mut revision, mut defragmented) = (None, None);
        let (mut maintain, mut compact, mut forget) = (now, now, now);
        // What the one before has asked the object store to remove has come to its end then.
        let mut collect = now + DEADLINE * 2;
        loop {
            if maintain <= Instant::now() {
                self.job("space", self.make_room(&mut defragmented)).await;
                if self.job("sessions", self.look_through()).await.is_some()
                    && let Some(namespaces) = &mut self.namespaces
                {
                    let told = namespaces.tell().await;
                    self.job("namespaces", ready(told)).await;
                }
                maintain = Instant::now() + config.maintenance();
            }
            if compact <= Instant::now() {
                let before = revision.take();
                revision = self.job("compact", self.compact(before)).await;
                compact = Instant::now() + config.compaction();
            }
            if let Some(requests) = self.requests.as_ref().filter(|_| forget <= Instant::now()) {
                if let Some(count) = self.job("requests", requests.sweep(Timestamp::now())).await {
                    metrics::forgotten(count);
                }
                if let Some(files) = &self.files {
                    self.job("files", files.sweep()).await;
                }
                forget = Instant::now() + FORGET;
            }
            if config.objects_url.is_some() && collect <= Instant::now() {
                self.job("collect", self.collect()).await;
                collect = Instant::now() + config.collection();
            }
            let mut next = maintain.min(compact);
            if config.objects_url.is_some() {
                next = next.min(collect);
            }
            if self.requests.is_some() {
                next = next.min(forget);
            }
            sleep_until(next).await;
        }
    }

    async fn job<T>(&self, name: &'static str, work: impl Future<Output = Result<T, StoreError>>) -> Option<T> {
        match work.await {
            Ok(done) => Some(done),
            Err(error) => {
                tracing::warn!(job = name, %error, "a job of the log failed and is tried again");
                metrics::log_job_failed(name);
                None
            }
        }
    }

    /// Looks at every session: counts what it holds, and moves its old events out of etcd. One whose events cannot be moved
    /// keeps no other from it.
    async fn look_through(&self) -> Result<(), StoreError> {
        let policy = ArchivePolicy::default();
        let (mut after, mut counted, now) = (None, BTreeMap::new(), Timestamp::now());
        loop {
            let (page, next) = self.store.survey(after.as_ref(), PAGE).await?;
            for activity in page {
                let id = &activity.meta.id;
                namespaces::count_in(&mut counted, &activity.meta.namespace, activity.size.bytes, now);
                if self.config.objects_url.is_none() {
                    continue;
                }
                if let Err(error) = self.archive_one(&activity, &policy).await {
                    tracing::warn!(session = %id, %error, "the events of a session stay in etcd for now");
                    metrics::log_job_failed("archive");
                }
            }
            if next.is_none() {
                if let Some(files) = &self.files {
                    files.count_in(&mut counted, now).await?;
                }
                return self.store.put_holdings(&counted).await;
            }
            after = next;
        }
    }

    async fn archive_one(
        &self,
        activity: &longhand_session_log::etcd::Activity,
        policy: &ArchivePolicy,
    ) -> Result<(), StoreError> {
        let id = &activity.meta.id;
        let now = Timestamp::now();
        if let Some(reach) = plan::reach(activity, policy, self.config.archive_after(), now) {
            for _ in 0..SEGMENTS_AT_ONCE {
                match self.store.archive_segment(id, policy, reach).await? {
                    Some(archived) => metrics::log_archived(&archived),
                    None => break,
                }
            }
        }
        if plan::may_forget(activity, now) {
            self.store.forget(id, plan::REMEMBERED, now).await?;
        }
        Ok(())
    }

    async fn collect(&self) -> Result<(), StoreError> {
        let grace = SignedDuration::from_secs(i64::from(self.config.collect_grace_seconds));
        let collected = self.store.collect(grace, Timestamp::now()).await?;
        metrics::log_collected(&collected);
        Ok(())
    }

    /// Drops what was history when it was last asked; the revision to drop next time.
    async fn compact(&self, before: Option<i64>) -> Result<i64, StoreError> {
        if let Some(revision) = before {
            self.store.compact(revision).await?;
        }
        self.store.revision().await
    }

    /// Gives room back to the disk that is not in use, and takes new events again when there is room.
    async fn make_room(&self, defragmented: &mut Option<Instant>) -> Result<(), StoreError> {
        let space = self.store.space().await?;
        // What is in use is told late by a member that takes nothing new, so all of them are defragmented then.
        let all = space.alarm && defragmented.is_none_or(|last| last.elapsed() >= DEFRAGMENT_AGAIN);
        if all {
            *defragmented = Some(Instant::now());
            self.store.compact(self.store.revision().await?).await?;
        }
        let chosen: Vec<&str> = match all {
            true => space.members.iter().map(|member| member.endpoint.as_str()).collect(),
            false => space.fragmented(space::LEAST_FRAGMENTED).map(|member| member.endpoint.as_str()).collect(),
        };
        for endpoint in chosen {
            tracing::info!(endpoint, "a member of etcd gives room back to its disk");
            self.store.defragment(endpoint).await?;
        }
        if space.alarm && self.store.space().await?.has_room() {
            self.store.disarm().await?;
            tracing::info!("etcd has room again and takes new events");
            self.alarm.observe(&self.store.space().await?);
        }
        Ok(())
    }
}
