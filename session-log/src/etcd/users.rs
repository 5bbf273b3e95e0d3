//! The users of an etcd that is the log's alone.
//!
//! Etcd goes by the common name of a client's certificate. The service is `root`, since compaction, defragmentation and
//! this are root's; whoever else is let in may read wake keys and nothing more.

use etcd_client::{Error, Permission, PermissionType, UserAddOptions};

use super::EtcdStore;
use super::failure::Failure;
use crate::store::Result;

/// Who this program is by its certificate.
const ROOT: &str = "root";
/// The role of users that may read wake keys.
const WAKE_READER: &str = "wake-reader";

impl EtcdStore {
    /// Makes etcd go by certificates from now on: this program's says `root`, and those of `wake_readers` let them read wake
    /// keys. Every replica may do this at every start; nothing changes that is so already.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`](crate::StoreError::Unavailable) if etcd is away or refuses.
    pub async fn require_users(&self, wake_readers: &[String]) -> Result<()> {
        self.make_users(wake_readers).await.map_err(Failure::into_store)
    }

    async fn make_users(&self, wake_readers: &[String]) -> Result<(), Failure> {
        let link = self.inner.etcd.link();
        let mut auth = link.client().auth_client();
        let known_by_certificate = || Some(UserAddOptions::new().with_no_pwd());
        link.call(unless_there(auth.user_add(ROOT, "", known_by_certificate()))).await?;
        link.call(unless_there(auth.role_add(ROOT))).await?;
        link.call(unless_there(auth.user_grant_role(ROOT, ROOT))).await?;
        link.call(unless_there(auth.role_add(WAKE_READER))).await?;
        let wakes = Permission::new(PermissionType::Read, self.inner.keys.wakes()).with_prefix();
        link.call(unless_there(auth.role_grant_permission(WAKE_READER, wakes))).await?;
        for user in wake_readers {
            link.call(unless_there(auth.user_add(user.as_str(), "", known_by_certificate()))).await?;
            link.call(unless_there(auth.user_grant_role(user.as_str(), WAKE_READER))).await?;
        }
        link.call(unless_there(auth.auth_enable())).await
    }
}

async fn unless_there<T>(step: impl Future<Output = Result<T, Error>>) -> Result<(), Error> {
    match step.await {
        Err(Error::GRpcStatus(status)) if status.message().contains("already exists") => Ok(()),
        outcome => outcome.map(drop),
    }
}
