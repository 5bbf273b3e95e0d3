//! git over HTTPS, against `git http-backend` behind HTTP Basic.

use std::{path::PathBuf, process::Stdio};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{io::AsyncWriteExt, process::Command};

use super::support::{Reply, SECRET, World, path, reply};

/// A server that knows one password.
async fn backend(root: PathBuf, request: Request<Incoming>) -> Reply {
    let expected = format!("Basic {}", STANDARD.encode(format!("me:{SECRET}")));
    if request.headers().get(header::AUTHORIZATION).is_none_or(|sent| sent != expected.as_str()) {
        let mut answer = reply("who are you?");
        *answer.status_mut() = StatusCode::UNAUTHORIZED;
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, "Basic realm=\"git\"".parse().unwrap());
        return answer;
    }
    let text =
        |name| request.headers().get(name).map_or("", |value: &http::HeaderValue| value.to_str().unwrap()).to_owned();
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "me")
        .env("PATH_INFO", request.uri().path())
        .env("QUERY_STRING", request.uri().query().unwrap_or_default())
        .env("REQUEST_METHOD", request.method().as_str())
        .env("CONTENT_TYPE", text(header::CONTENT_TYPE))
        .env("HTTP_CONTENT_ENCODING", text(header::CONTENT_ENCODING))
        .env("GIT_PROTOCOL", text("git-protocol".parse().unwrap()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let body = request.into_body().collect().await.unwrap().to_bytes();
    command.env("CONTENT_LENGTH", body.len().to_string());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let (written, output) = tokio::join!(
        async move {
            let written = input.write_all(&body).await;
            drop(input);
            written
        },
        child.wait_with_output()
    );
    let _ = written;
    let output = output.unwrap().stdout;
    let end = output.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let mut answer = reply(Bytes::copy_from_slice(&output[end + 4..]));
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let (name, value) = line.split_once(": ").unwrap();
        if name == "Status" {
            *answer.status_mut() = value[..3].parse().unwrap();
        } else {
            answer.headers_mut().insert(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
        }
    }
    answer
}

async fn git(world: &World, directory: &str, arguments: &[&str]) -> String {
    let directory = path(world, directory);
    let mut all = vec!["-C", directory.to_str().unwrap(), "-c", "user.name=me", "-c", "user.email=me@example.com"];
    all.extend(arguments);
    let output = world.run("git", &all).await;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "git {arguments:?}: {text}");
    text
}

#[tokio::test]
async fn clone_fetch_and_push_with_a_placeholder_as_password() {
    let root = tempfile::tempdir().unwrap();
    let served = root.path().to_owned();
    let world = World::new(move |request| backend(served.clone(), request)).await;
    let bare = root.path().join("a.git");
    let made = world.run("git", &["init", "--quiet", "--bare", "--initial-branch=main", bare.to_str().unwrap()]).await;
    assert!(made.status.success());

    let url = format!("https://me:{}@git.example/a.git", World::placeholder());
    git(&world, "", &["clone", "--quiet", &url, "one"]).await;
    // More than a pack in one piece, and what does not compress.
    let content: Vec<u8> = (0..3_000_000_u32).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect();
    std::fs::write(path(&world, "one/file"), content).unwrap();
    git(&world, "one", &["checkout", "--quiet", "-B", "main"]).await;
    git(&world, "one", &["add", "file"]).await;
    git(&world, "one", &["commit", "--quiet", "-m", "one"]).await;
    git(&world, "one", &["push", "--quiet", "origin", "main"]).await;

    git(&world, "", &["clone", "--quiet", &url, "two"]).await;
    assert!(std::fs::read(path(&world, "two/file")).unwrap() == std::fs::read(path(&world, "one/file")).unwrap());
    git(&world, "one", &["commit", "--quiet", "--allow-empty", "-m", "two"]).await;
    git(&world, "one", &["push", "--quiet", "origin", "main"]).await;
    git(&world, "two", &["fetch", "--quiet"]).await;
    assert!(git(&world, "two", &["log", "--format=%s", "origin/main"]).await.starts_with("two\none"));

    // A password of one's own is none.
    let other = world.run("git", &["ls-remote", "https://me:attacker@git.example/a.git"]).await;
    let text = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(!other.status.success() && text.contains("403"), "{text}");
}
