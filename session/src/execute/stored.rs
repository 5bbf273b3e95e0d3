//! Files that clients have uploaded, on their way into workspaces.

use std::sync::{Arc, OnceLock};

use axum::body::Body;
use futures::stream::TryStreamExt as _;
use longhand_protocol::FileId;
use longhand_sandbox::client::Target;
use longhand_sandbox::provision::{Content, Resource, Source};
use longhand_session_log::files::FilesError;

use super::Executor;
use super::workspace::{Outcome, judge_content, not_put};

impl Executor {
    /// Sends the contents that a sandbox wants of these resources, one after the other.
    pub(super) async fn send_stored(
        &self,
        namespace: &str,
        target: &Target,
        resources: &[Resource],
        wanted: &[String],
    ) -> Outcome {
        for resource in resources.iter().filter(|resource| wanted.contains(&resource.name)) {
            let Source::Stored { id } = &resource.source else { continue };
            match self.send_one(namespace, target, resource, id).await {
                Outcome::Whole => {}
                lacking => return lacking,
            }
        }
        Outcome::Whole
    }

    async fn send_one(&self, namespace: &str, target: &Target, resource: &Resource, id: &str) -> Outcome {
        let lacks = |why: String| Outcome::Lacks(not_put(resource, &why));
        let Some(files) = &self.files else { return lacks("this service keeps no files".to_owned()) };
        let home = match self.homes.of(namespace).await {
            Ok(home) => home,
            Err(error) => return lacks(error.to_string()),
        };
        let found = match (id.parse::<FileId>(), home) {
            (Ok(id), Some(home)) => files.get(&home, &id).await,
            _ => Ok(None),
        };
        let file = match found {
            Ok(Some(file)) => file,
            Ok(None) => {
                return lacks(format!(
                    "there is no file {id} in namespace {namespace}; it was never there, or it was deleted"
                ));
            }
            Err(error) => return lacks(error.to_string()),
        };
        let content = match files.read_for_sandbox(namespace, &file).await {
            Ok(content) => content,
            // It is looked again soon, until there is no more time for it.
            Err(FilesError::Busy { .. } | FilesError::BusyNamespace { .. }) => {
                return Outcome::Queued;
            }
            Err(error) => return lacks(error.to_string()),
        };
        let unread = Arc::new(OnceLock::new());
        let failed = Arc::clone(&unread);
        let content = content.inspect_err(move |error| _ = failed.set(error.to_string()));
        let what = Content {
            name: resource.name.clone(),
            path: resource.path.clone(),
            id: id.to_owned(),
            bytes: file.bytes,
            sha256: file.sha256,
        };
        let answer = self.client.provide(target, &what, Body::from_stream(content)).await;
        match unread.get() {
            // The sandbox is not why it broke off.
            Some(why) => lacks(why.clone()),
            None => judge_content(answer, resource),
        }
    }
}
