//! Reaching into sandboxes by the command line and the API: files both ways, commands, servers, and nothing of it without rights.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use longhand_cli::sandbox::terminal::converse;
use longhand_e2e::cluster::{
    Fixture, SessionOptions, TestNamespace, TestResult, VIEWER, eventually, in_namespace, longhand, skipped, token,
};
use longhand_protocol::client::sandboxes::{SandboxOf, Terminal};
use longhand_protocol::client::{Error, WireClient};
use rand::RngCore as _;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

const SCRIPT: &str = r#"
rules:
  - when: {user_contains: begin, turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "echo made by the agent > note"}}]}
  - then: {text: "Done."}
"#;
const STANDALONE: &str =
    "apiVersion: longhand.dev/v1alpha1\nkind: Sandbox\nmetadata: {name: bench}\nspec: {templateRef: {name: small}}\n";
const SIZE: usize = 64 * 1024 * 1024;
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const LONG: Duration = Duration::from_secs(120);

/// What a command in a sandbox says, and its exit code.
async fn says(wire: &WireClient, of: &SandboxOf, command: &str, input: &[u8]) -> TestResult<(String, u8)> {
    let terminal = Terminal { command: Some(command), tty: false, size: (80, 24), term: "dumb", key: KEY };
    let open = wire.open_terminal(of, &terminal).await?;
    let (_sizes, told) = mpsc::channel(1);
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let conversation = converse(open.stream, Some(input), told, &mut output, &mut errors);
    let code = tokio::time::timeout(LONG, conversation).await??;
    Ok((String::from_utf8(output)?, code))
}

fn digest(path: &Path) -> TestResult<String> {
    let bytes = std::fs::read(path)?;
    Ok(Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

fn refused<T>(outcome: Result<T, Error>) -> TestResult {
    match outcome {
        Err(error) if error.status().is_some_and(|status| status == 403) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Err("it was allowed".into()),
    }
}

#[tokio::test]
async fn files_commands_and_servers_are_reached() {
    in_namespace("sandbox-reach", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 300).await?;
        let session = fixture.session("reach", &SessionOptions::saying(&["begin"])).await?;
        fixture.service.until_idle(&session, 0, LONG).await?;
        let wire = &fixture.service.wire;
        let of = SandboxOf::Session { session, sandbox: "main".to_owned() };

        // 64 MiB there and back are what they were, also to the sandbox itself.
        let folder = std::env::temp_dir().join(&namespace.name);
        std::fs::create_dir_all(folder.join("tree/empty"))?;
        let outcome = async {
            let mut bytes = vec![0; SIZE];
            rand::rng().fill_bytes(&mut bytes);
            let (there, back) = (folder.join("there"), folder.join("back"));
            std::fs::write(&there, &bytes)?;
            std::fs::write(folder.join("tree/leaf"), "leaf")?;
            let text = |path: &Path| path.to_string_lossy().into_owned();
            longhand(&namespace, &["cp", &text(&there), "reach:in/there"]).await?;
            let (said, code) = says(wire, &of, "sha256sum in/there; cat note", b"").await?;
            assert_eq!(code, 0, "{said}");
            assert!(said.starts_with(&digest(&there)?) && said.ends_with("made by the agent\n"), "{said}");
            longhand(&namespace, &["cp", "reach/main:in/there", &text(&back)]).await?;
            assert_eq!(digest(&back)?, digest(&there)?);
            longhand(&namespace, &["cp", &text(&folder.join("tree")), "reach:tree"]).await?;
            longhand(&namespace, &["cp", "reach:tree", &text(&folder.join("tree-again"))]).await?;
            assert_eq!(std::fs::read(folder.join("tree-again/leaf"))?, b"leaf");
            TestResult::Ok(())
        };
        let outcome = outcome.await;
        std::fs::remove_dir_all(&folder)?;
        outcome?;

        // A command's exit code is that of the command line.
        let code = longhand(&namespace, &["exec", "reach", "--", "sh", "-c", "exit 3"]).await?;
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(3)));
        let (said, _) = says(wire, &of, "tr a-z A-Z", b"loud").await?;
        assert_eq!(said, "LOUD");
        a_shell_is_a_terminal(wire, &of).await?;
        servers_are_reached(&namespace, wire, &of).await?;
        a_server_has_an_origin_of_its_own(&fixture, &of).await
    })
    .await;
}

/// Without a command it is the shell, at a terminal of the size that is asked for.
async fn a_shell_is_a_terminal(wire: &WireClient, of: &SandboxOf) -> TestResult {
    let terminal = Terminal { command: None, tty: true, size: (91, 17), term: "xterm", key: KEY };
    let open = wire.open_terminal(of, &terminal).await?;
    let (_sizes, told) = mpsc::channel(1);
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let typed = "tty; stty size; echo $TERM; echo $((6 * 7)); exit 4\n";
    let conversation = converse(open.stream, Some(typed.as_bytes()), told, &mut output, &mut errors);
    let code = tokio::time::timeout(LONG, conversation).await??;
    let said = String::from_utf8_lossy(&output);
    for part in ["/dev/pts/", "17 91", "xterm", "42"] {
        assert!(said.contains(part), "{part} is not in what the terminal shows: {said}");
    }
    assert_eq!(code, 4, "{said}");
    Ok(())
}

/// A server that shows the headers it gets and sets a cookie.
const ECHO: &str = r#"exec python3 -c '
import http.server
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = "".join(f"{name.lower()}: {value}\n" for name, value in self.headers.items()).encode()
        self.send_response(200)
        self.send_header("set-cookie", "a=b")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", 8001), Echo).serve_forever()
'"#;

