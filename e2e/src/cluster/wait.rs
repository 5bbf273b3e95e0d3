//! Waits, each with a deadline that names what was waited for.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use futures::StreamExt as _;
use kube::Resource;
use kube::api::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use serde::de::DeserializeOwned;

use super::TestResult;

/// How often [`eventually`] looks.
const INTERVAL: Duration = Duration::from_millis(100);

/// Watches the object `name` (which may not exist) until `condition` gives something. A watch that breaks is begun again.
///
/// # Errors
/// When `deadline` passes, with the object as it was last seen, and why the watch broke if it did.
pub async fn wait_for<K, T>(
    api: Api<K>,
    name: &str,
    what: &str,
    deadline: Duration,
    condition: impl Fn(Option<&K>) -> Option<T>,
) -> TestResult<T>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let (mut last, mut broken) = (None, None);
    let watch = async {
        let mut objects = watcher::watch_object(api, name).default_backoff().boxed();
        while let Some(object) = objects.next().await {
            match object {
                Ok(object) => {
                    if let Some(found) = condition(object.as_ref()) {
                        return Some(found);
                    }
                    last = object;
                }
                Err(error) => broken = Some(error),
            }
        }
        None
    };
    let outcome = tokio::time::timeout(deadline, watch).await;
    let broken = broken.map(|error| format!("; the watch broke: {error}")).unwrap_or_default();
    match outcome {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Err(format!("the watch of {name} ended before: {what}{broken}").into()),
        Err(_) => Err(format!("not within {deadline:?}: {what}; last seen: {last:?}{broken}").into()),
    }
}

/// Asks again and again until `question` gives something. For what cannot be watched.
///
/// # Errors
/// When `deadline` passes, or at the first error of `question`.
pub async fn eventually<T, F>(what: &str, deadline: Duration, mut question: impl FnMut() -> F) -> TestResult<T>
where
    F: Future<Output = TestResult<Option<T>>>,
{
    let ask = async {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            ticks.tick().await;
            if let Some(answer) = question().await? {
                return TestResult::Ok(answer);
            }
        }
    };
    tokio::time::timeout(deadline, ask).await.map_err(|_| format!("not within {deadline:?}: {what}"))?
}
