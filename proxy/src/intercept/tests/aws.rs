//! A real S3 server (versitygw), whose keys only the proxy knows.

use std::{
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use longhand_protocol::egress::CredentialOutcome;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::{Reply, SECRET, World};

const ID: &str = "AKIAREALREALREALREAL";
const BUCKET: &str = "longhand";
const HTTP1: &[&[u8]] = &[b"http/1.1"];
const READY: Duration = Duration::from_secs(20);

/// Ends the server when the pipe to it closes: also if the test process is killed.
const KEEPER: &str = r#"
"$@" >/dev/null 2>&1 &
server=$!
cat >/dev/null
kill -9 $server; wait $server 2>/dev/null
"#;

/// The server; it is killed when dropped.
struct S3 {
    keeper: Child,
    address: SocketAddr,
    dir: TempDir,
}

impl S3 {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(BUCKET)).unwrap();
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "keeper"]).arg(versitygw());
        command.args(["--access", ID, "--secret", SECRET, "--port", &address.to_string(), "--quiet", "posix"]);
        let keeper = command.arg(dir.path()).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let begin = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(begin.elapsed() < READY, "versitygw does not come up");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Self { keeper, address, dir }
    }

    /// A sandbox with the keys of this server, which TLS stands before.
    async fn world(&self, change: impl FnOnce(&mut Value)) -> World {
        let address = self.address;
        let client = Client::builder(TokioExecutor::new()).build_http();
        let handler = move |request: Request<Incoming>| {
            let client: Client<_, Incoming> = client.clone();
            let (mut parts, body) = request.into_parts();
            let path = parts.uri.path_and_query().unwrap().to_string();
            parts.uri = Uri::try_from(format!("http://{address}{path}")).unwrap();
            async move {
                let answer: Response<Incoming> = client.request(Request::from_parts(parts, body)).await.unwrap();
                answer.map(|body| body.map_err(Into::into).boxed_unsync()) as Reply
            }
        };
        let keys = |config: &mut Value| {
            let binding = &mut config["bindings"][0];
            let id = Path::new(binding["file"].as_str().unwrap()).with_file_name("id");
            std::fs::write(&id, ID).unwrap();
            binding["placement"] = json!({"type": "aws", "accessKeyIDFile": id, "regions": ["us-east-1"]});
            change(config);
        };
        World::with(keys, HTTP1, handler).await
    }

    fn object(&self, key: &str) -> Option<Vec<u8>> {
        std::fs::read(self.dir.path().join(BUCKET).join(key)).ok()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        self.keeper.wait().unwrap();
    }
}

/// Where `e2e/kind/tools versitygw` puts it, unless `VERSITYGW_BIN` or the `PATH` has it.
fn versitygw() -> PathBuf {
    let named = std::env::var_os("VERSITYGW_BIN").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = || std::env::split_paths(&path).map(|dir| dir.join("versitygw")).find(|file| file.is_file());
    let cache = || {
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home)?.join("longhand");
        find(&cache, 4)
    };
    named.or_else(in_path).or_else(cache).expect("versitygw is needed: build it with `e2e/kind/tools versitygw`")
}

fn find(dir: &Path, depth: usize) -> Option<PathBuf> {
    let file = dir.join("versitygw");
    if file.is_file() {
        return Some(file);
    }
    let entries = std::fs::read_dir(dir).ok().filter(|_| depth > 0)?;
    entries.filter_map(Result::ok).find_map(|entry| find(&entry.path(), depth - 1))
}

/// curl, which signs with the placeholder.
async fn curl(world: &World, region: &str, arguments: &[&str]) -> (String, String) {
    let keys = format!("{0}:{0}", World::placeholder());
    let provider = format!("aws:amz:{region}:s3");
    let mut all = vec!["--user", keys.as_str(), "--aws-sigv4", provider.as_str()];
    all.extend(arguments);
    world.curl(&all).await
}

