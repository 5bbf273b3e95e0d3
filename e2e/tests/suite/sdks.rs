//! The official SDKs, each of which drives a whole session: `e2e/sdk/drive.py` and `e2e/sdk/drive.mjs` say what that is.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use futures::future::join_all;
use kube::ResourceExt;
use kube::api::ListParams;
use longhand_crds::AgentSession;
use longhand_e2e::cluster::{Fixture, TestResult, in_namespace, token};
use tokio::process::Command;
use tokio::time::{Instant, timeout};

const SCRIPT: &str = include_str!("../../sdk/script.yaml");
/// What makes agents of the wire API work in a namespace, as docs/sdks.md says.
const MODELS: &str = "
apiVersion: longhand.dev/v1alpha1
kind: Vault
metadata: {name: models}
spec:
  credentials:
    - name: api-key
      modelBaseURL: http://scripted-model.${NAMESPACE}.svc
      secretRef: {name: model-key, key: api-key}
      allow: {scheme: http, hosts: [scripted-model.${NAMESPACE}.svc], privateAddresses: Allow}
      placement: {type: header, header: x-api-key}
";
/// The first time, packages are downloaded.
const INSTALL: Duration = Duration::from_secs(600);
/// A driver says where it hangs after this, and is killed a little later.
const DRIVE: Duration = Duration::from_secs(150);

/// An SDK that was installed, and the program that drives a session with it.
struct Client {
    name: String,
    folder: PathBuf,
    command: Vec<String>,
}

/// How the session service is reached.
struct Way {
    url: String,
    token: String,
    authority: PathBuf,
}

#[tokio::test]
async fn the_official_sdks_drive_a_whole_session() {
    let clients = clients().await.expect("the SDKs are installed");
    assert_eq!(clients.len(), 4);
    in_namespace("sdks", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        namespace.apply(&MODELS.replace("${NAMESPACE}", &namespace.name)).await?;
        let authority = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.crt", namespace.name));
        let pem = fixture.service.server.authorities().ok_or("the session service does not speak TLS")?;
        std::fs::write(&authority, pem)?;
        let way = Way {
            // One of the names that the certificate is for.
            url: format!("https://localhost:{}", fixture.service.address().port()),
            token: token(&namespace, "longhand-cli", None).await?,
            authority,
        };
        let outcomes = join_all(clients.iter().map(|client| drive(client, &way))).await;
        let failed = clients.iter().zip(outcomes).filter(|(client, outcome)| report(&client.name, outcome));
        let failed: Vec<&str> = failed.map(|(client, _)| client.name.as_str()).collect();
        if !failed.is_empty() {
            return Err(format!("{} did not come to an end", failed.join(", ")).into());
        }
        std::fs::remove_file(&way.authority)?;
        nothing_is_left(&fixture).await
    })
    .await;
}

async fn clients() -> TestResult<Vec<Client>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/clients");
    let mut install = Command::new(script);
    install.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
    let installed = timeout(INSTALL, install.output()).await??;
    if !installed.status.success() {
        return Err(format!("e2e/sdk/clients: {}", installed.status).into());
    }
    let mut clients = Vec::new();
    for line in String::from_utf8(installed.stdout)?.lines() {
        let mut fields = line.split('\t').map(ToOwned::to_owned);
        let (name, folder) = fields.next().zip(fields.next()).ok_or("a line without a folder")?;
        clients.push(Client { name, folder: folder.into(), command: fields.collect() });
    }
    Ok(clients)
}

/// Drives a session with one client, which is told where to go by the variables that it knows anyway.
async fn drive(client: &Client, way: &Way) -> TestResult<(Output, Duration)> {
    let began = Instant::now();
    let (program, driver) = client.command.split_first().ok_or("a client without a program")?;
    let mut command = Command::new(program);
    command
        .args(driver)
        .arg(DRIVE.as_secs().to_string())
        .current_dir(&client.folder)
        .env("ANTHROPIC_BASE_URL", &way.url)
        .env("ANTHROPIC_API_KEY", &way.token)
        .env("SSL_CERT_FILE", &way.authority)
        .env("NODE_EXTRA_CA_CERTS", &way.authority)
        .env("NO_PROXY", "localhost")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(DRIVE + Duration::from_secs(15), command.output()).await??;
    Ok((output, began.elapsed()))
}

/// Says how a drive went; whether it failed.
fn report(name: &str, outcome: &TestResult<(Output, Duration)>) -> bool {
    match outcome {
        Ok((output, took)) => {
            let said = String::from_utf8_lossy(&output.stdout);
            let complained = String::from_utf8_lossy(&output.stderr);
            eprintln!("---- {name}: {} after {:.1} s\n{said}{complained}", output.status, took.as_secs_f32());
            !output.status.success()
        }
        Err(error) => {
            eprintln!("---- {name}: {error}");
            true
        }
    }
}

/// The drivers have deleted their sessions, and the model has seen no key but its own.
async fn nothing_is_left(fixture: &Fixture) -> TestResult {
    let sessions = fixture.namespace.api::<AgentSession>().list(&ListParams::default()).await?;
    let left: Vec<String> = sessions.iter().map(ResourceExt::name_any).collect();
    assert!(left.is_empty(), "sessions are left: {left:?}");
    let recorded = fixture.model.recorded().await?;
    assert!(!recorded.requests.is_empty(), "the model was never asked");
    for request in &recorded.requests {
        assert_ne!(request.status, 401, "the model was asked with another key: {:?}", request.headers);
    }
    Ok(())
}
