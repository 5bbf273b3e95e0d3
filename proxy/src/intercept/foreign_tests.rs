//! Names and values of credentials, and what programs send that are none.

use rstest::rstest;

use super::*;

#[rstest]
#[case("authorization", true)]
#[case("proxy-authorization", true)]
#[case("x-api-key", true)]
#[case("api-key", true)]
#[case("apikey", true)]
#[case("private-token", true)]
#[case("job-token", true)]
#[case("x-auth-token", true)]
#[case("x-amz-security-token", true)]
#[case("x-goog-api-key", true)]
#[case("dd-application-key", true)]
#[case("ocp-apim-subscription-key", true)]
// One harmless word clears nothing.
#[case("x-npm-token", true)]
#[case("x-next-token-secret", true)]
#[case("x-page-password", true)]
#[case("x-websocket-authorization", true)]
#[case("csrf-access-token", true)]
// Keys of makers that nobody knows.
#[case("x-rapidapi-key", true)]
#[case("x-typesense-api-key", true)]
#[case("x-some-vendor-key", true)]
#[case("x-funkey", true)]
#[case("x-key", true)]
#[case("x-csrf-token", false)]
#[case("npm-session", false)]
#[case("mcp-session-id", false)]
#[case("npm-auth-type", false)]
#[case("sec-websocket-key", false)]
#[case("idempotency-key", false)]
#[case("x-idempotency-key", false)]
#[case("x-amz-server-side-encryption-customer-key", false)]
#[case("x-amz-server-side-encryption-aws-kms-key-id", false)]
#[case("x-amz-content-sha256", false)]
fn header_names(#[case] name: HeaderName, #[case] expected: bool) {
    assert_eq!(is_credential_header(&name), expected);
}

#[rstest]
#[case("x-foo", "ghp_0123456789abcdef0123456789abcdef0123", true)]
#[case("x-foo", "prefix=AKIAIOSFODNN7EXAMPLE; more", true)]
#[case("x-foo", "Bearer anything", true)]
#[case("x-foo", "token anything", true)]
#[case("user-agent", "glpat-0123456789abcdef0123", true)]
#[case("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.c2VjcmV0", true)]
#[case("sec-websocket-protocol", "v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0", true)]
#[case("sec-websocket-protocol", "realtime, openai-insecure-api-key.anything", true)]
#[case("sec-websocket-protocol", "header-0123456789abcdef0123456789abcdef01234567", true)]
#[case("sec-websocket-protocol", "v5.channel.k8s.io, graphql-transport-ws, openai-beta.realtime-v1", false)]
#[case("x-foo", "bar", false)]
fn header_values(#[case] name: HeaderName, #[case] value: &str, #[case] expected: bool) {
    assert_eq!(carries_credential(&name, value.as_bytes()), expected);
}

