//! Whether nodes give pods user IDs of their own: asked of the API server, when a template leaves it to them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use longhand_crds::SandboxTemplate;
use longhand_crds::sandbox_template::UserNamespace;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::calls::call;
use crate::conditions::Observation;

/// Whether pods get user IDs of their own, of a template that leaves it to its nodes.
pub const USER_NAMESPACES: &str = "UserNamespaces";
/// What nodes say is asked again after this long.
pub const KNOWN_FOR: Duration = Duration::from_secs(300);
/// The same, when it could not be had.
const AGAIN: Duration = Duration::from_secs(30);
/// So long a reconcile waits for it.
const DEADLINE: Duration = Duration::from_secs(10);
/// A node says much of itself, of which little is kept.
const PAGE: u32 = 100;
/// Nodes that are looked at; what more there are is taken as not able.
const MAX_PAGES: usize = 100;

/// What the nodes of the cluster are able to, as far as it was asked.
pub struct Nodes {
    client: Client,
    known: Mutex<Option<Known>>,
}

/// What they said, or why that is not known, and until when it is not asked again.
struct Known {
    until: Instant,
    answer: Answer,
}

type Answer = Result<Arc<[NodeView]>, String>;

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NodeView {
    name: String,
    labels: BTreeMap<String, String>,
    /// Whether the default handler of its container runtime gives pods user IDs of their own, and its kernel too.
    able: bool,
}

impl NodeView {
    fn of(node: &Node) -> Self {
        let handlers = node.status.iter().flat_map(|status| status.runtime_handlers.iter().flatten());
        let mut default = handlers.filter(|handler| handler.name.as_deref().unwrap_or_default().is_empty());
        let features = default.next().and_then(|handler| handler.features.as_ref());
        let able = features.and_then(|features| features.user_namespaces) == Some(true);
        Self { name: node.name_any(), labels: node.labels().clone(), able }
    }
}

impl Nodes {
    /// Nothing is asked before somebody wants to know.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, known: Mutex::default() }
    }

    /// The template with what it leaves to its nodes decided, and what is to be said of that; the same template if it leaves nothing
    /// to them.
    pub async fn decide(&self, mut template: SandboxTemplate) -> (SandboxTemplate, Option<Observation>) {
        if template.spec.user_namespace != UserNamespace::Auto {
            return (template, None);
        }
        let (able, seen) = judge(&self.answer().await, &template.spec.node_selector);
        template.spec.user_namespace = if able { UserNamespace::Pod } else { UserNamespace::Host };
        (template, Some(seen))
    }

    /// Who comes while it is asked waits for the same answer.
    async fn answer(&self) -> Answer {
        let mut known = self.known.lock().await;
        if let Some(known) = known.as_ref().filter(|known| Instant::now() < known.until) {
            return known.answer.clone();
        }
        let listed = timeout(DEADLINE, self.list()).await;
        let listed = listed.unwrap_or_else(|_| Err(format!("they were not listed within {} s", DEADLINE.as_secs())));
        let pause = if listed.is_ok() { KNOWN_FOR } else { AGAIN };
        let answer = match (listed, known.take()) {
            // Nodes seldom change, and another answer replaces every pod of a pool.
            (Err(why), Some(Known { answer: Ok(before), .. })) => {
                tracing::warn!(why, "nodes cannot be listed: what they said before counts");
                Ok(before)
            }
            (listed, _) => listed,
        };
        *known = Some(Known { until: Instant::now() + pause, answer: answer.clone() });
        answer
    }

    async fn list(&self) -> Answer {
        let api: Api<Node> = Api::all(self.client.clone());
        let (mut nodes, mut params) = (Vec::new(), ListParams::default().limit(PAGE));
        for _ in 0..MAX_PAGES {
            let page = call(|| "list nodes".to_owned(), api.list(&params)).await.map_err(|error| error.to_string())?;
            nodes.extend(page.items.iter().filter(|node| is_ready(node) || has_spoken(node)).map(NodeView::of));
            match page.metadata.continue_.filter(|next| !next.is_empty()) {
                Some(next) => params = ListParams::default().limit(PAGE).continue_token(&next),
                None => return Ok(nodes.into()),
            }
        }
        Err(format!("there are more than {} nodes", MAX_PAGES * PAGE as usize))
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|condition| condition.type_ == "Ready").all(|condition| condition.status == "True")
}

/// Whether it says what it is able to: one that has just joined does not yet.
fn has_spoken(node: &Node) -> bool {
    node.status.as_ref().is_some_and(|status| status.runtime_handlers.is_some())
}

