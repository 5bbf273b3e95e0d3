//! A real S3 server on loopback: versitygw over a folder.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use longhand_session_log::objects::{DEADLINE, Objects};
use tempfile::TempDir;

use super::{free_address, tool};

const READY: Duration = Duration::from_secs(20);
const BUCKET: &str = "longhand";

/// Ends the server when the pipe to it closes: also if the test process is killed.
const KEEPER: &str = r#"
"$@" >/dev/null 2>&1 &
server=$!
cat >/dev/null
kill -9 $server; wait $server 2>/dev/null
"#;

/// It is killed when dropped.
pub(crate) struct S3 {
    keeper: Child,
    address: String,
    _dir: TempDir,
}

impl S3 {
    pub(crate) async fn start() -> Self {
        let (dir, address) = (tempfile::tempdir().unwrap(), free_address());
        std::fs::create_dir(dir.path().join(BUCKET)).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "keeper"]).arg(tool("versitygw"));
        command.args(["--access", "access", "--secret", "secretsecret", "--port", &address, "--quiet", "posix"]);
        let keeper = command.arg(dir.path()).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let begin = Instant::now();
        while TcpStream::connect(&address).is_err() {
            assert!(begin.elapsed() < READY, "versitygw does not come up");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Self { keeper, address, _dir: dir }
    }

    /// A place of its own in the bucket.
    pub(crate) fn objects(&self, prefix: &str) -> Objects {
        let env = [
            ("AWS_ACCESS_KEY_ID", "access"),
            ("AWS_SECRET_ACCESS_KEY", "secretsecret"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ENDPOINT", &format!("http://{}", self.address)),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        // The client has TLS even if it is not used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Objects::open_with(&format!("s3://{BUCKET}/{prefix}"), &env, DEADLINE).unwrap()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        self.keeper.wait().unwrap();
    }
}