/// What programs send, beside their credentials.
#[rstest]
#[case::curl(&[("user-agent", "curl/8.5.0"), ("accept", "*/*"), ("content-type", "application/x-www-form-urlencoded")])]
#[case::git(&[
    ("user-agent", "git/2.43.0"), ("accept", "application/x-git-upload-pack-result"), ("accept-language", "sk-SK, *;q=0.9"),
    ("content-type", "application/x-git-upload-pack-request"), ("git-protocol", "version=2"), ("pragma", "no-cache"),
])]
#[case::git_lfs(&[
    ("user-agent", "git-lfs/3.4.1 (GitHub; linux amd64; go 1.22.2)"), ("accept", "application/vnd.git-lfs+json"),
    ("content-type", "application/vnd.git-lfs+json; charset=utf-8"),
])]
#[case::pip(&[
    ("user-agent", r#"pip/24.0 {"ci":null,"cpu":"x86_64","distro":{"id":"noble","libc":{"lib":"glibc","version":"2.39"}},"openssl_version":"OpenSSL 3.0.13","python":"3.12.3"}"#),
    ("accept", "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html; q=0.1, text/html; q=0.01"),
    ("cache-control", "max-age=0"), ("if-none-match", "\"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\""),
])]
#[case::npm(&[
    ("user-agent", "npm/10.8.2 node/v20.19.0 linux x64 workspaces/false ci/github-actions"), ("npm-auth-type", "web"),
    ("npm-command", "install"), ("npm-scope", "@team"), ("npm-session", "0123456789abcdef0123456789abcdef"),
    ("npm-in-ci", "true"), ("pacote-version", "18.0.6"), ("pacote-req-type", "packument"), ("pacote-pkg-id", "registry:demo"),
    ("pacote-integrity", "sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg=="),
    ("accept", "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*"),
])]
#[case::cargo(&[
    ("user-agent", "cargo/1.95.0 (f2d3ce0bd 2026-03-21)"), ("cargo-protocol", "version=1"), ("accept", "text/plain"),
    ("if-modified-since", "Wed, 21 Oct 2026 07:28:00 GMT"),
])]
#[case::docker(&[
    ("user-agent", "docker/27.0.3 go/go1.21.11 git-commit/662f78c kernel/6.8.0 os/linux arch/amd64 UpstreamClient(Docker-Client/27.0.3 \\(linux\\))"),
    ("accept", "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json, */*"),
    ("docker-distribution-api-version", "registry/2.0"), ("content-range", "0-1023"), ("x-meta-source-client", "containerd"),
])]
#[case::go_maven_gradle(&[
    ("user-agent", "Go-http-client/1.1"), ("cache-store", "no-store"), ("expires", "0"), ("x-checksum-sha1", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
    ("user-agent", "Gradle/8.7 (Linux;6.8.0;amd64) (Ubuntu;21.0.3;21.0.3+9)"),
])]
#[case::kubectl(&[
    ("user-agent", "kubectl/v1.31.0 (linux/amd64) kubernetes/9edcffc"), ("kubectl-command", "kubectl get"),
    ("kubectl-session", "7b3c1c1c-9c5c-4d6e-8f60-2f9c7a1f0d11"), ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io"),
    ("x-stream-protocol-version", "v5.channel.k8s.io"), ("sec-websocket-protocol", "v5.channel.k8s.io"),
])]
#[case::browser(&[
    ("accept-language", "en-GB,en;q=0.9,sk-SK;q=0.8"), ("sec-ch-ua", "\"Chromium\";v=\"128\", \"Not;A=Brand\";v=\"24\""),
    ("sec-ch-ua-mobile", "?0"), ("sec-ch-ua-platform", "\"Linux\""), ("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors"),
    ("sec-fetch-dest", "empty"), ("sec-gpc", "1"), ("upgrade-insecure-requests", "1"), ("dnt", "1"), ("priority", "u=1, i"),
    ("origin", "https://git.example"), ("referer", "https://git.example/a/b?tab=readme"), ("x-requested-with", "XMLHttpRequest"),
    ("access-control-request-headers", "authorization,content-type"), ("access-control-request-method", "POST"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="), ("sec-websocket-version", "13"), ("x-csrf-token", "abc"),
])]
#[case::apis(&[
    ("x-github-api-version", "2022-11-28"), ("x-github-next-global-id", "1"), ("idempotency-key", "7b3c1c1c-9c5c-4d6e-8f60-2f9c7a1f0d11"),
    ("openai-organization", "org-0123456789abcdef"), ("openai-beta", "assistants=v2"), ("anthropic-version", "2023-06-01"),
    ("x-stainless-lang", "python"), ("x-stainless-retry-count", "0"), ("mcp-session-id", "7b3c1c1c9c5c4d6e8f602f9c7a1f0d11"),
    ("mcp-protocol-version", "2025-06-18"), ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("tracestate", "rojo=00f067aa0ba902b7"), ("baggage", "sentry-environment=production,sentry-public_key=0123456789abcdef0123456789abcdef"),
    ("grpc-timeout", "10S"), ("x-goog-request-params", "location=asia-northeast1-a"), ("x-goog-user-project", "p"),
    ("x-goog-api-client", "gl-python/3.12 grpc/1.60"), ("x-ms-version", "2024-05-04"), ("x-ms-client-request-id", "7b3c1c1c"),
    ("x-ms-blob-type", "BlockBlob"),
])]
#[case::aws(&[
    ("amz-sdk-invocation-id", "7b3c1c1c-9c5c-4d6e-8f60-2f9c7a1f0d11"), ("amz-sdk-request", "attempt=1"),
    ("x-amz-content-sha256", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"), ("x-amz-date", "20260101T000000Z"),
    ("x-amz-target", "DynamoDB_20120810.GetItem"), ("x-amz-checksum-crc32", "AAAAAA=="), ("x-amz-sdk-checksum-algorithm", "CRC32"),
    ("x-amz-server-side-encryption-aws-kms-key-id", "7b3c1c1c"), ("x-amz-trailer", "x-amz-checksum-crc32"),
])]
fn what_programs_send(#[case] headers: &[(&str, &str)]) {
    for (name, value) in headers {
        let name: HeaderName = name.parse().unwrap();
        assert!(!carries_credential(&name, value.as_bytes()), "{name}: {value}");
    }
}

