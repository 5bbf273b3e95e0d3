//! What etcd needs from its user: room, and one who makes it.

use std::time::Duration;

use etcd_client::{AlarmAction, AlarmOptions, AlarmType, CompactionOptions};
use jiff::Timestamp;
use longhand_protocol::SessionId;
use tokio::time::Instant;

use super::client::Etcd;
use super::failure::Failure;
use super::link::Link;
use super::plan::Plan;
use super::view::{Kv, Look, View};
use super::write::{Change, Guard, Write};
use super::{EtcdOptions, EtcdStore};
use crate::store::{Result, SessionMeta, Size, StoreError};

/// How long a member may take to write its data again.
const REWRITE: Duration = Duration::from_secs(300);
/// Sessions that are looked at in one read: each takes three operations of etcd's 128.
const TOGETHER: usize = 32;

/// The disk of one member of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberSpace {
    /// How it is reached.
    pub endpoint: String,
    /// Its identifier.
    pub member: u64,
    /// Size of its database file.
    pub db_bytes: u64,
    /// How much of the file is in use.
    pub used_bytes: u64,
    /// How large the file may become; 0 if the member does not say.
    pub quota_bytes: u64,
}

/// The disks of all members that answer, and whether one of them is full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Each member once.
    pub members: Vec<MemberSpace>,
    /// The NOSPACE alarm is on: nothing new is taken.
    pub alarm: bool,
}

impl Space {
    /// The largest share of its quota that a member's file takes, in percent; `None` if no member says its quota.
    #[must_use]
    pub fn percent_of_quota(&self) -> Option<u64> {
        let percent = |member: &MemberSpace| member.db_bytes.saturating_mul(100).checked_div(member.quota_bytes);
        self.members.iter().filter_map(percent).max()
    }

    /// The members whose files are more than half empty and larger than `least`.
    pub fn fragmented(&self, least: u64) -> impl Iterator<Item = &MemberSpace> {
        self.members
            .iter()
            .filter(move |member| member.db_bytes > least && member.used_bytes.saturating_mul(2) < member.db_bytes)
    }

    /// Whether every member that answers has room again, so that the alarm may be turned off.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let roomy = |member: &MemberSpace| {
            member.quota_bytes == 0 || member.db_bytes < member.quota_bytes - member.quota_bytes / 10
        };
        !self.members.is_empty() && self.members.iter().all(roomy)
    }
}

/// A session, as far as those who move or remove its events care.
#[derive(Clone, Debug, PartialEq)]
pub struct Activity {
    /// Its metadata.
    pub meta: SessionMeta,
    /// How many of its events are in etcd.
    pub hot_events: u64,
    /// Work is open.
    pub awake: bool,
    /// It was archived, that is, ended for good.
    pub archived_at: Option<Timestamp>,
    /// When its log last grew.
    pub updated_at: Timestamp,
    /// What its own log takes.
    pub size: Size,
}

/// The right to do what one replica at a time does. It runs out by itself if it is not renewed.
pub struct Lead {
    etcd: Etcd,
    lease: i64,
    ttl: Duration,
    until: Instant,
}

impl Lead {
    /// Keeps the right; false when it is lost, or may be. Whoever holds it must stop then.
    pub async fn renew(&mut self) -> bool {
        let sent = Instant::now();
        match self.etcd.keep_alive(self.lease).await {
            Ok(true) => {
                self.until = sent + self.ttl;
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::debug!(%error, "the right to maintain the log was not renewed");
                Instant::now() < self.until
            }
        }
    }

    /// How often it should be renewed.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.ttl / 3
    }

    /// Gives it up, so that another need not wait.
    pub async fn resign(self) {
        self.etcd.revoke(self.lease).await;
    }
}

