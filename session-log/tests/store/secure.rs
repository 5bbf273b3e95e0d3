//! Etcd over TLS with client certificates, and with users.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use etcd_client::{Permission, PermissionType};
use futures::StreamExt as _;
use longhand_session_log::etcd::{Endpoints, EtcdOptions, EtcdStore, Login, TlsFiles};
use longhand_session_log::wake::{WakeEvent, WakeWatch};
use longhand_session_log::{SessionStore as _, StoreError};

use crate::conformance::{PATIENCE, assert_err, claim, messages, running, session};
use crate::support::secure::{Authority, tls};
use crate::support::{Server, tool};

const PASSWORD: &str = "pass word";

/// An etcd with a plain address for its administrator and one that wants certificates signed by `ca`.
async fn server(dir: &Path) -> (Server, Authority) {
    let authority = Authority::new(dir, "ca");
    let own = authority.sign("etcd");
    let ca = dir.join("ca.crt");
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let flags = [
        ("--cert-file", path(&own.cert)),
        ("--key-file", path(&own.key)),
        ("--trusted-ca-file", path(&ca)),
        ("--client-cert-auth", "true".to_owned()),
    ];
    let flags = flags.map(|(flag, value)| format!("{flag}={value}"));
    (Server::start_with(false, true, &flags).await, authority)
}

/// The service may do everything under the prefix, the operator read the wake keys.
async fn enable_auth(server: &Server) {
    let client = etcd_client::Client::connect([server.endpoint()], None).await.unwrap();
    let mut auth = client.auth_client();
    for user in ["root", "service", "operator"] {
        auth.user_add(user, PASSWORD, None).await.unwrap();
        auth.role_add(user).await.unwrap();
        auth.user_grant_role(user, user).await.unwrap();
    }
    for (role, kind, keys) in
        [("service", PermissionType::Readwrite, "/longhand/"), ("operator", PermissionType::Read, "/longhand/wake/")]
    {
        auth.role_grant_permission(role, Permission::new(kind, keys).with_prefix()).await.unwrap();
    }
    auth.auth_enable().await.unwrap();
}

