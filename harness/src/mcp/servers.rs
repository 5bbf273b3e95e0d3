//! The servers that a claim uses: their connections, and the calls that run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use longhand_protocol::EventId;
use longhand_protocol::client::{self, TokenSource};
use longhand_protocol::event::without_result::STOPPED_BEFORE;
use longhand_protocol::harness::{McpServer, mcp_route};
use reqwest::{Client, Url};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info_span};

use super::connection::Connection;
use super::http::Http;
use crate::core::mcp::{Answer, Call, Discovery, Outcome, Unreachable};

/// How long cancelled calls may take to end.
const LAST_WORDS: Duration = Duration::from_millis(150);

/// How long a server is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Until it has said who it is, and again until it has listed its tools.
    pub(crate) ready: Duration,
    /// Until a call has an answer, or a word of progress.
    pub(crate) silence: Duration,
    /// Until a call has an answer, however much it says.
    pub(crate) call: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        Self { ready: Duration::from_secs(10), silence: minutes(15), call: minutes(60) }
    }
}

/// The MCP servers behind the proxy.
#[derive(Clone, Debug)]
pub(crate) struct Servers {
    /// Where the proxy serves them; none if the pod has no such proxy.
    proxy: Option<(Client, Url)>,
    token: TokenSource,
}

impl Servers {
    /// The servers under `base`, to which `token` is sent.
    ///
    /// # Errors
    /// When `base` is not an `http` or `https` URL.
    pub(crate) fn new(base: Option<&str>, token: TokenSource) -> client::Result<Self> {
        let proxy = base.map(|base| client::Server::new(base).connect()).transpose()?;
        Ok(Self { proxy, token })
    }

    /// No connection and no call yet.
    pub(crate) fn open(&self) -> Session {
        self.open_with(Patience::default())
    }

    /// The same, with this patience.
    pub(crate) fn open_with(&self, patience: Patience) -> Session {
        let (calls, running) = (JoinSet::new(), BTreeMap::new());
        Session { servers: self.clone(), patience, slots: BTreeMap::new(), calls, running }
    }

    fn http(&self, server: &McpServer) -> Result<(Http, String), Unreachable> {
        let refuse = |message: &str| Unreachable { refused: false, message: message.to_owned() };
        let (client, base) = self
            .proxy
            .as_ref()
            .ok_or_else(|| refuse("This harness has no way to MCP servers: MCP_BASE_URL is not set."))?;
        let mut url = base.clone();
        url.path_segments_mut()
            .map_err(|()| refuse("MCP_BASE_URL cannot have a path."))?
            .pop_if_empty()
            .push(&mcp_route(server.name(), server.url()));
        Ok((Http::new(client.clone(), self.token.clone()), url.into()))
    }
}

/// What one claim has open. Dropping it ends all calls and connections.
#[derive(Debug)]
pub(crate) struct Session {
    servers: Servers,
    patience: Patience,
    /// By route.
    slots: BTreeMap<String, Arc<Slot>>,
    calls: JoinSet<Outcome>,
    running: BTreeMap<EventId, CancellationToken>,
}

/// A server's connection, if there is one.
#[derive(Debug)]
struct Slot {
    server: McpServer,
    address: Result<(Http, String), Unreachable>,
    patience: Patience,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    connection: Option<Arc<Connection>>,
    /// It was made for a call, and the server's tools were not looked at.
    unseen: bool,
}

impl Slot {
    async fn connection(&self, looks: bool) -> Result<Arc<Connection>, Unreachable> {
        let (http, url) = self.address.clone()?;
        let mut state = self.state.lock().await;
        if let Some(connection) = state.connection.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(Arc::clone(connection));
        }
        let connection = Arc::new(Connection::open(http, &url, self.patience).await?);
        *state = State { connection: Some(Arc::clone(&connection)), unseen: !looks };
        Ok(connection)
    }

    /// Forgets a connection, so that the next use makes another.
    async fn leave(&self, left: &Arc<Connection>) {
        let mut state = self.state.lock().await;
        state.connection.take_if(|connection| Arc::ptr_eq(connection, left));
    }

    async fn discover(&self) -> Result<Vec<longhand_protocol::event::McpTool>, Unreachable> {
        let connection = self.connection(true).await?;
        let tools = connection.tools(self.server.name()).await;
        if tools.is_err() {
            self.leave(&connection).await;
        }
        tools
    }

    async fn call(&self, call: Call, cancelled: &CancellationToken) -> Answer {
        let connecting = async {
            self.connection(false)
                .await
                .map_err(|unreachable| Answer::NotRun(format!("The call was not run. {}", unreachable.message)))
        };
        let connection = tokio::select! {
            connection = connecting => match connection {
                Ok(connection) => connection,
                Err(answer) => return answer,
            },
            () = cancelled.cancelled() => return Answer::NotRun(STOPPED_BEFORE.to_owned()),
        };
        let (answer, keep) = connection.call(&call.tool, call.input, cancelled).await;
        if !keep {
            self.leave(&connection).await;
        }
        answer
    }
}