impl EtcdStore {
    /// Takes the right to do `job` for as long as it is renewed; `None` if another has it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if etcd is away.
    pub async fn lead(&self, job: &str, ttl: Duration) -> Result<Option<Lead>> {
        let key = self.inner.keys.service(job);
        let look = [Look::Key(key.clone())];
        if self.inner.etcd.look(&look).await?.get(&key).is_some() {
            return Ok(None);
        }
        let granted = Instant::now();
        let lease = self.inner.etcd.grant(ttl).await?;
        let plan = |view: &View| match view.get(&key) {
            Some(held) => Ok(Plan::Done(held.lease == lease)),
            None => {
                let mut write = Write::default();
                write.guard(Guard::Absent(key.clone()));
                write.changes.push(Change::PutLeased(key.clone(), b"held".to_vec(), lease));
                Ok(Plan::Write(write, true))
            }
        };
        let taken = self.inner.etcd.carry_out(&look, None, plan).await;
        match taken {
            Ok((true, _)) => Ok(Some(Lead { etcd: self.inner.etcd.clone(), lease, ttl, until: granted + ttl })),
            other => {
                self.inner.etcd.revoke(lease).await;
                other.map(|_| None)
            }
        }
    }

    /// How full etcd is. Members that do not answer are left out.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if none answers.
    pub async fn space(&self) -> Result<Space> {
        let mut space = Space::default();
        let mut last = StoreError::Unavailable("there is no etcd".to_owned());
        for endpoint in &self.inner.endpoints {
            match self.member(endpoint).await {
                Ok((member, alarm)) => {
                    space.alarm |= alarm;
                    if space.members.iter().all(|known| known.member != member.member) {
                        space.members.push(member);
                    }
                }
                Err(error) => {
                    tracing::debug!(endpoint, %error, "a member of etcd does not say how full it is");
                    last = error;
                }
            }
        }
        if space.members.is_empty() { Err(last) } else { Ok(space) }
    }

    async fn member(&self, endpoint: &str) -> Result<(MemberSpace, bool)> {
        let link = self.link(&[endpoint.to_owned()], self.inner.options.timeout).await?;
        let mut client = link.client().maintenance_client();
        let status = link.call(client.status()).await.map_err(Failure::into_store)?;
        let asked = client.alarm(AlarmAction::Get, AlarmType::Nospace, None);
        let alarms = link.call(asked).await.map_err(Failure::into_store)?;
        let size = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
        let member = MemberSpace {
            endpoint: endpoint.to_owned(),
            member: status.header().map_or(0, etcd_client::ResponseHeader::member_id),
            db_bytes: size(status.db_size()),
            used_bytes: size(status.raft_used_db_size()),
            quota_bytes: size(status.db_size_quota()),
        };
        Ok((member, alarms.alarms().iter().any(|alarm| alarm.alarm() == AlarmType::Nospace)))
    }

    /// A connection of its own, whose calls may take so long.
    async fn link(&self, endpoints: &[String], timeout: Duration) -> Result<Link> {
        Link::open(endpoints, &EtcdOptions { timeout, ..self.inner.options.clone() }).await
    }

    /// Drops the history before `revision`, and returns when its room may be used again.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if etcd is away.
    pub async fn compact(&self, revision: i64) -> Result<()> {
        let link = self.link(&self.inner.endpoints, REWRITE).await?;
        let mut kv = link.client().kv_client();
        let options = CompactionOptions::new().with_physical();
        let compacted = async {
            match kv.compact(revision, Some(options)).await {
                // Another has compacted further.
                Err(etcd_client::Error::GRpcStatus(status)) if status.code() == tonic::Code::OutOfRange => Ok(()),
                compacted => compacted.map(drop),
            }
        };
        link.call(compacted).await.map_err(Failure::into_store)
    }

    /// The revision of the last change of anything.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if etcd is away.
    pub async fn revision(&self) -> Result<i64> {
        self.inner.etcd.revision(&self.inner.keys.wakes()).await
    }

    /// Gives the room in a member's file that is not in use back to the disk. The member stands still meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the member is away or takes too long.
    pub async fn defragment(&self, endpoint: &str) -> Result<()> {
        let link = self.link(&[endpoint.to_owned()], REWRITE).await?;
        let mut client = link.client().maintenance_client();
        link.call(client.defragment()).await.map(drop).map_err(Failure::into_store)
    }

