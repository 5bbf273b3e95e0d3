//! The way out of sandboxes: what a session's proxy lets through, what it places, and the fence around everything else.

use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use longhand_crds::{Sandbox, labels};
use longhand_e2e::cluster::{Fixture, Needle, TestNamespace, TestResult, eventually, in_namespace, script, wait_for};

use crate::online::{LONG, allow, pod_of, said};
use crate::secrets::{assert_in_no_log, assert_in_no_object, assert_only_the_proxy_mounts_it};

#[tokio::test]
async fn a_credential_is_placed_on_the_way_out_and_everything_else_is_refused() {
    in_namespace("egress", |namespace| async move {
        let host = format!("scripted-model.{}.svc", namespace.name);
        let command = format!(
            "curl -sS -m 20 -o /dev/null -w '%{{http_code}}\\n' -H \"x-api-key: $MODEL_KEY\" -d '{{\"from\": \"sandbox\"}}' http://{host}/v1/messages; \
             curl -sS -m 20 -w '\\n%{{http_code}}\\n' http://denied.test/; \
             curl -sS -m 20 --noproxy '*' -o /dev/null http://{host}/readyz || echo no other way; \
             echo $MODEL_KEY; env | grep -c sk-e2e- || true"
        );
        let fixture = Fixture::install(&namespace, &script(&command), 60).await?;
        allow(&namespace).await?;
        let (session, text) = said(&fixture, "egress").await?;

        let recorded = fixture.model.recorded().await?;
        let of_sandbox = recorded.requests.iter().find(|request| request.body["from"] == "sandbox");
        let of_sandbox = of_sandbox.ok_or_else(|| format!("nothing came from the sandbox: {text}"))?;
        assert_eq!(of_sandbox.headers.get("x-api-key").map(String::as_str), Some("matched"), "{text}");
        assert!(text.contains("\n403\n") && text.contains("no other way"), "{text}");
        assert!(text.contains("lhp_") && !text.contains(&fixture.api_key), "{text}");

        for kind in ["x.credential.used", "x.credential.denied"] {
            fixture.service.follow_all(&session, kind, LONG).await?;
        }
        let log = fixture.service.log(&session).await?;
        assert!(!serde_json::to_string(&log)?.contains(&fixture.api_key), "the log holds the key");
        assert_only_the_proxy_mounts_it(&namespace).await?;
        let key = Needle::new(&fixture.api_key);
        assert_in_no_object(&namespace, &key).await?;
        assert_in_no_log(&namespace, &key).await
    })
    .await;
}

#[tokio::test]
async fn the_proxy_of_another_session_serves_nobody_else() {
    in_namespace("egress-other", |namespace| async move {
        let fixture = Fixture::install(&namespace, &script("true"), 60).await?;
        allow(&namespace).await?;
        said(&fixture, "first").await?;
        let address = pod_of(&namespace, "first", labels::HARNESS).await?.status.and_then(|status| status.pod_ip).ok_or("no address")?;
        let host = format!("scripted-model.{}.svc", namespace.name);
        let command = format!(
            "for token in none lhp_none; do curl -s -m 20 --noproxy '' -x http://{address}:8084 --proxy-header \"Proxy-Authorization: Bearer $token\" \
             -o /dev/null -w '%{{http_code}} ' -d '{{\"from\": \"other\"}}' http://{host}/v1/messages; done; echo tried"
        );
        fixture.model.set_script(&script(&command)).await?;
        let (_, text) = said(&fixture, "second").await?;
        assert!(text.contains("tried") && !text.contains("200"), "{text}");
        let recorded = fixture.model.recorded().await?;
        assert!(recorded.requests.iter().all(|request| request.body["from"] != "other"), "{text}");
        Ok(())
    })
    .await;
}

const FREE: &str =
    "apiVersion: longhand.dev/v1alpha1\nkind: Sandbox\nmetadata: {name: free}\nspec: {templateRef: {name: online}}\n";
const OPENED: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: open}
spec: {podSelector: {}, policyTypes: [Egress], egress: [{}]}
"#;

async fn until_fenced(namespace: &TestNamespace, truth: &str, reason: &str) -> TestResult {
    let what = format!("EgressFenced is {truth}, {reason}");
    wait_for(namespace.api::<Sandbox>(), "free", &what, LONG, |sandbox| {
        let conditions = &sandbox?.status.as_ref()?.conditions;
        let found = conditions.iter().find(|condition| condition.type_ == "EgressFenced")?;
        (found.status == truth && found.reason == reason).then_some(())
    })
    .await
}

#[tokio::test]
async fn a_fence_that_is_opened_is_seen() {
    in_namespace("egress-fence", |namespace| async move {
        allow(&namespace).await?;
        namespace.apply(FREE).await?;
        until_fenced(&namespace, "True", "CanariesBlocked").await?;
        namespace.apply(OPENED).await?;
        until_fenced(&namespace, "False", "PolicyOpensFence").await?;
        eventually("an Event warns of it", LONG, || async {
            let events = namespace.api::<Event>().list(&ListParams::default()).await?;
            let warns = |event: &Event| {
                event.regarding.as_ref().is_some_and(|regarding| regarding.name.as_deref() == Some("free"))
                    && event.reason.as_deref() == Some("SandboxNotFenced")
                    && event.type_.as_deref() == Some("Warning")
            };
            Ok(events.iter().any(warns).then_some(()))
        })
        .await?;
        // The canaries notice by themselves, and the sandbox is not ready any more.
        wait_for(namespace.api::<Sandbox>(), "free", "Ready is False", LONG, |sandbox| {
            let conditions = &sandbox?.status.as_ref()?.conditions;
            conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "False").map(|_| ())
        })
        .await?;
        let policies = namespace.api::<k8s_openapi::api::networking::v1::NetworkPolicy>();
        policies.delete("open", &kube::api::DeleteParams::default()).await?;
        until_fenced(&namespace, "True", "CanariesBlocked").await
    })
    .await;
}