#[rstest]
#[case("theme=dark", None)]
#[case("theme=dark; user_session=x", Some("user_session"))]
#[case("PHPSESSID=1", Some("PHPSESSID"))]
#[case("sid=1", Some("sid"))]
#[case("accessToken=1", Some("accessToken"))]
#[case("__Secure-next-auth.session-token=1", Some("next-auth.session-token"))]
#[case("next-auth.session-token=1", Some("next-auth.session-token"))]
#[case("__Host-next-auth.csrf-token=1", Some("next-auth.csrf-token"))]
#[case("npm_token=1", Some("npm_token"))]
#[case("websocket_session=1", Some("websocket_session"))]
#[case("csrftoken=1; XSRF-TOKEN=2; __Host-csrf_token=3", None)]
fn cookies(#[case] value: &str, #[case] expected: Option<&str>) {
    assert_eq!(credential_cookie(value.as_bytes()).as_deref(), expected);
}

#[rstest]
#[case("q=token", None)]
#[case("access_token=x", Some("access_token"))]
#[case("access%5Ftoken=x", Some("access_token"))]
#[case("access%255Ftoken=x", Some("access_token"))]
#[case("a=b&X-Amz-Signature=x", Some("X-Amz-Signature"))]
#[case("a=b;api_key=x", Some("api_key"))]
#[case("access_token=lhp_E85lv-r9mTODgSjNknpv6sYoG4HvyRaA3gKloTDAnJQ", None)]
#[case("page_token=x", None)]
#[case("nextToken=x", None)]
#[case("next-token=x", None)]
#[case("continuation-token=x", None)]
#[case("next_access_token=x", Some("next_access_token"))]
#[case("rapidapi-key=x", Some("rapidapi-key"))]
#[case("projectKey=A&spaceKey=B&start_key=c&partition-key=d", None)]
#[case("key=name", None)]
#[case("key=AIza0123456789abcdef", Some("key"))]
#[case("q=ghp_0123456789abcdef0123456789abcdef0123", Some("q"))]
#[case("q=ghp%5F0123456789abcdef0123456789abcdef0123", Some("q"))]
#[case("ghp_0123456789abcdef0123456789abcdef0123", Some(""))]
#[case("cursor=eyJpZCI6MTIzNDU2Nzg5MCwib3JkZXIiOiJhc2MifQ", None)]
#[case("session=x", Some("session"))]
#[case("access_token=", None)]
fn parameters(#[case] query: &str, #[case] expected: Option<&str>) {
    assert_eq!(credential_parameter(query, false).as_deref(), expected);
}
