//! What the public API does.

mod files;
mod sandboxes;

use longhand_protocol::wire::agents::{Agent, CreateAgent, UpdateAgent};
use longhand_protocol::wire::environments::{CreateEnvironment, Environment, EnvironmentDeleted, UpdateEnvironment};
use longhand_protocol::wire::resources::{SessionResource, UpdateResource, WrittenResource};
use longhand_protocol::wire::vaults::{
    CreateCredential, CreateVault, Credential, CredentialValidation, Deleted, UpdateCredential, UpdateVault, Vault,
};
use longhand_protocol::wire::work::{StopWork, UpdateWork, Work, WorkHeartbeat, WorkStats};
use longhand_protocol::wire::{
    EventsSent, NewSession, NumberedEvent, Page, SendEvents, Session, SessionDeleted, Thread, UpdateSession,
};
use schemars::generate::SchemaGenerator;
use schemars::{JsonSchema, Schema};
use serde_json::{Value, json};

type Shape = fn(&mut SchemaGenerator) -> Schema;

/// One method of one path.
pub(super) struct Operation {
    pub(super) method: &'static str,
    /// Below `/v1`.
    pub(super) path: &'static str,
    pub(super) id: &'static str,
    pub(super) summary: &'static str,
    pub(super) query: Vec<Parameter>,
    pub(super) takes: Takes,
    pub(super) answer: Answer,
}