fn options(tls: TlsFiles) -> EtcdOptions {
    EtcdOptions { tls: Some(tls), timeout: Duration::from_secs(2), ..EtcdOptions::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_say_who_one_is() {
    let dir = tempfile::tempdir().unwrap();
    let (server, authority) = server(dir.path()).await;
    enable_auth(&server).await;
    let endpoint = server.secure_endpoint();
    let service = tls(dir.path(), "ca", Some(authority.sign("service")));
    let store = EtcdStore::connect(&[endpoint.clone()], options(service)).await.unwrap();
    let id = session(&store).await;
    let (epoch, head) = claim(&store, &id, "a").await;
    let mut tail = store.tail(&id, head).await.unwrap();
    store.append(&id, epoch, head, vec![running()]).await.unwrap();
    assert_eq!(tail.next().await.unwrap().unwrap().seq, head + 1);
    store.renew(&id, epoch).await.unwrap();

    let operator = options(tls(dir.path(), "ca", Some(authority.sign("operator"))));
    let watch = WakeWatch::connect(&[Endpoints(vec![endpoint.clone()])], &operator).await.unwrap();
    let mut events = watch.stream().boxed();
    assert_eq!(events.next().await, Some(WakeEvent::Snapshot(vec![])));
    store.enqueue(&id, messages(&["a"])).await.unwrap();
    assert!(matches!(events.next().await, Some(WakeEvent::Set(woken, _)) if woken == id));
    let nosy = EtcdStore::connect(&[endpoint.clone()], operator).await.unwrap();
    assert_err!(nosy.state(&id).await, StoreError::Unavailable(reason) if reason.contains("permission denied"));

    let nobody = options(tls(dir.path(), "ca", None));
    let nobody = EtcdStore::connect(&[endpoint], nobody).await.unwrap();
    assert_err!(nobody.ping().await, StoreError::Unavailable(_));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (server, authority) = server(dir.path()).await;
    let stranger = Authority::new(dir.path(), "stranger").sign("service");
    let files = tls(dir.path(), "ca", Some(stranger));
    let store = EtcdStore::connect(&[server.secure_endpoint()], options(files)).await.unwrap();
    assert_err!(store.ping().await, StoreError::Unavailable(_));
    authority.sign("service");
    // The first call may still meet the connection that was refused.
    let accepted = async { while store.ping().await.is_err() {} };
    tokio::time::timeout(PATIENCE, accepted).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_say_who_one_is_and_are_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = server(dir.path()).await;
    enable_auth(&server).await;
    let password_file = dir.path().join("password");
    std::fs::write(&password_file, "wrong").unwrap();
    let login = Some(Login { username: "service".to_owned(), password_file: password_file.clone() });
    let options = EtcdOptions { login, timeout: Duration::from_secs(2), ..EtcdOptions::default() };
    let store = EtcdStore::connect(&[server.endpoint()], options.clone()).await.unwrap();
    assert_err!(store.ping().await, StoreError::Unavailable(reason) if reason.contains("service"));
    std::fs::write(&password_file, format!("{PASSWORD}\n")).unwrap();
    let id = session(&store).await;

    let root = etcd_client::ConnectOptions::new().with_user("root", PASSWORD);
    let client = etcd_client::Client::connect([server.endpoint()], Some(root)).await.unwrap();
    client.auth_client().user_change_password("service", "another").await.unwrap();
    std::fs::write(&password_file, "another").unwrap();
    let changed = async {
        while store.append_unfenced(&id, messages(&["a"])).await.is_err() {}
        store.state(&id).await.unwrap()
    };
    assert!(tokio::time::timeout(PATIENCE, changed).await.unwrap().head > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_makes_the_users() {
    let dir = tempfile::tempdir().unwrap();
    let (server, authority) = server(dir.path()).await;
    let endpoint = server.secure_endpoint();
    let root = options(tls(dir.path(), "ca", Some(authority.sign("root"))));
    let store = EtcdStore::connect(&[endpoint.clone()], root).await.unwrap();
    let readers = ["operator".to_owned()];
    // At every start of every replica.
    tokio::try_join!(store.require_users(&readers), store.require_users(&readers)).unwrap();
    store.require_users(&readers).await.unwrap();
    let id = session(&store).await;

    let operator = options(tls(dir.path(), "ca", Some(authority.sign("operator"))));
    let watch = WakeWatch::connect(&[Endpoints(vec![endpoint.clone()])], &operator).await.unwrap();
    let mut events = watch.stream().boxed();
    assert_eq!(events.next().await, Some(WakeEvent::Snapshot(vec![])));
    store.enqueue(&id, messages(&["a"])).await.unwrap();
    assert!(matches!(events.next().await, Some(WakeEvent::Set(woken, _)) if woken == id));
    let nosy = EtcdStore::connect(&[endpoint.clone()], operator).await.unwrap();
    assert_err!(nosy.state(&id).await, StoreError::Unavailable(reason) if reason.contains("permission denied"));
    assert_err!(nosy.enqueue(&id, messages(&["b"])).await, StoreError::Unavailable(reason) if reason.contains("permission denied"));

    let stranger = options(tls(dir.path(), "ca", Some(authority.sign("stranger"))));
    let stranger = EtcdStore::connect(&[endpoint.clone()], stranger).await.unwrap();
    assert_err!(stranger.ping().await, StoreError::Unavailable(_));

    // As with any other client of etcd.
    let wake = format!("/longhand/wake/{id}");
    let (may, may_not) = (true, false);
    for (user, words, allowed) in [
        ("operator", &["get", "--prefix", "/longhand/wake/"][..], may),
        ("operator", &["get", &wake], may),
        ("operator", &["put", &wake, "x"], may_not),
        ("operator", &["del", &wake], may_not),
        ("operator", &["get", "--prefix", "/longhand/"], may_not),
        ("operator", &["get", "--prefix", "/longhand/meta/"], may_not),
        ("operator", &["get", "--prefix", "/longhand/log/"], may_not),
        ("operator", &["get", "--prefix", "/longhand/service/"], may_not),
        ("operator", &["get", "--from-key", "/longhand/wake/"], may_not),
        ("operator", &["compact", "1"], may_not),
        ("operator", &["user", "list"], may_not),
        ("operator", &["role", "grant-permission", "wake-reader", "read", "--prefix", ""], may_not),
        ("operator", &["auth", "disable"], may_not),
        ("stranger", &["get", &wake], may_not),
        ("root", &["get", "--prefix", "/longhand/"], may),
    ] {
        let output = etcdctl(dir.path(), user, &endpoint, words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), allowed, "{user} {words:?}: {said}");
        assert!(
            allowed || said.contains("permission denied") || said.contains("user name"),
            "{user} {words:?}: {said}"
        );
    }

    // What only root may do goes on.
    store.compact(store.revision().await.unwrap()).await.unwrap();
    assert_eq!(store.space().await.unwrap().members.len(), 1);
    store.defragment(&endpoint).await.unwrap();
    store.disarm().await.unwrap();
    // Nobody is root by saying so.
    let password_file = dir.path().join("password");
    std::fs::write(&password_file, "").unwrap();
    let login = Some(Login { username: "root".to_owned(), password_file });
    let claimed = EtcdOptions { login, timeout: Duration::from_secs(2), ..EtcdOptions::default() };
    let claimed = EtcdStore::connect(&[server.endpoint()], claimed).await.unwrap();
    assert_err!(claimed.ping().await, StoreError::Unavailable(_));
}

fn etcdctl(dir: &Path, user: &str, endpoint: &str, words: &[&str]) -> Output {
    let file = |name: String| dir.join(name).to_str().unwrap().to_owned();
    Command::new(tool("etcdctl"))
        .args(["--endpoints", endpoint, "--cacert", &file("ca.crt".to_owned())])
        .args(["--cert", &file(format!("{user}.crt")), "--key", &file(format!("{user}.key"))])
        .args(words)
        .output()
        .unwrap()
}