/// Over HTTP it is reached by a host of its own, with a token that it does not see, and what is the caller's own is kept from it.
async fn a_server_has_an_origin_of_its_own(fixture: &Fixture, of: &SandboxOf) -> TestResult {
    let wire = &fixture.service.wire;
    let link = match wire.port_link(of, 8001).await {
        Ok(link) => link,
        Err(error) if error.to_string().contains("session.ports.url") => {
            skipped("a server's own origin", "the installation has no URL for ports");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let terminal = Terminal { command: Some(ECHO), tty: true, size: (80, 24), term: "dumb", key: KEY };
    let _server = wire.open_terminal(of, &terminal).await?;
    let (client, base) = fixture.service.server.connect()?;
    let host = link.origin.strip_prefix("https://").ok_or("an origin without TLS")?;
    let ask = |token: Option<&str>| {
        let request = client.get(base.clone()).header("host", host).timeout(LONG);
        let request = request.header("authorization", "Bearer mine").header("cookie", "mine=1").header("x-app", "1");
        token.into_iter().fold(request, |request, token| request.header("x-longhand-port-token", token)).send()
    };
    let answer = eventually("the server answers", Duration::from_secs(60), || async {
        Ok(Some(ask(Some(&link.token)).await?).filter(|answer| answer.status().is_success()))
    })
    .await?;
    assert!(!answer.headers().contains_key("set-cookie"), "{:?}", answer.headers());
    let seen = answer.text().await?;
    assert!(seen.contains("x-app: 1"), "{seen}");
    for kept in ["mine", "authorization", "cookie", &link.token] {
        assert!(!seen.contains(kept), "the server sees {kept}: {seen}");
    }
    let without = ask(None).await?.status();
    assert!(matches!(without.as_u16(), 401 | 403), "without a token: {without}");
    Ok(())
}

async fn servers_are_reached(namespace: &TestNamespace, wire: &WireClient, of: &SandboxOf) -> TestResult {
    let serve = "mkdir -p www && echo hello from inside > www/index.html && exec python3 -m http.server 8000 --bind 127.0.0.1 -d www";
    let terminal = Terminal { command: Some(serve), tty: true, size: (80, 24), term: "dumb", key: KEY };
    // The server runs for as long as its terminal is open.
    let _server = wire.open_terminal(of, &terminal).await?;
    let free = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let ports = format!("{free}:8000");
    let words = ["port-forward", "reach", ports.as_str()];
    let asking = async {
        let url = format!("http://127.0.0.1:{free}/");
        eventually("the server answers", Duration::from_secs(60), || async {
            let Ok(answer) = reqwest::get(&url).await else { return Ok(None) };
            let text = answer.text().await.unwrap_or_default();
            Ok(text.contains("hello from inside").then_some(()))
        })
        .await
    };
    tokio::select! {
        asked = asking => asked,
        forwarded = longhand(namespace, &words) => Err(format!("the port-forward ended: {forwarded:?}").into()),
    }
}

#[tokio::test]
async fn nothing_is_reached_without_rights_and_a_sandbox_of_its_own_is_woken() {
    in_namespace("sandbox-rights", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 300).await?;
        namespace.apply(STANDALONE).await?;
        namespace.apply(VIEWER).await?;
        let of = SandboxOf::Object { name: "bench".to_owned() };
        let viewer = fixture.service.wire_as(&token(&namespace, "viewer", None).await?)?;
        refused(viewer.download_file(&of, "note").await)?;
        refused(viewer.open_port(&of, 8000).await)?;
        let terminal = Terminal { command: None, tty: true, size: (80, 24), term: "dumb", key: KEY };
        refused(viewer.open_terminal(&of, &terminal).await)?;

        // It may not be ready yet, which is waited for; then it sleeps.
        let (said, _) = says(&fixture.service.wire, &of, "echo here", b"").await?;
        assert_eq!(said, "here\n");
        let asleep = kube::api::Patch::Merge(serde_json::json!({ "spec": { "desiredState": "Suspended" } }));
        let sandboxes = namespace.api::<longhand_crds::Sandbox>();
        sandboxes.patch("bench", &kube::api::PatchParams::default(), &asleep).await?;
        let (said, _) = says(&fixture.service.wire, &of, "echo awake", b"").await?;
        assert_eq!(said, "awake\n");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_sandbox_of_its_own_is_given_the_files_of_its_template_and_says_what_it_is_not_given() {
    in_namespace("sandbox-given", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 300).await?;
        let provision = serde_json::json!([
            { "name": "notes", "mountPath": "/workspace/NOTES", "file": { "content": "Be kind." } },
            { "name": "app", "mountPath": "/workspace/app", "gitRepository": { "url": "https://github.com/o/app.git" } },
        ]);
        let patch = kube::api::Patch::Merge(serde_json::json!({ "spec": { "provision": provision } }));
        let templates = namespace.api::<longhand_crds::SandboxTemplate>();
        templates.patch("small", &kube::api::PatchParams::default(), &patch).await?;
        namespace.apply(STANDALONE).await?;
        let of = SandboxOf::Object { name: "bench".to_owned() };
        let (said, _) = says(&fixture.service.wire, &of, "cat NOTES; ls", b"").await?;
        assert_eq!(said, "Be kind.NOTES\n");
        let sandbox = namespace.api::<longhand_crds::Sandbox>().get("bench").await?;
        let conditions = sandbox.status.map(|status| status.conditions).unwrap_or_default();
        let given = conditions.iter().find(|one| one.type_ == "ResourcesReady").ok_or("nothing is said of it")?;
        assert!(given.reason == "Unsupported" && given.message.starts_with("app: "), "{given:?}");
        Ok(())
    })
    .await;
}
