//! Longhand's own pods die in the middle of a session. Apart from the suite, since every session of the cluster notices.

mod installation;
mod replicas;
mod upstream_proxy;

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams};
use longhand_crds::AgentSession;
use longhand_e2e::cluster::log::{assert_sound, messages};
use longhand_e2e::cluster::{
    Fixture, SYSTEM_NAMESPACE, Service, SessionOptions, TestNamespace, TestResult, in_namespace, wait_for,
};

const SCRIPT: &str = r#"
rules:
  - when: {turn: 0}
    then:
      text: I will take my time over this.
      delay_per_token_ms: 400
      tool_uses: [{name: bash, input: {command: "echo run >> counter; sleep 6; cat counter"}}]
  - when: {turn: 1}
    then: {text: "The counter holds: {{last_tool_result}}", delay_per_token_ms: 200}
"#;

async fn delete_pods(namespace: &TestNamespace, component: &str) -> TestResult {
    let pods: Api<Pod> = Api::namespaced(namespace.client.clone(), SYSTEM_NAMESPACE);
    let selector = ListParams::default().labels(&format!("app.kubernetes.io/component={component}"));
    let deleted = pods.delete_collection(&DeleteParams::default().grace_period(0), &selector).await?;
    assert!(deleted.left().is_some_and(|pods| !pods.items.is_empty()), "there was no pod of {component} to delete");
    Ok(())
}

async fn available(namespace: &TestNamespace, component: &str) -> TestResult {
    let deployments: Api<Deployment> = Api::namespaced(namespace.client.clone(), SYSTEM_NAMESPACE);
    let name = format!("longhand-{component}");
    wait_for(deployments, &name, "available again", Duration::from_secs(90), |deployment| {
        let deployment = deployment?;
        let (spec, status) = (deployment.spec.as_ref()?, deployment.status.as_ref()?);
        (status.ready_replicas == spec.replicas && status.unavailable_replicas.unwrap_or_default() == 0).then_some(())
    })
    .await
}

/// The session goes on to its end although `component` dies at `moment`, and the tool has run once.
async fn survives(name: &str, component: &'static str, moment: &'static str) {
    in_namespace(name, |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let session = fixture.session("survivor", &SessionOptions::saying(&["go"])).await?;
        fixture.service.follow_all(&session, moment, Duration::from_secs(60)).await?;
        delete_pods(&namespace, component).await?;
        available(&namespace, component).await?;
        let service = Service::connect(&namespace).await?;
        service.until_idle(&session, 0, Duration::from_secs(120)).await?;
        let log = service.log(&session).await?;
        assert_sound(&log);
        let said = messages(&log);
        let last = said.last().ok_or("the agent said nothing")?;
        assert_eq!(last.matches("run").count(), 1, "{said:?}");
        // The status catches up although the operator may have been away.
        wait_for(namespace.api::<AgentSession>(), "survivor", "phase is idle", Duration::from_secs(60), |session| {
            (session?.status.as_ref()?.phase.as_deref()? == "idle").then_some(())
        })
        .await
    })
    .await;
}

#[tokio::test]
async fn one_after_the_other() {
    survives("operator-dies-streaming", "operator", "span.model_request_start").await;
    survives("operator-dies-tool", "operator", "x.sandbox.ready").await;
    survives("service-dies-streaming", "session", "span.model_request_start").await;
    survives("service-dies-tool", "session", "x.sandbox.ready").await;
    replicas::serve().await;
    installation::serve().await;
    upstream_proxy::serve().await;
}