impl Session {
    fn slot(&mut self, server: &McpServer) -> Arc<Slot> {
        let make = || Slot {
            server: server.clone(),
            address: self.servers.http(server),
            patience: self.patience,
            state: Mutex::default(),
        };
        let slot = self.slots.entry(mcp_route(server.name(), server.url())).or_insert_with(|| Arc::new(make()));
        Arc::clone(slot)
    }

    /// Asks servers for their tools, all at once.
    pub(crate) async fn discover(&mut self, servers: Vec<McpServer>) -> Vec<Discovery> {
        let asked = servers.into_iter().map(|server| {
            let slot = self.slot(&server);
            async move {
                let tools = slot.discover().await;
                match &tools {
                    Ok(tools) => tracing::info!(server = server.name(), tools = tools.len(), "an MCP server was asked"),
                    Err(error) => {
                        tracing::warn!(server = server.name(), error = error.message, "an MCP server cannot be used");
                    }
                }
                Discovery { server, tools }
            }
        });
        let asked: Vec<_> = asked.collect();
        join_all(asked).await
    }

    /// Sends calls, without waiting for what comes of them.
    pub(crate) fn send(&mut self, calls: Vec<Call>) {
        for call in calls {
            let (slot, token, event) = (self.slot(&call.server), CancellationToken::new(), call.event.clone());
            self.running.insert(event.clone(), token.clone());
            let span =
                info_span!("mcp", otel.kind = "client", call = %event, server = call.server.name(), tool = call.tool);
            let answered = async move { Outcome { call: event, answer: slot.call(call, &token).await } };
            self.calls.spawn(answered.instrument(span));
        }
    }

    /// Waits until at least one call has ended, and gives all that have.
    pub(crate) async fn ended(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        match self.calls.join_next().await {
            Some(Ok(outcome)) => outcomes.push(outcome),
            Some(Err(error)) => tracing::error!(%error, "a call of an MCP server ended by itself"),
            None => return self.lost(),
        }
        while let Some(ended) = self.calls.try_join_next() {
            outcomes.extend(ended.ok());
        }
        for outcome in &outcomes {
            self.running.remove(&outcome.call);
        }
        outcomes
    }

    /// Calls of which no task is left.
    fn lost(&mut self) -> Vec<Outcome> {
        let lost = std::mem::take(&mut self.running).into_keys();
        let why = "the harness has lost it";
        lost.map(|call| Outcome { call, answer: Answer::Unknown(why.to_owned()) }).collect()
    }

    /// Tells the servers that calls are not waited for, and gives what has ended until then.
    pub(crate) async fn cancel(&mut self, calls: &[EventId]) -> Vec<Outcome> {
        for call in calls {
            if let Some(token) = self.running.get(call) {
                token.cancel();
            }
        }
        let wanted: BTreeSet<&EventId> = calls.iter().collect();
        let mut outcomes = Vec::new();
        let all = async {
            while self.running.keys().any(|call| wanted.contains(call)) {
                let Some(ended) = self.calls.join_next().await else { break };
                if let Ok(outcome) = ended {
                    self.running.remove(&outcome.call);
                    outcomes.push(outcome);
                }
            }
        };
        drop(tokio::time::timeout(LAST_WORDS, all).await);
        self.running.retain(|call, _| !wanted.contains(call));
        outcomes
    }

    /// Servers whose tools may be others than they were: they said so, or were not asked since the connection was made.
    pub(crate) fn take_changed(&mut self) -> Vec<String> {
        let mut changed = Vec::new();
        for slot in self.slots.values() {
            // One that is being connected to is looked at the next time.
            let Ok(mut state) = slot.state.try_lock() else { continue };
            let said = state.connection.as_ref().is_some_and(|connection| connection.take_changed());
            if said || std::mem::take(&mut state.unseen) {
                changed.push(slot.server.name().to_owned());
            }
        }
        changed
    }
}
