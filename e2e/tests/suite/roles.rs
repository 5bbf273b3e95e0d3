//! The tables of docs/security.md against the cluster: each role may do what its rows say and nothing else that any row names, as
//! `kubectl auth can-i` would say; for an installation of the whole cluster, and for one of named namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
use kube::core::DynamicObject;
use longhand_e2e::cluster::{SYSTEM_NAMESPACE, TestNamespace, TestResult, eventually, helm, in_namespace};
use serde::Deserialize as _;

const PAGE: &str = include_str!("../../../docs/security.md");
const VERBS: [&str; 9] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "use"];
const BOUND: &str = "where it is bound";
const OWN: &str = "its own namespace";
const WATCHED: &str = "each of `watchNamespaces`";
const AT_ONCE: usize = 16;

/// A right: the group, the resource with its part, the object's name if only that one is meant, and the verb.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    group: String,
    resource: String,
    name: Option<String>,
    verb: String,
}

/// What each role may do, by where.
type Table = BTreeMap<(String, String), BTreeSet<Right>>;

/// The table that begins with this line.
fn table(begin: &str) -> TestResult<Table> {
    let rest = PAGE.split_once(begin).ok_or_else(|| format!("docs/security.md has no {begin}"))?.1;
    let rows = rest.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|')).skip(2);
    let mut table = Table::new();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [role, place, group, resources, verbs] = cells[..] else {
            return Err(format!("a row of another form: {row}").into());
        };
        let (resources, names) = match resources.split_once(" (") {
            Some((resources, names)) => (resources, Some(names.trim_end_matches(')').to_owned())),
            None => (resources, None),
        };
        let rights = table.entry((role.to_owned(), place.to_owned())).or_default();
        for (resource, verb) in
            resources.split(", ").flat_map(|resource| verbs.split(", ").map(move |verb| (resource, verb)))
        {
            let group = if group == "core" { "" } else { group };
            let (group, resource, verb) = (group.to_owned(), resource.to_owned(), verb.to_owned());
            rights.insert(Right { group, resource, name: names.clone(), verb });
        }
    }
    if table.len() < 5 { Err(format!("a table of {} roles", table.len()).into()) } else { Ok(table) }
}

fn rights(table: &Table, role: &str, place: &str) -> BTreeSet<Right> {
    table.get(&(role.to_owned(), place.to_owned())).cloned().unwrap_or_default()
}

/// Who is asked about.
#[derive(Clone, Debug)]
struct Subject {
    user: String,
    groups: Vec<String>,
}

impl Subject {
    fn account(namespace: &str, name: &str) -> Self {
        let group = |name: &str| name.to_owned();
        let groups = [
            group("system:serviceaccounts"),
            format!("system:serviceaccounts:{namespace}"),
            group("system:authenticated"),
        ];
        Self { user: format!("system:serviceaccount:{namespace}:{name}"), groups: groups.into() }
    }

    fn user(name: &str) -> Self {
        Self { user: name.to_owned(), groups: vec!["system:authenticated".to_owned()] }
    }
}

