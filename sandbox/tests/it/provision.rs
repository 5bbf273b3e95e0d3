//! What a workspace is given before a tool runs in it: repositories, files and archives, from a server of their own.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use longhand_sandbox::provision::{Content, ProvisionRequest, Provisioned, Resource, Source};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::sandboxd::Sandboxd;

/// A server of the files in a folder, which is all that git needs, and of `/silent`, which is never answered.
struct Files {
    folder: tempfile::TempDir,
    url: String,
    heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Files {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Files {
    async fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (root, kept) = (folder.path().to_owned(), Arc::clone(&heads));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer(stream, root.clone(), Arc::clone(&kept)));
            }
        });
        Self { folder, url, heads, task }
    }

    /// A repository with two commits, each of which has its number in `file`; their hashes.
    fn repository(&self, name: &str) -> [String; 2] {
        let (work, bare) = (tempfile::tempdir().unwrap(), self.folder.path().join(name));
        git(work.path(), &["init", "--quiet", "--initial-branch", "main"]);
        let commits = ["1", "2"].map(|number| {
            std::fs::write(work.path().join("file"), number).unwrap();
            git(work.path(), &["add", "."]);
            let identity = ["-c", "user.name=t", "-c", "user.email=t@t.test"];
            git(work.path(), &[&identity[..], &["commit", "--quiet", "--message", number]].concat());
            git(work.path(), &["rev-parse", "HEAD"]).trim().to_owned()
        });
        git(work.path(), &["branch", "old", &commits[0]]);
        git(work.path(), &["clone", "--quiet", "--bare", ".", bare.to_str().unwrap()]);
        git(&bare, &["update-server-info"]);
        commits
    }

    fn clone_of(&self, at: &Path, repository: &str, reference: Option<&str>) -> Resource {
        let url = format!("{}/{repository}", self.url);
        let (reference, authorization) = (reference.map(ToOwned::to_owned), Some("Basic placeholder".to_owned()));
        resource(at, Source::Repository { url, reference, authorization })
    }
}

