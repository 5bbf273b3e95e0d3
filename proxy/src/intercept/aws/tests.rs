//! What is taken for a signature with the session's keys, and what they sign.

use std::path::PathBuf;

use http::Method;
use rstest::rstest;

use super::{Claim, take};
use crate::{
    config::{AwsKeys, Binding, BindingPlacement},
    hosts::HostPattern,
    intercept::judge::{Asked, Candidate, Denial, judge},
    policy::{Host, Rule, Scheme},
};

const ONE: &str = "lhp_E85lv-r9mTODgSjNknpv6sYoG4HvyRaA3gKloTDAnJQ";
const HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn binding() -> Binding {
    Binding {
        vault: "v".to_owned(),
        name: "aws".to_owned(),
        file: PathBuf::from("/none"),
        placement: BindingPlacement::Aws(AwsKeys {
            access_key_id_file: PathBuf::from("/none"),
            session_token_file: None,
            services: ["s3", "ecr", "sts", "iam", "codeartifact"].map(ToOwned::to_owned).to_vec(),
            regions: vec!["eu-west-1".to_owned()],
        }),
        rule: Rule {
            scheme: Scheme::Https,
            hosts: vec![HostPattern::parse("*.amazonaws.com").unwrap()],
            port: 443,
            methods: vec![Method::GET, Method::POST],
            path_prefixes: vec![],
            allow_private: false,
        },
        kept_in: None,
    }
}

/// What a request to `url` with these headers may have.
fn judged(url: &str, headers: &[(&str, &str)]) -> Result<Option<Claim>, Denial> {
    let binding = binding();
    let candidates = [Candidate { placeholder: ONE, binding: &binding }];
    let mut map = http::HeaderMap::new();
    for (name, value) in headers {
        map.append(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
    }
    let (host, path) = url.split_once('/').unwrap();
    let path = format!("/{path}");
    let (path, query) = path.split_once('?').map_or((path.as_str(), None), |(path, query)| (path, Some(query)));
    let claim = take(&mut map, &candidates)?;
    let asked = Asked {
        scheme: Scheme::Https,
        host: &Host::parse(host).unwrap(),
        port: 443,
        private: false,
        open: false,
        method: &Method::GET,
        path,
        query,
        headers: &map,
        signing: claim.as_ref(),
    };
    let allowed = judge(&asked, &candidates)?;
    assert_eq!(allowed.used, claim.iter().map(|claim| claim.number).collect::<Vec<_>>());
    assert!(claim.is_none() || !map.contains_key("authorization") && !map.contains_key("x-amz-date"));
    Ok(claim)
}

fn signed(key: &str, scope: &str) -> String {
    format!("AWS4-HMAC-SHA256 Credential={key}/20260101/{scope}/aws4_request, SignedHeaders=host, Signature={HASH}")
}

fn outcome(url: &str, headers: &[(&str, &str)]) -> String {
    match judged(url, headers) {
        Ok(Some(claim)) => format!("{} {} {:?}", claim.service, claim.region, claim.payload.is_some()),
        Ok(None) => "not signed".to_owned(),
        Err(denial) => denial.to_string(),
    }
}

#[rstest]
#[case("b.s3.eu-west-1.amazonaws.com/k?list-type=2&continuation-token=x", "eu-west-1/s3", "s3 eu-west-1 true")]
#[case("b.s3.eu-west-1.amazonaws.com/oauth/token", "eu-west-1/s3", "s3 eu-west-1 true")]
#[case("b.s3.eu-west-1.amazonaws.com/a//b", "eu-west-1/s3", "s3 eu-west-1 true")]
#[case("s3.amazonaws.com/k", "us-east-1/s3", "regions eu-west-1 only")]
#[case("lambda.eu-west-1.amazonaws.com/k", "eu-west-1/lambda", "services s3, ecr, sts, iam, codeartifact only")]
#[case("sts.eu-west-1.amazonaws.com/", "eu-west-1/sts", "a security token service")]
#[case("sts-fips.eu-west-1.amazonaws.com/", "eu-west-1/s3", "a security token service")]
#[case("iam.amazonaws.com/", "eu-west-1/iam", "hands out keys")]
#[case("b.s3express-euw1-az1.eu-west-1.amazonaws.com/?session", "eu-west-1/s3", "makes keys for a bucket")]
#[case("b.s3express-euw1-az1.eu-west-1.amazonaws.com/?%73ession", "eu-west-1/s3", "makes keys for a bucket")]
#[case("b.s3express-euw1-az1.eu-west-1.amazonaws.com/?a=b&%2573ession=", "eu-west-1/s3", "makes keys for a bucket")]
#[case("b.s3express-euw1-az1.eu-west-1.amazonaws.com/?sessions", "eu-west-1/s3", "s3 eu-west-1 true")]
#[case(
    "1.s3-control.eu-west-1.amazonaws.com/v20180820/accessgrantsinstance/dataaccess",
    "eu-west-1/s3",
    "makes keys for"
)]
#[case(
    "1.s3-control.eu-west-1.amazonaws.com/v20180820/accessgrantsinstance/data%61ccess/",
    "eu-west-1/s3",
    "makes keys for"
)]
#[case(
    "d.codeartifact.eu-west-1.amazonaws.com/v1/authorization-token",
    "eu-west-1/codeartifact",
    "tokens for registries"
)]
#[case(
    "d.codeartifact.eu-west-1.amazonaws.com/v1/authorization%2Dtoken",
    "eu-west-1/codeartifact",
    "tokens for registries"
)]
#[case("api.ecr.eu-west-1.amazonaws.com/?Action=GetAuthorizationToken", "eu-west-1/ecr", "it makes tokens")]
#[case("api.ecr.eu-west-1.amazonaws.com/?%41ction=GetAuthorization%54oken", "eu-west-1/ecr", "it makes tokens")]
#[case(
    "api.ecr.eu-west-1.amazonaws.com/service/Ecr/operation/GetAuthorization%54oken",
    "eu-west-1/ecr",
    "it makes tokens"
)]
#[case("api.ecr.eu-west-1.amazonaws.com/service/Ecr/operation/ListImages", "eu-west-1/ecr", "ecr eu-west-1 true")]
#[case("evil.example/k", "eu-west-1/s3", "it allows hosts *.amazonaws.com only")]
#[case("b.s3.eu-west-1.amazonaws.com/a/../b", "eu-west-1/s3", "dot segment")]
fn what_the_keys_sign(#[case] url: &str, #[case] scope: &str, #[case] expected: &str) {
    let headers = [("authorization", &*signed(ONE, scope)), ("x-amz-content-sha256", HASH), ("x-amz-date", "x")];
    let outcome = outcome(url, &headers);
    assert!(outcome.contains(expected), "{outcome}");
}