/// Whether every node that has the labels of `selector` is able, and what is to be said of it.
fn judge(answer: &Answer, selector: &BTreeMap<String, String>) -> (bool, Observation) {
    let nodes = match answer {
        Ok(nodes) => nodes,
        Err(why) => {
            let text = format!("pods have the user IDs of their nodes, as it is not known what these support: {why}");
            return (false, Observation::unknown(USER_NAMESPACES, "NodesUnknown", text));
        }
    };
    let fits = |node: &&NodeView| selector.iter().all(|(key, value)| node.labels.get(key) == Some(value));
    let fitting: Vec<&NodeView> = nodes.iter().filter(fits).collect();
    let no = |reason: &str, text: String| (false, Observation::no(USER_NAMESPACES, reason, text));
    match fitting.iter().find(|node| !node.able) {
        _ if fitting.is_empty() => no("NoNode", "no node has the labels of spec.nodeSelector".to_owned()),
        Some(node) => no(
            "NodeWithoutSupport",
            format!("pods have the user IDs of their nodes, as node {} does not support others", node.name),
        ),
        None => {
            let text = "pods have user IDs of their own, as all nodes that they may go to support it";
            (true, Observation::yes(USER_NAMESPACES, "Supported", text))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use longhand_crds::sandbox_template::UserNamespace;
    use rstest::rstest;
    use serde_json::{Value, json};
    use tokio::time::Instant;

    use super::{AGAIN, NodeView, Nodes, judge};
    use crate::fixtures;
    use crate::testing::context;

    const NODES: &str = "/api/v1/nodes";

    fn node(name: &str, handlers: &Value) -> Value {
        json!({ "metadata": { "name": name, "labels": { "pool": name } }, "status": { "runtimeHandlers": handlers } })
    }

    fn able() -> Value {
        json!([{ "name": "runsc", "features": {} }, { "name": "", "features": { "userNamespaces": true } }])
    }

    fn refused() -> Value {
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403, "message": "no" })
    }

    fn view(value: Value) -> NodeView {
        NodeView::of(&serde_json::from_value(value).unwrap())
    }

    #[rstest]
    #[case::says_so(able(), true)]
    #[case::without_a_name(json!([{ "features": { "userNamespaces": true } }]), true)]
    #[case::another_handler(json!([{ "name": "runsc", "features": { "userNamespaces": true } }]), false)]
    #[case::no(json!([{ "name": "", "features": { "userNamespaces": false } }]), false)]
    #[case::an_older_kubelet(Value::Null, false)]
    fn a_node_says_what_it_supports(#[case] handlers: Value, #[case] expected: bool) {
        assert_eq!(view(node("a", &handlers)).able, expected);
    }

    #[rstest]
    #[case::all(&["able"], None, true, "Supported")]
    #[case::one_is_not(&["able", "old"], None, false, "NodeWithoutSupport")]
    #[case::one_that_is_not_meant(&["able", "old"], Some("able"), true, "Supported")]
    #[case::nowhere(&["able"], Some("other"), false, "NoNode")]
    #[case::no_node_at_all(&[], None, false, "NoNode")]
    fn every_node_that_pods_may_go_to_has_to(
        #[case] names: &[&str],
        #[case] pool: Option<&str>,
        #[case] expected: bool,
        #[case] reason: &str,
    ) {
        let handlers = |name: &str| if name == "able" { able() } else { Value::Null };
        let nodes = names.iter().map(|name| view(node(name, &handlers(name)))).collect();
        let selector: BTreeMap<String, String> =
            pool.map(|pool| ("pool".to_owned(), pool.to_owned())).into_iter().collect();
        let (able, seen) = judge(&Ok(nodes), &selector);
        assert_eq!((able, seen.reason.as_str()), (expected, reason), "{}", seen.message);
    }

    #[tokio::test]
    async fn nodes_are_asked_only_for_a_template_that_wants_it_and_rarely() {
        let (context, server) = context();
        let list = |items: Vec<Value>, next: &str| json!({ "metadata": { "continue": next }, "items": items });
        let mut joining = node("c", &Value::Null);
        joining["status"] = json!({ "conditions": [{ "type": "Ready", "status": "False" }] });
        let server = server.expect([
            ("GET", NODES, 200, list(vec![node("a", &able())], "more")),
            ("GET", NODES, 200, list(vec![node("b", &able()), joining], "")),
            ("GET", NODES, 403, refused()),
        ]);
        let nodes = Nodes::new(context.client.clone());
        let mut template = fixtures::template();
        for fixed in [UserNamespace::Host, UserNamespace::Pod] {
            template.spec.user_namespace = fixed;
            let (decided, seen) = nodes.decide(template.clone()).await;
            assert_eq!((decided.spec.user_namespace, seen), (fixed, None));
        }
        template.spec.user_namespace = UserNamespace::Auto;
        for _ in 0..2 {
            let (decided, seen) = nodes.decide(template.clone()).await;
            assert_eq!((decided.spec.user_namespace, seen.unwrap().reason.as_str()), (UserNamespace::Pod, "Supported"));
        }
        nodes.known.lock().await.as_mut().unwrap().until = Instant::now();
        for _ in 0..2 {
            let (decided, _) = nodes.decide(template.clone()).await;
            assert_eq!(decided.spec.user_namespace, UserNamespace::Pod, "what they said before counts");
        }
        assert!(nodes.known.lock().await.as_ref().unwrap().until <= Instant::now() + AGAIN, "it is tried again soon");
        server.nothing_else((nodes, context)).await;
    }

    #[tokio::test]
    async fn a_node_that_is_away_for_a_while_keeps_its_say() {
        let mut away = node("old", &json!([]));
        away["status"]["conditions"] = json!([{ "type": "Ready", "status": "Unknown" }]);
        let answer = json!({ "metadata": {}, "items": [node("a", &able()), away] });
        assert_eq!(decided(200, answer).await, (UserNamespace::Host, "NodeWithoutSupport".to_owned()));
    }

    #[tokio::test]
    async fn what_is_not_known_of_nodes_is_not_risked() {
        assert_eq!(decided(403, refused()).await, (UserNamespace::Host, "NodesUnknown".to_owned()));
    }

    /// What becomes of a template that leaves it to its nodes, and the reason, when this is what a list of them gives.
    async fn decided(status: u16, answer: Value) -> (UserNamespace, String) {
        let (context, server) = context();
        let server = server.expect([("GET", NODES, status, answer)]);
        let nodes = Nodes::new(context.client.clone());
        let mut template = fixtures::template();
        template.spec.user_namespace = UserNamespace::Auto;
        let (decided, seen) = nodes.decide(template).await;
        server.nothing_else((nodes, context)).await;
        (decided.spec.user_namespace, seen.unwrap().reason)
    }
}
