//! A session that uses no tool pays for no sandbox.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::runtime::{WatchStreamExt as _, watcher};
use longhand_crds::{Sandbox, labels};
use longhand_e2e::cluster::{Fixture, SessionOptions, in_namespace};

use longhand_e2e::cluster::log::{assert_sound, kinds};

const SCRIPT: &str = r#"
rules:
  - then: {text: "No tool is needed for that."}
"#;

#[tokio::test]
async fn a_session_without_tool_calls_never_has_a_sandbox() {
    in_namespace("without-tools", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let sandbox_pods = watcher::Config::default().labels(&format!("{}={}", labels::ROLE, labels::SANDBOX));
        let pods = watcher(namespace.api::<Pod>(), sandbox_pods).applied_objects().map_ok(|pod| format!("pod {}", pod.name_any()));
        let sandboxes = watcher(namespace.api::<Sandbox>(), watcher::Config::default())
            .applied_objects()
            .map_ok(|sandbox| format!("sandbox {}", sandbox.name_any()));
        let mut seen = futures::stream::select(pods.boxed(), sandboxes.boxed());

        let session = fixture.session("talk", &SessionOptions::saying(&["what is a monad?"])).await?;
        let life = async {
            fixture.service.until_idle(&session, 0, Duration::from_secs(60)).await?;
            // Before it is sent: an answer can be there sooner than a page of the log.
            let after = fixture.service.log(&session).await?.len() as u64;
            fixture.service.send(&session, "and a functor?").await?;
            fixture.service.until_idle(&session, after, Duration::from_secs(60)).await
        };
        tokio::select! {
            outcome = life => { outcome?; }
            Some(sandbox) = seen.next() => return Err(format!("there is a {} though no tool was called", sandbox?).into()),
        }
        let log = fixture.service.log(&session).await?;
        assert_sound(&log);
        assert!(!kinds(&log).iter().any(|kind| kind.starts_with("x.sandbox.")));
        assert_eq!(kinds(&log).iter().filter(|kind| **kind == "agent.message").count(), 2);
        Ok(())
    })
    .await;
}
