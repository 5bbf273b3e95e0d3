//! How much memory sessions take that one harness pod serves at once, while all of them stream.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use longhand_crds::Agent;
use longhand_protocol::SessionId;
use longhand_protocol::event::EventBody;

use super::{MIB, resident_of};
use crate::bench::{Figure, Goal};
use crate::cluster::{Fixture, SessionOptions, TestResult, eventually, wait_for};

/// As many as one pod may serve.
const SESSIONS: usize = 64;
const DEADLINE: Duration = Duration::from_secs(120);
const AGENT: &str = "many";
const CONTAINERS: [&str; 2] = ["harness", "credential-proxy"];

/// Has the sessions stream, each in the middle of an answer that does not end.
///
/// # Errors
/// When they do not within two minutes, or another pod serves one of them.
pub(super) async fn measure(fixture: &Fixture, image: &str) -> TestResult<Vec<Figure>> {
    fixture.agent(AGENT, &format!("  warm: 1\n  harness: {{sessionsPerPod: {SESSIONS}}}")).await?;
    let pod = wait_for(fixture.namespace.api::<Agent>(), AGENT, "a harness is ready", DEADLINE, |agent| {
        let status = agent?.status.as_ref().filter(|status| status.warm_ready == 1)?;
        Some(status.warm_pods.first()?.name.clone())
    })
    .await?;
    let waiting = resident(fixture, &pod, image, "waiting").await?;
    for number in 0..SESSIONS {
        let options = SessionOptions { agent: AGENT.to_owned(), sandbox: false, ..SessionOptions::default() };
        let session = fixture.session(&format!("many-{number}"), &options).await?;
        fixture.service.send(&session, "go on and on").await?;
        served_by(fixture, &session, &pod).await?;
    }
    eventually("all sessions stream", DEADLINE, || async {
        let requests = fixture.model.recorded().await?.requests;
        let begun = requests.iter().filter(|request| {
            let of_these = request.messages().last().is_some_and(|message| message.to_string().contains("on and on"));
            of_these && request.first_token_unix_ms.is_some()
        });
        Ok((begun.count() >= SESSIONS).then_some(()))
    })
    .await?;
    let streaming = resident(fixture, &pod, image, "streaming").await?;
    let mut figures = Vec::new();
    for ((container, before), now) in CONTAINERS.iter().zip(waiting).zip(streaming) {
        let figure = |metric: String, unit, value| Figure::single(&metric, unit, value, Goal::None);
        figures.push(figure(format!("memory of {container}, ready for sessions"), "MiB", before / MIB));
        figures.push(figure(format!("memory of {container}, {SESSIONS} sessions that stream"), "MiB", now / MIB));
        let each = (now - before) / 1_024.0 / SESSIONS as f64;
        figures.push(figure(format!("memory of {container}, for each session that streams"), "KiB", each));
    }
    Ok(figures)
}

/// Waits until a pod has claimed the session, which has to be this one.
async fn served_by(fixture: &Fixture, session: &SessionId, pod: &str) -> TestResult {
    let woken = fixture.service.follow_all(session, "x.session.woken", DEADLINE).await?;
    match woken.body {
        EventBody::SessionWoken { harness, .. } if harness == pod => Ok(()),
        other => Err(format!("{session} is not served by {pod}: {other:?}").into()),
    }
}

/// What each of the containers holds, in bytes.
async fn resident(fixture: &Fixture, pod: &str, image: &str, name: &str) -> TestResult<Vec<f64>> {
    let pods = fixture.namespace.api::<Pod>();
    let pod = pods.get(pod).await?;
    let mut all = Vec::with_capacity(CONTAINERS.len());
    for container in CONTAINERS {
        all.push(resident_of(&pods, &pod, container, image, &format!("{name}-{container}")).await?);
    }
    Ok(all)
}