async fn may(client: &Client, subject: &Subject, namespace: &str, right: &Right) -> TestResult<bool> {
    let (resource, subresource) = match right.resource.split_once('/') {
        Some((resource, part)) => (resource, Some(part.to_owned())),
        None => (right.resource.as_str(), None),
    };
    let asked = ResourceAttributes {
        group: Some(right.group.clone()),
        resource: Some(resource.to_owned()),
        subresource,
        verb: Some(right.verb.clone()),
        namespace: Some(namespace.to_owned()),
        name: right.name.clone(),
        ..ResourceAttributes::default()
    };
    let spec = SubjectAccessReviewSpec {
        user: Some(subject.user.clone()),
        groups: Some(subject.groups.clone()),
        resource_attributes: Some(asked),
        ..SubjectAccessReviewSpec::default()
    };
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// In `namespace`, `subject` may do what is granted, and nothing else with anything that `all` names.
async fn assert_exactly(
    client: &Client,
    subject: &Subject,
    namespace: &str,
    granted: &BTreeSet<Right>,
    all: &BTreeSet<Right>,
) -> TestResult {
    let every = |right: &Right| VERBS.map(|verb| Right { verb: verb.to_owned(), ..right.clone() });
    // A name of its own is asked about too: a right to all objects of the kind is one to that.
    let asked: BTreeSet<Right> = all.iter().chain(granted).flat_map(every).collect();
    let expected = |right: &Right| granted.contains(right) || granted.contains(&Right { name: None, ..right.clone() });
    let wrong: Vec<String> = stream::iter(asked)
        .map(async |right| TestResult::Ok((may(client, subject, namespace, &right).await?, right)))
        .buffer_unordered(AT_ONCE)
        .try_filter_map(|(allowed, right)| {
            let wrong = (allowed != expected(&right)).then(|| format!("{allowed}: {right:?}"));
            async move { Ok(wrong) }
        })
        .try_collect()
        .await?;
    assert!(
        wrong.is_empty(),
        "{} in {namespace} is allowed otherwise than documented:\n{}",
        subject.user,
        wrong.join("\n")
    );
    Ok(())
}

#[tokio::test]
async fn every_role_may_do_what_the_table_says_and_nothing_else() {
    in_namespace("roles", |namespace| async move {
        let table = table("<!-- roles: written by hack/rbac-table -->")?;
        let all: BTreeSet<Right> = table.values().flatten().cloned().collect();
        // Whether the service may make Secrets is said by the installation's values.
        let secrets = |right: &Right| right.resource == "secrets" && right.verb == "create";
        for account in ["longhand-operator", "longhand-session"] {
            let subject = Subject::account(SYSTEM_NAMESPACE, account);
            let bound = rights(&table, account, BOUND);
            let at_home: BTreeSet<Right> = bound.union(&rights(&table, account, OWN)).cloned().collect();
            for (place, granted) in [(namespace.name.as_str(), &bound), (SYSTEM_NAMESPACE, &at_home)] {
                let mut granted = granted.clone();
                for right in all.iter().filter(|right| account == "longhand-session" && secrets(right)) {
                    if may(&namespace.client, &subject, place, right).await? {
                        granted.insert(right.clone());
                    }
                }
                assert_exactly(&namespace.client, &subject, place, &granted, &all).await?;
            }
        }
        for role in ["longhand-view", "longhand-edit", "longhand-worker", "longhand-session-secrets"] {
            let user = format!("{role}-{}", namespace.name);
            namespace
                .apply(&format!(
                    "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {{name: {role}}}\n\
                 roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {role}}}\n\
                 subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: {user}}}]\n"
                ))
                .await?;
            let (subject, granted) = (Subject::user(&user), rights(&table, role, BOUND));
            assert!(!granted.is_empty(), "no row of {role}");
            settled(&namespace.client, &subject, &namespace.name, &granted).await?;
            assert_exactly(&namespace.client, &subject, &namespace.name, &granted, &all).await?;
            assert_exactly(&namespace.client, &subject, SYSTEM_NAMESPACE, &BTreeSet::new(), &all).await?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn an_installation_of_named_namespaces_may_do_nothing_elsewhere() {
    in_namespace("roles-home", |home| async move {
        let watched = TestNamespace::create(home.client.clone(), "roles-watched").await?;
        let outcome = confined(&home, &watched).await;
        watched.delete().await;
        outcome
    })
    .await;
}

async fn confined(home: &TestNamespace, watched: &TestNamespace) -> TestResult {
    let release = home.name.as_str();
    for object in rendered(release, home, watched).await? {
        let place = object.metadata.namespace.clone().unwrap_or_default();
        let namespace = [home, watched].into_iter().find(|namespace| namespace.name == place);
        let kind = object.types.as_ref().map(|types| types.kind.clone()).unwrap_or_default();
        assert!(!kind.starts_with("Cluster"), "{kind} although nothing of the cluster was wanted");
        namespace.ok_or_else(|| format!("{kind} in {place:?}"))?.apply_object(&object).await?;
    }
    let table = table("<!-- roles by namespace: written by hack/rbac-table -->")?;
    let all: BTreeSet<Right> = table.values().flatten().cloned().collect();
    for (component, more) in [("operator", None), ("session", Some("longhand-session-secrets"))] {
        let subject = Subject::account(&home.name, &format!("{release}-{component}"));
        let mut there = rights(&table, &format!("longhand-{component}-watched"), WATCHED);
        there.extend(more.iter().flat_map(|role| rights(&table, role, WATCHED)));
        let named = |right: Right| match right.resource.as_str() {
            "deployments" => Right { name: Some(format!("{release}-{component}")), ..right },
            _ => right,
        };
        let own: BTreeSet<Right> =
            rights(&table, &format!("longhand-{component}"), OWN).into_iter().map(named).collect();
        assert!(!there.is_empty() && !own.is_empty(), "no rows of {component}");
        settled(&home.client, &subject, &watched.name, &there).await?;
        settled(&home.client, &subject, &home.name, &own).await?;
        assert_exactly(&home.client, &subject, &watched.name, &there, &all).await?;
        assert_exactly(&home.client, &subject, &home.name, &own, &all).await?;
        assert_exactly(&home.client, &subject, SYSTEM_NAMESPACE, &BTreeSet::new(), &all).await?;
    }
    Ok(())
}

/// The API server's authorizer sees a new binding a moment after it was made.
async fn settled(client: &Client, subject: &Subject, namespace: &str, granted: &BTreeSet<Right>) -> TestResult {
    for right in granted {
        let asked = async || Ok(may(client, subject, namespace, right).await?.then_some(()));
        eventually(&format!("{right:?} takes effect"), Duration::from_secs(15), asked).await?;
    }
    Ok(())
}

/// The accounts and roles of an installation in `home` that serves `watched`, without an object of the cluster.
async fn rendered(release: &str, home: &TestNamespace, watched: &TestNamespace) -> TestResult<Vec<DynamicObject>> {
    let values =
        format!("watchNamespaces={{{0}}},session.secretNamespaces={{{0}}},rbac.clusterScoped=false", watched.name);
    let only = ["-s", "templates/serviceaccounts.yaml", "-s", "templates/rbac-[os]*.yaml"];
    let render = ["template", release, "charts/longhand", "-n", &home.name, "--set", &values];
    let documents = helm(&[&render[..], &only].concat()).await?;
    let objects = serde_yaml::Deserializer::from_str(&documents).map(serde_yaml::Value::deserialize);
    let objects = objects.filter(|document| document.as_ref().map_or(true, |document| !document.is_null()));
    objects.map(|document| Ok(serde_yaml::from_value(document?)?)).collect()
}