async fn answer(stream: TcpStream, root: std::path::PathBuf, heads: Arc<Mutex<Vec<String>>>) {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let path = head.split(' ').nth(1).unwrap().split('?').next().unwrap().trim_start_matches('/').to_owned();
    heads.lock().unwrap().push(head);
    if path.starts_with("silent") {
        std::future::pending::<()>().await;
    }
    let found = std::fs::read(root.join(path));
    let status = if found.is_ok() { "200 OK" } else { "404 Not Found" };
    let body = found.unwrap_or_default();
    let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), &body].concat()).await.ok();
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let done = Command::new("git").current_dir(folder).args(arguments).output().unwrap();
    assert!(done.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn resource(at: &Path, source: Source) -> Resource {
    Resource {
        name: at.file_name().unwrap().to_str().unwrap().to_owned(),
        path: at.to_str().unwrap().to_owned(),
        source,
    }
}

async fn provision(sandboxd: &Sandboxd, deadline: u64, resources: &[&Resource]) -> Provisioned {
    let resources = resources.iter().map(|resource| (*resource).clone()).collect();
    let request = ProvisionRequest { deadline_seconds: deadline, resources };
    sandboxd.client.provision(&sandboxd.target, &request).await.unwrap()
}

fn made(names: &[&str]) -> Provisioned {
    Provisioned { made: names.iter().map(|name| (*name).to_owned()).collect(), ..Provisioned::default() }
}

/// What failed, and why.
fn failure(provisioned: Provisioned) -> (String, String) {
    let failed = provisioned.failed.expect("a failure");
    (failed.name, failed.reason)
}

/// What is in the folder for what is being made.
fn left_over(sandboxd: &Sandboxd) -> usize {
    std::fs::read_dir(sandboxd.path(".longhand")).unwrap().count() - 1
}

#[tokio::test]
async fn repositories_are_given_once() {
    let (files, sandboxd) = (Files::serve().await, Sandboxd::start("0"));
    let commits = files.repository("r.git");
    let at = |name: &str| sandboxd.path(name);
    let (whole, old) =
        (files.clone_of(&at("whole"), "r.git", None), files.clone_of(&at("a/old"), "r.git", Some("old")));
    let commit = files.clone_of(&at("commit"), "r.git", Some(&commits[0]));
    let all = [&whole, &old, &commit];
    assert_eq!(provision(&sandboxd, 60, &all).await, made(&["old", "commit", "whole"]));
    let said = sandboxd.run("a", "cat whole/file a/old/file commit/file; git -C a/old branch --show-current").await;
    assert_eq!(said.content, "211old\n");
    let config = std::fs::read_to_string(at("whole/.git/config")).unwrap();
    assert!(config.contains("Authorization: Basic placeholder"), "{config}");
    assert!(files.heads.lock().unwrap().iter().all(|head| head.contains("Authorization: Basic placeholder")));
    assert_eq!(left_over(&sandboxd), 0);

    // What was changed or removed since is not put right, also by a sandboxd that comes later.
    sandboxd.run("b", "echo mine > whole/file; rm -rf commit").await;
    assert_eq!(provision(&sandboxd, 60, &all).await, made(&[]));
    let sandboxd = sandboxd.killed_and_restarted();
    assert_eq!(provision(&sandboxd, 60, &all).await, made(&[]));
    assert_eq!(sandboxd.run("c", "cat whole/file; ls").await.content, "mine\na\nwhole\n");
}

#[tokio::test]
async fn what_cannot_be_had_is_named_and_tried_again() {
    let (files, sandboxd) = (Files::serve().await, Sandboxd::start("0"));
    let (first, second) =
        (files.clone_of(&sandboxd.path("a"), "a.git", None), files.clone_of(&sandboxd.path("b"), "b.git", None));
    files.repository("a.git");
    let tried = provision(&sandboxd, 60, &[&second, &first]).await;
    assert_eq!(tried.made, ["a"]);
    let (name, reason) = failure(tried);
    assert!(name == "b" && reason.contains("not found") && reason.contains("exit code 128"), "{name}: {reason}");
    assert!(!sandboxd.path("b").exists() && left_over(&sandboxd) == 0);
    files.repository("b.git");
    assert_eq!(provision(&sandboxd, 60, &[&second, &first]).await, made(&["b"]));
    let unknown = files.clone_of(&sandboxd.path("c"), "b.git", Some(&"0".repeat(40)));
    assert!(failure(provision(&sandboxd, 60, &[&unknown]).await).1.contains("0000"));
}

#[tokio::test]
async fn nobody_waits_longer_than_the_deadline() {
    let (files, sandboxd) = (Files::serve().await, Sandboxd::start("0"));
    let silent = files.clone_of(&sandboxd.path("a"), "silent", None);
    let began = Instant::now();
    let (name, reason) = failure(provision(&sandboxd, 1, &[&silent]).await);
    assert!(name == "a" && reason.contains("timed out after"), "{reason}");
    assert!(began.elapsed() < Duration::from_secs(20) && left_over(&sandboxd) == 0);
}

#[tokio::test]
async fn files_and_archives_are_given() {
    let (files, sandboxd) = (Files::serve().await, Sandboxd::start("0"));
    let tree = BTreeMap::from([("d/x", "1"), ("y", "2")]);
    let source = tempfile::tempdir().unwrap();
    for (name, content) in tree {
        std::fs::create_dir_all(source.path().join(name).parent().unwrap()).unwrap();
        std::fs::write(source.path().join(name), content).unwrap();
    }
    let packed = files.folder.path().join("t.tar.gz");
    let tar = Command::new("tar").arg("-czf").arg(&packed).arg("-C").arg(source.path()).arg(".").status().unwrap();
    assert!(tar.success());
    let digest: String =
        Sha256::digest(std::fs::read(&packed).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
    let archive = |name: &str, sha256: Option<String>| {
        resource(&sandboxd.path(name), Source::Archive { url: format!("{}/t.tar.gz", files.url), sha256 })
    };
    let file = |name: &str, content: &str| {
        resource(&sandboxd.path(name), Source::File { content: content.to_owned(), mode: 0o755 })
    };
    let (script, taken) = (file("bin/run", "#!/bin/sh\necho ran\n"), file("mine", "theirs"));
    sandboxd.run("a", "echo mine > mine").await;
    let given = provision(&sandboxd, 60, &[&archive("t", Some(digest.to_uppercase())), &script, &taken]).await;
    assert_eq!(given, made(&["run", "t"]));
    assert_eq!(sandboxd.run("b", "bin/run; cat t/d/x t/y; echo; cat mine").await.content, "ran\n12\nmine\n");

    let wrong = archive("u", Some("0".repeat(64)));
    assert!(failure(provision(&sandboxd, 60, &[&wrong]).await).1.contains("its SHA-256 is"));
    let outside = resource(Path::new("/etc/longhand"), Source::File { content: String::new(), mode: 0o644 });
    assert!(failure(provision(&sandboxd, 60, &[&outside]).await).1.contains("not inside of the workspace"));
    assert!(!sandboxd.path("u").exists() && left_over(&sandboxd) == 0);
}

#[tokio::test]
async fn a_stored_file_is_wanted_until_all_of_it_has_come() {
    let (files, sandboxd) = (Files::serve().await, Sandboxd::start("0"));
    files.repository("r.git");
    let stored = resource(&sandboxd.path("r/in/data"), Source::Stored { id: "file_1".to_owned() });
    let repository = files.clone_of(&sandboxd.path("r"), "r.git", None);
    let asked = provision(&sandboxd, 60, &[&stored, &repository]).await;
    assert_eq!((asked.made.as_slice(), asked.wanted.as_slice()), (&["r".to_owned()][..], &["data".to_owned()][..]));
    let content: Vec<u8> = (0..3_000_000_u32).map(|index| u8::try_from(index % 251).unwrap()).collect();
    let sha256: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    let meant = Content {
        name: "data".to_owned(),
        path: stored.path.clone(),
        id: "file_1".to_owned(),
        bytes: content.len() as u64,
        sha256,
    };
    let provide = async |sent: &[u8], meant: &Content| {
        let body = http_body_util::Full::new(bytes::Bytes::copy_from_slice(sent));
        sandboxd.client.provide(&sandboxd.target, meant, body).await.map_err(|error| error.to_string())
    };
    // A part of it, more than it, and something else are no such file.
    let other = Content { sha256: "0".repeat(64), ..meant.clone() };
    let longer = [&content[..], b"x"].concat();
    for (sent, meant, said) in
        [(&content[1..], &meant, "missing"), (&longer[..], &meant, "too much"), (&content[..], &other, "SHA-256")]
    {
        let error = provide(sent, meant).await.unwrap_err();
        assert!(error.contains(said), "{error}");
        assert_eq!(provision(&sandboxd, 60, &[&stored, &repository]).await.wanted, ["data"]);
        assert!(!sandboxd.path("r/in/data").exists());
    }
    assert_eq!(provide(&content, &meant).await.unwrap(), made(&["data"]));
    assert!(std::fs::read(sandboxd.path("r/in/data")).unwrap() == content);
    assert_eq!(sandboxd.run("a", "stat -c %a r/in/data; echo mine > r/in/data").await.content, "644\n");
    // It is given once, and what is inside of a repository comes after it.
    assert_eq!(provide(&content, &meant).await.unwrap(), made(&[]));
    assert_eq!(provision(&sandboxd, 60, &[&stored, &repository]).await, made(&[]));
    assert_eq!(std::fs::read_to_string(sandboxd.path("r/in/data")).unwrap(), "mine\n");
    let outside = Content { path: "/etc/longhand".to_owned(), ..meant };
    assert!(provide(&content, &outside).await.unwrap_err().contains("not inside of the workspace"));
}