#[test]
fn an_operation_that_makes_tokens_is_refused() {
    let signed = signed(ONE, "eu-west-1/ecr");
    let target = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
    let outcome = outcome("api.ecr.eu-west-1.amazonaws.com/", &[("authorization", &signed), ("x-amz-target", target)]);
    assert!(outcome.contains("it makes tokens"), "{outcome}");
}

#[test]
fn two_operations_are_none() {
    let signed = signed(ONE, "eu-west-1/ecr");
    let [harmless, minting] =
        ["ListImages", "GetAuthorizationToken"].map(|name| format!("AmazonEC2ContainerRegistry_V20150921.{name}"));
    let host = "api.ecr.eu-west-1.amazonaws.com/";
    for targets in [[&harmless, &minting], [&minting, &harmless], [&harmless, &harmless]] {
        let [one, two] = targets.map(|target| ("x-amz-target", target.as_str()));
        let outcome = outcome(host, &[("authorization", &signed), one, two]);
        assert!(outcome.contains("more than one operation"), "{outcome}");
    }
    assert_eq!(outcome(host, &[("authorization", &signed), ("x-amz-target", &harmless)]), "ecr eu-west-1 false");
}

#[rstest]
#[case(None, "s3 eu-west-1 false")]
#[case(Some(HASH), "s3 eu-west-1 true")]
#[case(Some("UNSIGNED-PAYLOAD"), "s3 eu-west-1 true")]
#[case(Some("STREAMING-UNSIGNED-PAYLOAD-TRAILER"), "s3 eu-west-1 true")]
#[case(Some("STREAMING-AWS4-HMAC-SHA256-PAYLOAD"), "signed one by one")]
#[case(Some("STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"), "signed one by one")]
#[case(Some("abc"), "is not the SHA-256 of a body")]
fn what_stands_for_the_body(#[case] payload: Option<&str>, #[case] expected: &str) {
    let signed = signed(ONE, "eu-west-1/s3");
    let mut headers = vec![("authorization", signed.as_str())];
    headers.extend(payload.map(|payload| ("x-amz-content-sha256", payload)));
    let outcome = outcome("b.s3.eu-west-1.amazonaws.com/k", &headers);
    assert!(outcome.contains(expected), "{outcome}");
}

#[rstest]
// Somebody else's keys, with which data would go out.
#[case(&signed("AKIAIOSFODNN7EXAMPLE", "eu-west-1/s3"), "none of this session's (authorization)")]
#[case(&signed("lhp_F85lv-r9mTODgSjNknpv6sYoG4HvyRaA3gKloTDAnJQ", "eu-west-1/s3"), "stands for no credential")]
#[case(&signed(&format!("{ONE}x"), "eu-west-1/s3"), "stands for no credential")]
// The placeholder where no key id is.
#[case(&format!("Bearer {ONE}"), "good only as the access key id")]
#[case(&signed(ONE, "eu-west-1/s3").replace("HMAC-SHA256", "ECDSA-P256-SHA256"), "good only as the access key id")]
#[case(&signed(ONE, "eu-west-1/s3/x"), "good only as the access key id")]
#[case(&signed(ONE, "eu-west-1/s 3"), "good only as the access key id")]
#[case(&format!("{}, Credential=AKIAIOSFODNN7EXAMPLE/2/eu-west-1/s3/aws4_request", signed(ONE, "eu-west-1/s3")), "good only as")]
fn what_is_no_signature_with_the_keys(#[case] authorization: &str, #[case] expected: &str) {
    let outcome = outcome("b.s3.eu-west-1.amazonaws.com/k", &[("authorization", authorization)]);
    assert!(outcome.contains(expected), "{outcome}");
}

#[test]
fn nothing_else_of_a_signature_passes() {
    let signed = signed(ONE, "eu-west-1/s3");
    let host = "b.s3.eu-west-1.amazonaws.com";
    let twice = outcome(&format!("{host}/k"), &[("authorization", &signed), ("authorization", "Bearer x")]);
    assert!(twice.contains("good only as"), "{twice}");
    let token = outcome(&format!("{host}/k"), &[("authorization", &signed), ("x-amz-security-token", "attacker")]);
    assert!(token.contains("x-amz-security-token"), "{token}");
    let query =
        format!("{host}/k?X-Amz-Credential={ONE}%2F20260101%2Feu-west-1%2Fs3%2Faws4_request&X-Amz-Signature={HASH}");
    let presigned = outcome(&query, &[]);
    assert!(presigned.contains("presigned URLs"), "{presigned}");
    assert_eq!(outcome(&format!("{host}/public"), &[]), "not signed");
}