#[tokio::test]
async fn what_curl_signs_with_a_placeholder_is_signed_with_the_keys() {
    let s3 = S3::start().await;
    let world = s3.world(|_| {}).await;
    let url = "https://git.example/longhand/a%20b%2Bc~d";
    let (status, text) = curl(&world, "us-east-1", &["--request", "PUT", "--data-binary", "hello", url]).await;
    assert_eq!((status.as_str(), s3.object("a b+c~d").as_deref()), ("200", Some(&b"hello"[..])), "{text}");
    let (status, text) = curl(&world, "us-east-1", &["--range", "1-2", url]).await;
    assert_eq!((status.as_str(), text.as_str()), ("206", "el"));
    let list = "https://git.example/longhand?prefix=a%20b&list-type=2&max-keys=5";
    let (status, text) = curl(&world, "us-east-1", &[list]).await;
    assert!(status == "200" && text.contains("<Key>a b+c~d</Key>"), "{status} {text}");
    assert!(!text.contains(ID) && !text.contains(SECRET), "{text}");
    let used = world.event(CredentialOutcome::Used, "").await;
    assert_eq!((used.credential.as_deref(), used.method.as_str()), (Some("team/one"), "PUT"));

    let (status, text) = curl(&world, "eu-west-1", &[url]).await;
    assert!(status == "403" && text.contains("regions us-east-1 only"), "{status} {text}");
    world.event(CredentialOutcome::Denied, "regions us-east-1 only").await;
    // Nothing reaches the server without the keys.
    let (status, _) = world.curl(&["--user", "AKIAATTACKER:x", "--aws-sigv4", "aws:amz:us-east-1:s3", url]).await;
    assert_eq!(status, "403");
    world.rotate("another-key");
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    let (status, text) = curl(&world, "us-east-1", &[url]).await;
    assert!(status == "403" && text.contains("SignatureDoesNotMatch"), "{status} {text}");
}

#[tokio::test]
async fn keys_that_are_not_there_sign_nothing() {
    let s3 = S3::start().await;
    let world = s3.world(|config| config["bindings"][0]["placement"]["sessionTokenFile"] = json!("/nonexistent")).await;
    let (status, text) = curl(&world, "us-east-1", &["https://git.example/longhand"]).await;
    assert!(status == "503" && text.contains("\"team/one\" is not available"), "{status} {text}");
}

async fn aws(world: &World, arguments: &[&str]) -> Output {
    let mut command = world.command("aws", arguments);
    command.env("AWS_ACCESS_KEY_ID", World::placeholder()).env("AWS_SECRET_ACCESS_KEY", World::placeholder());
    command.env("AWS_REGION", "us-east-1").env("AWS_CA_BUNDLE", world.files.path().join("ca.pem"));
    command.env("AWS_ENDPOINT_URL", "https://git.example").env("AWS_EC2_METADATA_DISABLED", "true");
    let output = tokio::time::timeout(Duration::from_secs(120), command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[tokio::test]
#[ignore = "needs the AWS command line"]
async fn the_command_line_of_aws_copies_and_lists() {
    let s3 = S3::start().await;
    let world = s3.world(|_| {}).await;
    // More than one part, and each with a checksum behind it.
    let large: Vec<u8> = (0..20 * 1024 * 1024_u32).map(|byte| byte.to_le_bytes()[1]).collect();
    let (from, to) = (world.files.path().join("from"), world.files.path().join("to"));
    std::fs::write(&from, &large).unwrap();
    aws(&world, &["s3", "cp", from.to_str().unwrap(), "s3://longhand/large", "--no-progress"]).await;
    assert!(s3.object("large").is_some_and(|object| object == large));
    aws(&world, &["s3", "cp", "s3://longhand/large", to.to_str().unwrap(), "--no-progress"]).await;
    assert!(std::fs::read(&to).unwrap() == large);
    let listed = aws(&world, &["s3api", "list-objects-v2", "--bucket", BUCKET]).await;
    assert!(String::from_utf8_lossy(&listed.stdout).contains("\"large\""));
    aws(&world, &["s3", "rm", "s3://longhand/large"]).await;
    assert!(s3.object("large").is_none());
}
