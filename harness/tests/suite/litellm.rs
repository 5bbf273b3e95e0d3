//! LiteLLM's proxy, a model server that we did not write, between a harness and models of both kinds. `e2e/litellm/run` brings
//! it and says by `LITELLM` in which virtual environment.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use longhand_protocol::Record;
use longhand_protocol::event::{EventBody, RetryStatus, StopReason};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::models::{chats, errors, says, session_of};
use crate::support::raw::{TOKEN, run_against, serve};
use crate::support::{kinds, last, store, text};

/// It loads much of Python before it answers.
const START: Duration = Duration::from_secs(180);

struct LiteLlm {
    base: String,
    folder: PathBuf,
    process: Child,
}

impl LiteLlm {
    /// Started with these models: a name, and its `litellm_params`.
    async fn start(models: &[(&str, Value)]) -> Self {
        let venv = PathBuf::from(std::env::var("LITELLM").unwrap());
        let folder = std::env::temp_dir().join(format!("longhand-litellm-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let models: Vec<Value> =
            models.iter().map(|(name, parameters)| json!({"model_name": name, "litellm_params": parameters})).collect();
        // JSON is YAML too.
        let config = json!({"model_list": models, "litellm_settings": {"num_retries": 0}});
        std::fs::write(folder.join("config.yaml"), config.to_string()).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // The environment was moved since it was made, and the program names the Python that it was made with.
        let process = Command::new(venv.join("bin/python"))
            .arg(venv.join("bin/litellm"))
            .args([
                "--config",
                "config.yaml",
                "--host",
                "127.0.0.1",
                "--telemetry",
                "False",
                "--port",
                &port.to_string(),
            ])
            .current_dir(&folder)
            .env("HOME", &folder)
            .env("LITELLM_MASTER_KEY", TOKEN)
            // Nothing is asked of the network.
            .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
            .stdout(std::fs::File::create(folder.join("log")).unwrap())
            .stderr(std::fs::File::create(folder.join("errors")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut litellm = Self { base: format!("http://127.0.0.1:{port}"), folder, process };
        litellm.ready().await;
        litellm
    }

    async fn ready(&mut self) {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let until = Instant::now() + START;
        loop {
            assert_eq!(self.process.try_wait().unwrap(), None, "LiteLLM has ended; see {}", self.folder.display());
            match http.get(format!("{}/health/liveliness", self.base)).timeout(Duration::from_secs(5)).send().await {
                Ok(response) if response.status().is_success() => return,
                other => {
                    assert!(Instant::now() < until, "LiteLLM is not ready: {other:?}; see {}", self.folder.display());
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Drop for LiteLlm {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            drop(std::fs::remove_dir_all(&self.folder));
        }
    }
}

fn said(log: &[Record]) -> Vec<String> {
    let texts = log.iter().filter_map(|record| match &record.event.body {
        EventBody::AgentMessage { content } => content[0]["text"].as_str().map(ToOwned::to_owned),
        _ => None,
    });
    texts.collect()
}

fn check_tool_turn(log: &[Record], upstream: &[Value]) {
    assert_eq!(said(log), ["Let me see.", "Done."], "{:?}", kinds(log));
    let count = |kind: &str| kinds(log).iter().filter(|found| **found == kind).count();
    assert_eq!((count("agent.tool_use"), count("agent.tool_result"), count("session.error")), (2, 2, 0));
    assert!(matches!(last(log), EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn }));
    assert_eq!(upstream.len(), 2);
    let sent = upstream[1].to_string();
    assert_eq!(sent.matches("\"done\"").count(), 2, "both results reached the model: {sent}");
    let usage = log.iter().find_map(|record| match &record.event.body {
        EventBody::SessionUsage { usage } => Some(usage.tokens.input_tokens > 0 && usage.tokens.output_tokens > 0),
        _ => None,
    });
    assert_eq!(usage, Some(true));
}

#[tokio::test]
#[ignore = "needs LiteLLM: e2e/litellm/run"]
async fn litellm_serves_both_apis_from_models_of_both_kinds() {
    let call = |id: &str| json!({"type": "tool_use", "id": id, "name": "bash", "input": {"command": "ls"}});
    let thought = json!({"type": "thinking", "thinking": "hm", "signature": "c2ln"});
    let claude = || {
        let first = [thought.clone(), json!({"type": "text", "text": "Let me see."}), call("toolu_1"), call("toolu_2")];
        [says(&first, "tool_use"), says(&[json!({"type": "text", "text": "Done."})], "end_turn")]
    };
    let qwen = || {
        let tool = |index: u8| {
            json!({"index": index, "id": format!("c{index}"), "type": "function",
            "function": {"name": "bash", "arguments": "{\"command\": \"ls\"}"}})
        };
        let first = [
            json!({"role": "assistant", "content": "Let me see."}),
            json!({"tool_calls": [tool(0)]}),
            json!({"tool_calls": [tool(1)]}),
        ];
        [chats(&first, "tool_calls"), chats(&[json!({"role": "assistant", "content": "Done."})], "stop")]
    };
    let (anthropic, anthropic_url) = serve(claude().into_iter().chain(claude())).await;
    let (openai, openai_url) = serve(qwen().into_iter().chain(qwen())).await;
    let upstream = |model: &str, base: &str| json!({"model": model, "api_base": base, "api_key": "key"});
    let litellm = LiteLlm::start(&[
        ("claude", upstream("anthropic/scripted", &anthropic_url)),
        ("qwen", upstream("hosted_vllm/scripted", &format!("{openai_url}/v1"))),
        ("mock", json!({"model": "openai/mock", "api_key": "key", "mock_response": "Hello from a mock."})),
    ])
    .await;
    // Each API of LiteLLM before a model of each kind.
    for (model, api) in [("claude", "anthropic"), ("claude", "openai"), ("qwen", "openai"), ("qwen", "anthropic")] {
        let server = if model == "claude" { &anthropic } else { &openai };
        let before = server.bodies().len();
        let session = session_of(&json!({"id": model, "api": api, "max_tokens": 1000}));
        let (log, _) = run_against(store(), session, [text("go")], &litellm.base).await;
        check_tool_turn(&log, &server.bodies()[before..]);
        if (model, api) == ("claude", "anthropic") {
            let sent = &server.bodies()[1]["messages"][1]["content"][0];
            assert_eq!((&sent["thinking"], &sent["signature"]), (&thought["thinking"], &thought["signature"]));
        }
    }
    let session = session_of(&json!({"id": "mock", "api": "openai"}));
    let (log, _) = run_against(store(), session, [text("go")], &litellm.base).await;
    assert_eq!(said(&log), ["Hello from a mock."]);
    // A model that LiteLLM does not know, and one that it does after it.
    let session = session_of(&json!({"id": "nobody", "api": "openai", "fallbacks": [{"id": "mock"}]}));
    let (log, _) = run_against(store(), session, [text("go")], &litellm.base).await;
    assert_eq!(said(&log), ["Hello from a mock."]);
    let errors = errors(&log);
    assert!(errors.len() == 1 && errors[0].0.contains("nobody") && errors[0].1 == RetryStatus::Retrying, "{errors:?}");
}
