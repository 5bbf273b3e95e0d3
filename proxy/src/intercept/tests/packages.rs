//! Package managers, against registries of one package. They need the program of that name, so they run with `--ignored`.

use std::{collections::HashMap, process::Output};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{Request, StatusCode, header};
use hyper::body::Incoming;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::support::{SECRET, World, path, reply};

/// A server of files that knows one `authorization`, and asks for Basic.
async fn registry(authorization: String, files: HashMap<&'static str, Vec<u8>>) -> World {
    World::new(move |request: Request<Incoming>| {
        let right = request.headers().get(header::AUTHORIZATION).is_some_and(|sent| sent == authorization.as_str());
        let mut answer = match files.get(request.uri().path()) {
            Some(file) if right => reply(file.clone()),
            known => {
                let mut answer = reply("no");
                *answer.status_mut() = if known.is_some() { StatusCode::UNAUTHORIZED } else { StatusCode::NOT_FOUND };
                answer.headers_mut().insert(header::WWW_AUTHENTICATE, "Basic realm=\"r\"".parse().unwrap());
                answer
            }
        };
        if request.uri().path().ends_with('/') {
            answer.headers_mut().insert(header::CONTENT_TYPE, "text/html".parse().unwrap());
        }
        async move { answer }
    })
    .await
}

/// What a program makes of its arguments, in an empty directory.
async fn made(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = tokio::process::Command::new(program).args(arguments).kill_on_drop(true).output().await.unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn assert_done(output: &Output) {
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
#[ignore = "needs pip"]
async fn pip() {
    let wheel = made("python3", &["-c", "
import io, sys, zipfile
out = io.BytesIO()
with zipfile.ZipFile(out, 'w') as z:
    z.writestr('demo.py', 'x = 1\\n')
    z.writestr('demo-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: demo\\nVersion: 1.0\\n')
    z.writestr('demo-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    z.writestr('demo-1.0.dist-info/RECORD', '')
sys.stdout.buffer.write(out.getvalue())
"])
    .await;
    let index =
        b"<!DOCTYPE html><html><body><a href=\"/files/demo-1.0-py3-none-any.whl\">demo</a></body></html>".to_vec();
    let files = HashMap::from([("/simple/demo/", index), ("/files/demo-1.0-py3-none-any.whl", wheel)]);
    let basic = format!("Basic {}", STANDARD.encode(format!("me:{SECRET}")));
    let world = registry(basic, files).await;
    let url = format!("https://me:{}@git.example/simple", World::placeholder());
    let out = path(&world, "out");
    let arguments = [
        "download",
        "--isolated",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--no-deps",
        "--retries",
        "0",
        "--index-url",
        &url,
        "--dest",
        out.to_str().unwrap(),
        "demo",
    ];
    let mut command = world.command("pip", &arguments);
    command.env("PIP_CERT", path(&world, "ca.pem")).env("REQUESTS_CA_BUNDLE", path(&world, "ca.pem"));
    // A version manager's shim finds its versions there.
    command.env("HOME", std::env::var_os("HOME").unwrap_or_default());
    command.arg("--cert").arg(path(&world, "ca.pem"));
    command.arg("--proxy").arg(world.proxy());
    assert_done(&command.output().await.unwrap());
    assert!(out.join("demo-1.0-py3-none-any.whl").exists());
}

#[tokio::test]
#[ignore = "needs npm"]
async fn npm() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("package")).unwrap();
    std::fs::write(directory.path().join("package/package.json"), r#"{"name":"@team/demo","version":"1.0.0"}"#)
        .unwrap();
    let tarball = made("tar", &["-C", directory.path().to_str().unwrap(), "-cz", "package"]).await;
    let packument = json!({"name": "@team/demo", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {
        "name": "@team/demo", "version": "1.0.0", "dist": {"tarball": "https://git.example/@team/demo/-/demo-1.0.0.tgz"}}}});
    // npm encodes the slash of a scope.
    let files = HashMap::from([
        ("/@team%2fdemo", packument.to_string().into_bytes()),
        ("/@team/demo/-/demo-1.0.0.tgz", tarball),
    ]);
    let world = registry(format!("Bearer {SECRET}"), files).await;
    let npmrc = format!("registry=https://git.example/\n//git.example/:_authToken={}\n", World::placeholder());
    std::fs::write(path(&world, ".npmrc"), npmrc).unwrap();
    let mut command = world.command("npm", &["pack", "@team/demo", "--fetch-retries=0", "--no-update-notifier"]);
    command.env("npm_config_cafile", path(&world, "ca.pem")).current_dir(world.files.path());
    assert_done(&command.output().await.unwrap());
    assert!(path(&world, "team-demo-1.0.0.tgz").exists());
}

#[tokio::test]
#[ignore = "needs cargo with its network"]
async fn cargo() {
    let directory = tempfile::tempdir().unwrap();
    let package = directory.path().join("demo-1.0.0");
    std::fs::create_dir_all(package.join("src")).unwrap();
    std::fs::write(package.join("src/lib.rs"), "").unwrap();
    std::fs::write(package.join("Cargo.toml"), "[package]\nname = \"demo\"\nversion = \"1.0.0\"\nedition = \"2021\"\n")
        .unwrap();
    let tarball = made("tar", &["-C", directory.path().to_str().unwrap(), "-cz", "demo-1.0.0"]).await;
    let checksum: String = Sha256::digest(&tarball).iter().map(|byte| format!("{byte:02x}")).collect();
    let entry =
        json!({"name": "demo", "vers": "1.0.0", "deps": [], "cksum": checksum, "features": {}, "yanked": false});
    let config = json!({"dl": "https://git.example/dl", "auth-required": true}).to_string();
    let files = HashMap::from([
        ("/index/config.json", config.into_bytes()),
        ("/index/de/mo/demo", entry.to_string().into_bytes()),
        ("/dl/demo/1.0.0/download", tarball),
    ]);
    let world = registry(SECRET.to_owned(), files).await;
    let project = path(&world, "project");
    std::fs::create_dir_all(project.join("src")).unwrap();
    std::fs::write(project.join("src/lib.rs"), "").unwrap();
    let manifest = "[package]\nname = \"p\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[dependencies]\ndemo = { version = \"1\", registry = \"team\" }\n[workspace]\n";
    std::fs::write(project.join("Cargo.toml"), manifest).unwrap();
    let mut command = world.command(env!("CARGO"), &["fetch"]);
    command
        .env("RUSTC", std::path::Path::new(env!("CARGO")).with_file_name("rustc"))
        .env("CARGO_HOME", path(&world, "cargo"))
        .env("CARGO_HTTP_CAINFO", path(&world, "ca.pem"))
        .env("CARGO_REGISTRIES_TEAM_INDEX", "sparse+https://git.example/index/")
        .env("CARGO_REGISTRIES_TEAM_TOKEN", World::placeholder())
        .env("CARGO_REGISTRIES_TEAM_CREDENTIAL_PROVIDER", "cargo:token")
        .env("CARGO_NET_RETRY", "0")
        .current_dir(&project);
    assert_done(&command.output().await.unwrap());
    assert!(std::fs::read_to_string(project.join("Cargo.lock")).unwrap().contains("demo"));
}