    /// Turns the NOSPACE alarm of all members off.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if etcd is away.
    pub async fn disarm(&self) -> Result<()> {
        let link = self.link(&self.inner.endpoints, self.inner.options.timeout).await?;
        let mut client = link.client().maintenance_client();
        let asked = client.alarm(AlarmAction::Get, AlarmType::Nospace, None);
        for alarm in link.call(asked).await.map_err(Failure::into_store)?.alarms() {
            let mut options = AlarmOptions::new();
            options.with_member(alarm.member_id());
            let disarm = client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(options));
            link.call(disarm).await.map_err(Failure::into_store)?;
        }
        Ok(())
    }

    /// At most `limit` live sessions in order of their identifiers, those after `after`, with what is to know for moving
    /// their events; and the last identifier that was looked at, if there may be more.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if etcd is away.
    pub async fn survey(&self, after: Option<&SessionId>, limit: usize) -> Result<(Vec<Activity>, Option<SessionId>)> {
        let keys = &self.inner.keys;
        let from = after.map_or_else(|| keys.metas(), |after| format!("{}\0", keys.meta(after)));
        let end = format!("{}0", keys.metas().trim_end_matches('/'));
        let count = i64::try_from(limit).unwrap_or(i64::MAX);
        let view = self.inner.etcd.look(&[Look::Range(from, end, count)]).await?;
        let metas = view.prefix(&keys.metas()).map(Kv::decode).collect::<Result<Vec<SessionMeta>>>()?;
        let next = metas.last().filter(|_| metas.len() >= limit).map(|meta| meta.id.clone());
        let mut all = Vec::with_capacity(metas.len());
        for some in metas.chunks(TOGETHER) {
            let looks = some.iter().flat_map(|meta| {
                let id = &meta.id;
                let [head, summary] = self.place(id).head_looks();
                [head, summary, Look::Key(keys.wake(id)), Look::Count(keys.logs(id))]
            });
            let view = self.inner.etcd.look(&looks.collect::<Vec<_>>()).await?;
            for meta in some {
                let head = match self.place(&meta.id).head(&view) {
                    Err(StoreError::NotFound(_)) => continue,
                    head => head?,
                };
                all.push(Activity {
                    meta: meta.clone(),
                    hot_events: u64::try_from(view.count(&keys.logs(&meta.id))).unwrap_or(u64::MAX),
                    awake: view.get(&keys.wake(&meta.id)).is_some(),
                    archived_at: head.archived_at,
                    updated_at: head.updated_at,
                    size: head.size(),
                });
            }
        }
        Ok((all, next))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{MemberSpace, Space};

    fn space(members: &[(u64, u64, u64)]) -> Space {
        let member = |(index, (db, used, quota)): (usize, &(u64, u64, u64))| MemberSpace {
            endpoint: index.to_string(),
            member: u64::try_from(index).unwrap(),
            db_bytes: *db,
            used_bytes: *used,
            quota_bytes: *quota,
        };
        Space { members: members.iter().enumerate().map(member).collect(), alarm: false }
    }

    #[rstest]
    #[case(&[], None, false, 0)]
    #[case(&[(50, 40, 100)], Some(50), true, 0)]
    #[case(&[(90, 40, 100)], Some(90), false, 1)]
    #[case(&[(10, 4, 100), (95, 90, 100)], Some(95), false, 0)]
    #[case(&[(200, 90, 0)], None, true, 1)]
    fn room_is_told(
        #[case] members: &[(u64, u64, u64)],
        #[case] percent: Option<u64>,
        #[case] room: bool,
        #[case] fragmented: usize,
    ) {
        let space = space(members);
        assert_eq!((space.percent_of_quota(), space.has_room()), (percent, room));
        assert_eq!(space.fragmented(50).count(), fragmented);
    }
}
