//! A token against a provider that rotates, and a vault that others have too.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use longhand_protocol::refresh::RefreshFailure;
use rstest::rstest;
use rustls::RootCertStore;
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::Notify;

use super::{
    Problem, Refresher,
    refresher::Timing,
    testing::{FakeVault, Instead, Provider, Seat, write_files},
};
use crate::{
    config::Config,
    secret::Secret,
    testing::within,
    upstream::{Way, tls_config_with},
};

const PAST: &str = "2026-01-01T00:00:00Z";

const TIMING: Timing = Timing {
    patience: Duration::from_secs(10),
    busy: Duration::from_secs(10),
    busy_pause: Duration::from_millis(5),
    provider: Duration::from_secs(10),
    backoff: Duration::from_millis(10),
    longest_backoff: Duration::from_millis(40),
    young: Duration::from_secs(60),
};

/// A pod with a token, and its files.
struct Pod {
    refresher: Arc<Refresher>,
    files: TempDir,
}

fn pod(provider: &Provider, vault: &Arc<FakeVault>, name: &'static str, expires_at: &str) -> Pod {
    pod_with(TIMING, provider, vault, name, expires_at)
}

fn pod_with(timing: Timing, provider: &Provider, vault: &Arc<FakeVault>, name: &'static str, expires_at: &str) -> Pod {
    let files = tempfile::tempdir().unwrap();
    write_files(files.path());
    let route = json!({
        "name": "mcp", "prefix": "/mcp", "upstream": "http://127.0.0.1:1/", "exact": true,
        "credential": {
            "name": "tickets", "file": files.path().join("access"), "placement": {"type": "bearer"},
            "allow": {"scheme": "http", "hosts": ["127.0.0.1"], "port": 1, "allowPrivate": true},
            "oauth": provider.section(files.path(), expires_at),
        },
    });
    let service = json!({"session": "sesn_1", "url": "http://session.test", "tokenFile": "/token"});
    let config = Config::parse(&json!({"routes": [route], "service": service}).to_string()).unwrap();
    let credential = config.routes[0].credential.as_ref().unwrap();
    let way = Way { tls: Arc::new(tls_config_with(RootCertStore::empty()).unwrap()), proxy: None };
    let oauth = credential.oauth.clone().unwrap();
    let seat = Arc::new(Seat { vault: vault.clone(), pod: name });
    Pod { refresher: Refresher::new(credential, oauth, &way, seat, timing), files }
}

async fn world(expires_at: &str) -> (Provider, Arc<FakeVault>, Pod) {
    let (provider, vault) = (Provider::start().await, Arc::new(FakeVault::default()));
    let pod = pod(&provider, &vault, "pod-1", expires_at);
    (provider, vault, pod)
}

impl Pod {
    async fn token(&self) -> Result<String, Problem> {
        within(self.refresher.token()).await.map(|token| text(&token))
    }

    async fn settled(&self) {
        within(self.refresher.settled()).await;
    }