/// What a success looks like.
#[derive(Clone, Copy)]
pub(super) enum Answer {
    Json(Shape),
    /// Text of this kind.
    Text(&'static str),
    /// The connection is upgraded to this.
    Upgrade(&'static str),
}

/// What a request carries.
#[derive(Clone, Copy)]
pub(super) enum Takes {
    Nothing,
    Json(Shape),
    /// Or nothing.
    PerhapsJson(Shape),
    /// A JSON object a line.
    Lines,
    /// Bytes of this kind.
    Bytes(&'static str),
    /// A form with a part `file`.
    File,
}

/// A parameter of the query.
pub(super) struct Parameter {
    name: &'static str,
    what: &'static str,
    schema: Value,
}

impl Parameter {
    fn new(name: &'static str, what: &'static str, schema: Value) -> Self {
        Self { name, what, schema }
    }

    pub(super) fn describe(&self) -> Value {
        json!({ "name": self.name, "in": "query", "description": self.what, "schema": self.schema })
    }
}

impl Operation {
    fn new(method: &'static str, path: &'static str, id: &'static str, summary: &'static str, answer: Answer) -> Self {
        Self { method, path, id, summary, query: Vec::new(), takes: Takes::Nothing, answer }
    }

    /// The status of a success.
    pub(super) fn status(&self) -> &'static str {
        if matches!(self.answer, Answer::Upgrade(_)) { "101" } else { "200" }
    }

    fn query(mut self, parameters: impl IntoIterator<Item = Parameter>) -> Self {
        self.query.extend(parameters);
        self
    }

    fn takes<T: JsonSchema>(mut self) -> Self {
        self.takes = Takes::Json(shape::<T>);
        self
    }

    fn may_take<T: JsonSchema>(mut self) -> Self {
        self.takes = Takes::PerhapsJson(shape::<T>);
        self
    }

    fn takes_lines(mut self) -> Self {
        self.takes = Takes::Lines;
        self
    }
}

fn shape<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

fn json_of<T: JsonSchema>() -> Answer {
    Answer::Json(shape::<T>)
}

fn limit(most: u32) -> Parameter {
    let what = "How many items a page has at the most; the default if 0";
    Parameter::new("limit", what, json!({ "type": "integer", "minimum": 0, "maximum": most }))
}

fn page() -> Parameter {
    let what = "`next_page` of the page before; good for the same list in the same order only";
    Parameter::new("page", what, json!({ "type": "string", "minLength": 1 }))
}

fn order() -> Parameter {
    Parameter::new("order", "Oldest or newest first", json!({ "type": "string", "enum": ["asc", "desc"] }))
}

fn types() -> Parameter {
    let what = "Only these types; Longhand's own (x.*) are shown only when they are asked for";
    Parameter::new("types[]", what, json!({ "type": "array", "items": { "type": "string" } }))
}

fn after_seq() -> Parameter {
    let what = "Only events with a sequence number above this (an extension)";
    Parameter::new("after_seq", what, json!({ "type": "integer", "minimum": 0 }))
}

fn places() -> Vec<Parameter> {
    let number = |name, what, least: u64| Parameter::new(name, what, json!({ "type": "integer", "minimum": least }));
    let radius = json!({ "type": "integer", "minimum": 0, "maximum": 499, "default": 10 });
    vec![
        after_seq(),
        number("before_seq", "Only events with a sequence number below this (an extension)", 2),
        number("around_seq", "Only the event with this number and those around it (an extension)", 1),
        text("around_id", "Only this event of the log and those around it (an extension)"),
        Parameter::new(
            "radius",
            "How many events on either side of `around_seq` or `around_id` (an extension)",
            radius,
        ),
    ]
}

fn archived() -> Parameter {
    Parameter::new("include_archived", "Whether archived ones are listed too", json!({ "type": "boolean" }))
}

fn number(name: &'static str, what: &'static str, least: u64) -> Parameter {
    Parameter::new(name, what, json!({ "type": "integer", "minimum": least }))
}

fn text(name: &'static str, what: &'static str) -> Parameter {
    Parameter::new(name, what, json!({ "type": "string", "minLength": 1 }))
}

fn statuses() -> Parameter {
    let states = json!(["idle", "running", "rescheduling", "terminated"]);
    Parameter::new(
        "statuses[]",
        "Only these",
        json!({ "type": "array", "items": { "type": "string", "enum": states } }),
    )
}

fn with_seq() -> Parameter {
    let what = "Whether events have their sequence number (an extension)";
    Parameter::new("include_seq", what, json!({ "type": "boolean" }))
}

fn deltas() -> Parameter {
    let kinds = json!({ "type": "string", "enum": ["agent.message", "agent.thinking"] });
    let what = "Types that are previewed while they are written";
    Parameter::new("event_deltas[]", what, json!({ "type": "array", "items": kinds }))
}

fn time(name: &'static str, what: &'static str) -> Parameter {
    Parameter::new(name, what, json!({ "type": "string", "format": "date-time" }))
}

fn created_at() -> Vec<Parameter> {
    vec![
        time("created_at[gt]", "Only later ones"),
        time("created_at[gte]", "Only these or later ones"),
        time("created_at[lt]", "Only earlier ones"),
        time("created_at[lte]", "Only these or earlier ones"),
    ]
}

/// Every operation.
pub(super) fn operations() -> Vec<Operation> {
    let families = [
        agents(),
        environments(),
        sessions(),
        threads(),
        resources(),
        events(),
        files::files(),
        sandboxes::sandboxes(),
        vaults(),
        credentials(),
        work(),
    ];
    families.into_iter().flatten().collect()
}

fn agents() -> Vec<Operation> {
    let (agents, agent) = ("/agents", "/agents/{agent}");
    vec![
        Operation::new("get", agents, "listAgents", "List agents", json_of::<Page<Agent>>()).query([
            limit(100),
            page(),
            archived(),
            time("created_at[gte]", "Only these or later ones"),
            time("created_at[lte]", "Only these or earlier ones"),
        ]),
        Operation::new("post", agents, "createAgent", "Make an agent", json_of::<Agent>()).takes::<CreateAgent>(),
        Operation::new("get", agent, "getAgent", "Show an agent, as it is or as it was", json_of::<Agent>())
            .query([number("version", "The version; without it or with 0, the last", 0)]),
        Operation::new("post", agent, "updateAgent", "Make a new version of an agent", json_of::<Agent>())
            .takes::<UpdateAgent>(),
        Operation::new("post", "/agents/{agent}/archive", "archiveAgent", "Archive an agent", json_of::<Agent>()),
        Operation::new(
            "get",
            "/agents/{agent}/versions",
            "listAgentVersions",
            "List versions",
            json_of::<Page<Agent>>(),
        )
        .query([limit(100), page()]),
    ]
}

fn environments() -> Vec<Operation> {
    let (all, one) = ("/environments", "/environments/{environment}");
    let archive = "/environments/{environment}/archive";
    vec![
        Operation::new("get", all, "listEnvironments", "List environments", json_of::<Page<Environment>>()).query([
            limit(100),
            page(),
            archived(),
        ]),
        Operation::new("post", all, "createEnvironment", "Make an environment", json_of::<Environment>())
            .takes::<CreateEnvironment>(),
        Operation::new("get", one, "getEnvironment", "Show an environment", json_of::<Environment>()),
        Operation::new("post", one, "updateEnvironment", "Change an environment", json_of::<Environment>())
            .takes::<UpdateEnvironment>(),
        Operation::new("delete", one, "deleteEnvironment", "Delete an environment", json_of::<EnvironmentDeleted>()),
        Operation::new("post", archive, "archiveEnvironment", "Archive an environment", json_of::<Environment>()),
    ]
}

fn vaults() -> Vec<Operation> {
    let (all, one) = ("/vaults", "/vaults/{vault}");
    vec![
        Operation::new("get", all, "listVaults", "List vaults", json_of::<Page<Vault>>()).query([
            limit(100),
            page(),
            archived(),
        ]),
        Operation::new("post", all, "createVault", "Make a vault", json_of::<Vault>()).takes::<CreateVault>(),
        Operation::new("get", one, "getVault", "Show a vault", json_of::<Vault>()),
        Operation::new("post", one, "updateVault", "Change a vault", json_of::<Vault>()).takes::<UpdateVault>(),
        Operation::new("delete", one, "deleteVault", "Delete a vault", json_of::<Deleted>()),
        Operation::new("post", "/vaults/{vault}/archive", "archiveVault", "Archive a vault", json_of::<Vault>()),
    ]
}

fn credentials() -> Vec<Operation> {
    let (all, one) = ("/vaults/{vault}/credentials", "/vaults/{vault}/credentials/{credential}");
    let archive = "/vaults/{vault}/credentials/{credential}/archive";
    let validate = "/vaults/{vault}/credentials/{credential}/mcp_oauth_validate";
    vec![
        Operation::new("get", all, "listCredentials", "List a vault's credentials", json_of::<Page<Credential>>())
            .query([limit(100), page(), archived()]),
        Operation::new("post", all, "createCredential", "Put a credential in", json_of::<Credential>())
            .takes::<CreateCredential>(),
        Operation::new("get", one, "getCredential", "Show a credential, without its value", json_of::<Credential>()),
        Operation::new("post", one, "updateCredential", "Change or rotate a credential", json_of::<Credential>())
            .takes::<UpdateCredential>(),
        Operation::new("delete", one, "deleteCredential", "Delete a credential", json_of::<Deleted>()),
        Operation::new("post", archive, "archiveCredential", "Archive a credential", json_of::<Credential>()),
        Operation::new("post", validate, "validateCredential", "Try a credential", json_of::<CredentialValidation>()),
    ]
}

fn work() -> Vec<Operation> {
    let one = "/environments/{environment}/work/{work}";
    let expected = Parameter::new(
        "expected_last_heartbeat",
        "What the last heartbeat was answered with, or NO_HEARTBEAT",
        json!({ "type": "string" }),
    );
    vec![
        Operation::new("get", "/environments/{environment}/work", "listWork", "List work", json_of::<Page<Work>>())
            .query([limit(100), page()]),
        Operation::new(
            "get",
            "/environments/{environment}/work/poll",
            "pollWork",
            "Take work, if there is some",
            json_of::<Option<Work>>(),
        )
        .query([
            number("block_ms", "How long to wait for some", 1),
            number("reclaim_older_than_ms", "Take what another has not acknowledged for so long", 0),
        ]),
        Operation::new(
            "get",
            "/environments/{environment}/work/stats",
            "getWorkStats",
            "Count the work of an environment",
            json_of::<WorkStats>(),
        ),
        Operation::new("get", one, "getWork", "Show work", json_of::<Work>()),
        Operation::new("post", one, "updateWork", "Change what is kept with work", json_of::<Work>())
            .takes::<UpdateWork>(),
        Operation::new(
            "post",
            "/environments/{environment}/work/{work}/ack",
            "acknowledgeWork",
            "Say that work is begun",
            json_of::<Work>(),
        ),
        Operation::new(
            "post",
            "/environments/{environment}/work/{work}/heartbeat",
            "heartbeatWork",
            "Say that work goes on",
            json_of::<WorkHeartbeat>(),
        )
        .query([expected, number("desired_ttl_seconds", "Until when, from now", 1)]),
        Operation::new(
            "post",
            "/environments/{environment}/work/{work}/stop",
            "stopWork",
            "Ask for work to be stopped",
            json_of::<Work>(),
        )
        .may_take::<StopWork>(),
    ]
}

fn sessions() -> Vec<Operation> {
    vec![
        Operation::new("get", "/sessions", "listSessions", "List sessions", json_of::<Page<Session>>())
            .query([limit(200), page(), order(), archived(), statuses()])
            .query([
                text("agent_id", "Only sessions of this agent"),
                number(
                    "agent_version",
                    "Only sessions of this version of the agent that `agent_id` names; any if 0",
                    0,
                ),
                text("deployment_id", "Only sessions that this deployment made, which are none"),
                text("memory_store_id", "Only sessions with this memory store, which are none"),
            ])
            .query(created_at()),
        Operation::new("post", "/sessions", "createSession", "Make a session", json_of::<Session>())
            .takes::<NewSession>(),
        Operation::new("get", "/sessions/{session}", "getSession", "Show a session", json_of::<Session>()),
        Operation::new("post", "/sessions/{session}", "updateSession", "Change a session", json_of::<Session>())
            .takes::<UpdateSession>(),
        Operation::new(
            "post",
            "/sessions/{session}/archive",
            "archiveSession",
            "End a session that does not run, for good",
            json_of::<Session>(),
        ),
        Operation::new(
            "delete",
            "/sessions/{session}",
            "deleteSession",
            "Delete a session that does not run, with its log",
            json_of::<SessionDeleted>(),
        ),
        Operation::new(
            "get",
            "/sessions/{session}/export",
            "exportSession",
            "Give the whole log out, a line for each record",
            Answer::Text("application/x-ndjson"),
        ),
        Operation::new(
            "post",
            "/sessions/import",
            "importSession",
            "Make a session of an exported log",
            json_of::<Session>(),
        )
        .takes_lines(),
    ]
}

fn threads() -> Vec<Operation> {
    let (all, one) = ("/sessions/{session}/threads", "/sessions/{session}/threads/{thread}");
    let (archive, events) =
        ("/sessions/{session}/threads/{thread}/archive", "/sessions/{session}/threads/{thread}/events");
    let stream = "/sessions/{session}/threads/{thread}/stream";
    vec![
        Operation::new("get", all, "listThreads", "List a session's threads", json_of::<Page<Thread>>()).query([
            limit(1_000),
            page(),
            statuses(),
        ]),
        Operation::new("get", one, "getThread", "Show a thread", json_of::<Thread>()),
        Operation::new("post", archive, "archiveThread", "Show a thread that is archived", json_of::<Thread>()),
        Operation::new("get", events, "listThreadEvents", "List a thread's events", json_of::<Page<NumberedEvent>>())
            .query([types(), limit(1_000), page(), order(), with_seq()])
            .query(places())
            .query(created_at()),
        Operation::new(
            "get",
            stream,
            "streamThreadEvents",
            "Follow a thread's events",
            Answer::Text("text/event-stream"),
        )
        .query([types(), after_seq(), deltas()]),
    ]
}

fn resources() -> Vec<Operation> {
    let (all, one) = ("/sessions/{session}/resources", "/sessions/{session}/resources/{resource}");
    vec![
        Operation::new("get", all, "listResources", "List a session's resources", json_of::<Page<SessionResource>>())
            .query([limit(1_000), page()]),
        Operation::new("post", all, "addResource", "Add a resource", json_of::<SessionResource>())
            .takes::<WrittenResource>(),
        Operation::new("get", one, "getResource", "Show a resource", json_of::<SessionResource>()),
        Operation::new("post", one, "updateResource", "Rotate a resource's token", json_of::<SessionResource>())
            .takes::<UpdateResource>(),
        Operation::new("delete", one, "deleteResource", "Take a resource away", json_of::<Deleted>()),
    ]
}

fn events() -> Vec<Operation> {
    let events = "/sessions/{session}/events";
    vec![
        Operation::new("get", events, "listEvents", "List a session's events", json_of::<Page<NumberedEvent>>())
            .query([types(), limit(1_000), page(), order(), with_seq()])
            .query(places())
            .query(created_at()),
        Operation::new("post", events, "sendEvents", "Send events to a session", json_of::<EventsSent>())
            .takes::<SendEvents>(),
        Operation::new(
            "get",
            "/sessions/{session}/events/stream",
            "streamEvents",
            "Follow a session's events; `Last-Event-ID` resumes",
            Answer::Text("text/event-stream"),
        )
        .query([types(), after_seq(), deltas()]),
    ]
}