    /// The token again and again, until it is there.
    async fn until_renewed(&self) -> String {
        within(async {
            loop {
                match self.refresher.token().await {
                    Ok(token) => return text(&token),
                    Err(Problem::Waiting(_) | Problem::Provider(_)) => {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    Err(problem) => panic!("{problem}"),
                }
            }
        })
        .await
    }
}

fn text(token: &Secret) -> String {
    String::from_utf8(token.expose().to_vec()).unwrap()
}

#[tokio::test]
async fn a_token_that_is_good_is_used_as_it_is() {
    let (provider, _, pod) = world("2999-01-01T00:00:00Z").await;
    assert_eq!(pod.token().await.unwrap(), "access-0");
    assert!(provider.given().asked.is_empty());
}

#[tokio::test]
async fn one_of_many_requests_renews_it() {
    let (provider, vault, pod) = world(PAST).await;
    let tokens = join_all((0..16).map(|_| pod.token())).await;
    assert!(tokens.iter().all(|token| token.as_deref() == Ok("access-1")), "{tokens:?}");
    pod.settled().await;
    assert_eq!(
        provider.given().asked,
        ["grant_type=refresh_token&refresh_token=rt-0&client_id=me&client_secret=client-secret"]
    );
    let stored = vault.kept().stored.clone();
    assert_eq!((&stored[0]["access_token"], &stored[0]["refresh_token"]), (&json!("access-1"), &json!("rt-1")));
    assert!(stored.len() == 1 && stored[0]["expires_at"].is_string(), "{stored:?}");
    assert_eq!(pod.token().await.unwrap(), "access-1");
    assert_eq!(pod.refresher.condition(), None);
}

#[tokio::test]
async fn the_next_time_the_new_refresh_token_is_used() {
    let (provider, vault, pod) = world(PAST).await;
    provider.given().lifetime = json!(1);
    assert_eq!(pod.token().await.unwrap(), "access-1");
    pod.settled().await;
    let renewed = within(async {
        loop {
            let token = pod.token().await.unwrap();
            if token != "access-1" {
                return token;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert_eq!(renewed.await, "access-2");
    pod.settled().await;
    assert!(!provider.given().revoked);
    let kept = vault.kept();
    assert_eq!((&kept.stored[1]["secret"], kept.secret.as_deref()), (&json!("made-1"), Some("made-2")));
}

#[tokio::test]
async fn two_sessions_with_one_vault_do_not_revoke_each_other_s_tokens() {
    let (provider, vault, one) = world(PAST).await;
    provider.given().instead.push_back(Instead::Slow(Duration::from_millis(100)));
    let soon = jiff::Timestamp::now().checked_add(Duration::from_secs(30)).unwrap().to_string();
    let (two, three) = (pod(&provider, &vault, "pod-2", PAST), pod(&provider, &vault, "pod-3", &soon));
    let (first, second) = tokio::join!(one.token(), two.token());
    one.settled().await;
    let mut outcomes = [first, second];
    outcomes.sort_by_key(Result::is_err);
    assert_eq!(outcomes, [Ok("access-1".to_owned()), Err(Problem::Superseded)]);
    assert_eq!(three.token().await.unwrap(), "access-0", "it is still good");
    assert_eq!(three.token().await.unwrap(), "access-0");
    let given = provider.given();
    assert!(given.asked.len() == 1 && !given.revoked, "{:?}", given.asked);
}

#[tokio::test]
async fn a_provider_that_does_not_rotate_serves_both() {
    let (provider, vault, one) = world(PAST).await;
    provider.given().rotates = false;
    let two = pod(&provider, &vault, "pod-2", PAST);
    assert_eq!(one.token().await.unwrap(), "access-1");
    one.settled().await;
    assert_eq!(two.token().await.unwrap(), "access-2");
    two.settled().await;
    let kept = vault.kept();
    assert!(kept.secret.is_none() && kept.stored.iter().all(|stored| stored.get("refresh_token").is_none()));
}

#[tokio::test]
async fn a_token_that_is_about_to_expire_is_renewed_while_it_is_used() {
    let soon = jiff::Timestamp::now().checked_add(Duration::from_secs(30)).unwrap().to_string();
    let (provider, _, pod) = world(&soon).await;
    let answers = Arc::new(Notify::new());
    provider.given().instead.push_back(Instead::Held(answers.clone()));
    for _ in 0..8 {
        assert_eq!(pod.token().await.unwrap(), "access-0", "nobody waits for the provider");
    }
    answers.notify_one();
    pod.settled().await;
    assert_eq!(pod.token().await.unwrap(), "access-1");
    assert_eq!(provider.given().asked.len(), 1);
}

#[tokio::test]
async fn a_token_of_another_name_is_a_bearer() {
    let (provider, vault, pod) = world(PAST).await;
    let answer = json!({"access_token": "access-9", "refresh_token": "rt-9", "token_type": "bot", "expires_in": 3_600});
    provider.given().instead.push_back(Instead::Answer(200, answer.to_string()));
    assert_eq!(pod.token().await.unwrap(), "access-9");
    pod.settled().await;
    assert_eq!(vault.kept().stored[0]["refresh_token"], "rt-9");
}

#[tokio::test]
async fn a_token_that_needs_a_key_is_not_sent_and_its_refresh_token_is_kept() {
    let (provider, vault, pod) = world("2999-01-01T00:00:00Z").await;
    let answer =
        json!({"access_token": "access-9", "refresh_token": "rt-9", "token_type": "DPoP", "expires_in": 3_600});
    provider.given().instead.push_back(Instead::Answer(200, answer.to_string()));
    let used = within(pod.refresher.token()).await.unwrap();
    assert!(within(pod.refresher.rejected(&used)).await.is_none());
    let refused = Problem::Refused(RefreshFailure::Refused);
    assert_eq!(pod.token().await, Err(refused.clone()));
    assert!(within(pod.refresher.rejected(&used)).await.is_none(), "another request had the old one");
    pod.settled().await;
    let kept = vault.kept();
    assert_eq!((&kept.stored[0]["refresh_token"], kept.secret.as_deref()), (&json!("rt-9"), Some("made-1")));
    assert_eq!(kept.failures, [RefreshFailure::Refused]);
    assert_eq!(pod.refresher.condition(), Some(refused));
}

#[tokio::test]
async fn why_an_expired_token_is_not_renewed_is_seen() {
    let (provider, _, pod) = world(PAST).await;
    assert_eq!(pod.refresher.condition(), None, "nobody has tried");
    provider.given().instead.push_back(Instead::Answer(503, "{}".to_owned()));
    let problem = pod.token().await.unwrap_err();
    assert!(matches!(problem, Problem::Provider(_)), "{problem}");
    assert_eq!(pod.refresher.condition(), Some(problem));
    pod.until_renewed().await;
    assert_eq!(pod.refresher.condition(), None);
}

#[rstest]
#[case("invalid_grant", RefreshFailure::InvalidGrant)]
#[case("invalid_client", RefreshFailure::Refused)]
#[tokio::test]
async fn a_refusal_is_told_and_heals_by_another_token(#[case] error: &str, #[case] failure: RefreshFailure) {
    let (provider, vault, pod) = world(PAST).await;
    let refusal = json!({"error": error, "error_description": "canary"}).to_string();
    provider.given().instead.push_back(Instead::Answer(400, refusal));
    let problem = pod.token().await.unwrap_err();
    assert_eq!(problem, Problem::Refused(failure));
    assert!(!problem.to_string().contains("canary"));
    pod.settled().await;
    assert_eq!(vault.kept().failures, [failure]);
    assert_eq!(pod.refresher.condition(), Some(Problem::Refused(failure)));
    provider.given().revoked = true;
    std::fs::write(pod.files.path().join("access"), "at-by-hand").unwrap();
    let healed = within(async {
        loop {
            match pod.token().await {
                Ok(token) => return token,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    assert_eq!(healed.await, "at-by-hand", "nothing is known of when it expires");
}

#[rstest]
#[case::an_error(Instead::Answer(503, json!({"error": "temporarily_unavailable"}).to_string()))]
#[case::garbage(Instead::Answer(200, "<html>".to_owned()))]
#[case::huge(Instead::Answer(200, format!("{{\"access_token\": \"{}\"}}", "a".repeat(70_000))))]
#[case::no_token(Instead::Answer(200, "{}".to_owned()))]
#[tokio::test]
async fn what_passes_is_tried_again_later(#[case] instead: Instead) {
    let (provider, vault, pod) = world(PAST).await;
    provider.given().instead.push_back(instead);
    let problem = pod.token().await.unwrap_err();
    assert!(matches!(problem, Problem::Provider(_)), "{problem}");
    assert!(pod.until_renewed().await.starts_with("access-"));
    pod.settled().await;
    let kept = vault.kept();
    assert!(kept.failures.is_empty() && kept.stored.len() == 1);
}

#[tokio::test]
async fn a_slow_provider_is_not_waited_for() {
    let (provider, vault) = (Provider::start().await, Arc::new(FakeVault::default()));
    let timing = Timing { provider: Duration::from_millis(400), ..TIMING };
    let pod = pod_with(timing, &provider, &vault, "pod-1", PAST);
    provider.given().instead.push_back(Instead::Slow(Duration::from_secs(5)));
    let problem = pod.token().await.unwrap_err();
    assert!(matches!(problem, Problem::Provider(_)), "{problem}");
    // It did its work all the same, and nobody got what it gave.
    let problem = within(async {
        loop {
            match pod.refresher.token().await {
                Err(Problem::Waiting(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
                outcome => return outcome.unwrap_err(),
            }
        }
    });
    assert_eq!(problem.await, Problem::Refused(RefreshFailure::InvalidGrant));
}

#[tokio::test]
async fn what_a_provider_gave_is_handed_over_until_it_is_kept() {
    let (provider, vault, pod) = world(PAST).await;
    vault.kept().stopped = true;
    provider.given().lifetime = json!(1);
    assert_eq!(pod.token().await.unwrap(), "access-1", "it is of use at once");
    let problem = within(async {
        loop {
            match pod.refresher.token().await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(problem) => return problem,
            }
        }
    });
    assert_eq!(problem.await, Problem::NotHandedOver);
    assert_eq!(provider.given().asked.len(), 1, "no other is asked for before");
    {
        let mut kept = vault.kept();
        (kept.stopped, kept.away) = (false, 3);
    }
    pod.settled().await;
    let kept = vault.kept();
    assert_eq!((kept.stored.len(), kept.away, kept.secret.as_deref()), (1, 0, Some("made-1")));
}

#[tokio::test]
async fn who_asked_may_go_and_nothing_is_lost() {
    let (provider, vault, pod) = world(PAST).await;
    provider.given().instead.push_back(Instead::Slow(Duration::from_millis(150)));
    let refresher = pod.refresher.clone();
    let request = tokio::spawn(async move { refresher.token().await.map(drop) });
    within(async {
        while provider.given().asked.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    pod.settled().await;
    assert_eq!(vault.kept().stored[0]["refresh_token"], "rt-1");
    assert_eq!(pod.token().await.unwrap(), "access-1");
}

#[tokio::test]
async fn a_token_that_a_server_refuses_is_renewed_once() {
    let (provider, _, pod) = world("2999-01-01T00:00:00Z").await;
    let used = within(pod.refresher.token()).await.unwrap();
    let renewed = within(pod.refresher.rejected(&used)).await.unwrap();
    assert_eq!(text(&renewed), "access-1");
    assert_eq!(
        text(&within(pod.refresher.rejected(&used)).await.unwrap()),
        "access-1",
        "another request had the old one"
    );
    assert!(within(pod.refresher.rejected(&renewed)).await.is_none(), "it is not the token");
    pod.settled().await;
    assert_eq!(provider.given().asked.len(), 1);
}

#[tokio::test]
async fn a_missing_file_is_named() {
    let (provider, _, pod) = world(PAST).await;
    std::fs::remove_file(pod.files.path().join("refresh")).unwrap();
    let problem = pod.token().await.unwrap_err();
    assert!(matches!(&problem, Problem::RefreshFile { path, .. } if path.ends_with("refresh")), "{problem}");
    assert_eq!(pod.refresher.condition(), Some(problem));
    std::fs::remove_file(pod.files.path().join("access")).unwrap();
    assert!(provider.given().asked.is_empty());
}
