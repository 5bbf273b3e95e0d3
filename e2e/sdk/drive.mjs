// One whole session, driven by the official npm SDK, which is found in the folder that this is started in. It is told where to go
// as any program that uses the SDK is: by ANTHROPIC_BASE_URL, ANTHROPIC_API_KEY and NODE_EXTRA_CA_CERTS. The model behind it follows
// script.yaml. drive.py does the same in Python.
//
//   node drive.mjs DEADLINE_SECONDS

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { createRequire } from "node:module";
import { performance } from "node:perf_hooks";

const require = createRequire(`${process.cwd()}/`);
const { Anthropic } = require("@anthropic-ai/sdk");
const { VERSION } = require("@anthropic-ai/sdk/version");

const NAME = `npm-${VERSION}-${randomBytes(4).toString("hex")}`;
const WEATHER = {
  type: "custom",
  name: "weather",
  description: "Says how the weather is.",
  input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};
const TOOLSET = {
  type: "agent_toolset_20260401",
  default_config: { enabled: true, permission_policy: { type: "always_allow" } },
  configs: [{ name: "write", permission_policy: { type: "always_ask" } }],
};

const { beta } = new Anthropic();
const begun = performance.now();
let doing = "nothing";

const seconds = (since) => (performance.now() - since) / 1000;

function step(text) {
  doing = text;
  console.log(`${seconds(begun).toFixed(2).padStart(6)} ${text}`);
}

/** The message of a request that must be refused, and at once: what cannot be right the next time is not sent again. */
async function refused(status, call) {
  const since = performance.now();
  const answer = await call().then(
    (taken) => assert.fail(`it was taken: ${JSON.stringify(taken)}`),
    (error) => error,
  );
  assert.equal(answer.status, status, answer);
  assert(seconds(since) < 5, `it was repeated: ${answer}`);
  return answer.message;
}

const text = (content) => (content ?? []).map((block) => block.text ?? "").join("");
const of = (events, type) => events.filter((event) => event.type === type);
const types = (events) => events.map((event) => event.type);
const results = (events) =>
  new Map(of(events, "agent.tool_result").map((event) => [event.tool_use_id, [text(event.content), Boolean(event.is_error)]]));

async function all(pages) {
  const items = [];
  for await (const item of pages) items.push(item);
  return items;
}

/** A session and its stream. All events and previews are kept. */
class Talk {
  static async open(session) {
    const talk = new Talk();
    talk.session = session;
    talk.events = [];
    talk.shown = new Map();
    const stream = await beta.sessions.events.stream(session, { event_deltas: ["agent.message"] });
    talk.stream = stream[Symbol.asyncIterator]();
    return talk;
  }

  async send(...events) {
    const taken = await beta.sessions.events.send(this.session, { events });
    assert.deepEqual(types(taken.data), types(events));
  }

  say(words) {
    return this.send({ type: "user.message", content: [{ type: "text", text: words }] });
  }

  /** The events up to the next one of a type, with it. */
  async until(type) {
    const seen = [];
    for (;;) {
      const { value: event, done } = await this.stream.next();
      assert(!done, `the stream ended before ${type}: ${types(this.events)}`);
      if (event.type === "event_start") this.shown.set(event.event.id, "");
      else if (event.type === "event_delta") {
        this.shown.set(event.event_id, this.shown.get(event.event_id) + event.delta.content.text);
      } else {
        seen.push(event);
        this.events.push(event);
      }
      if (event.type === type) return seen;
    }
  }

  async untilIdle(reason) {
    const seen = await this.until("session.status_idle");
    assert.equal(seen.at(-1).stop_reason.type, reason, JSON.stringify(seen.at(-1)));
    assert.equal(seen.at(-2).type, "session.usage", types(seen).join());
    for (const message of of(seen, "agent.message")) assert.equal(this.shown.get(message.id), text(message.content));
    return seen;
  }
}

async function agentWithVersions() {
  const agent = await beta.agents.create({ name: NAME, model: "scripted-1", system: "You are a test.", tools: [TOOLSET, WEATHER] });
  assert.deepEqual([agent.version, agent.type, agent.name], [1, "agent", NAME]);
  const changed = await beta.agents.update(agent.id, { version: 1, description: "drives a session" });
  assert.deepEqual([changed.version, changed.description], [2, "drives a session"]);
  const message = await refused(409, () => beta.agents.update(agent.id, { version: 1, description: "stale" }));
  assert.match(message, /version/);
  assert.deepEqual((await all(beta.agents.versions.list(agent.id))).map((each) => each.version), [2, 1]);
  assert.equal((await beta.agents.retrieve(agent.id, { version: 1 })).description, null);
  return agent.id;
}

async function tool(talk) {
  await talk.say("What is six times seven?");
  const seen = await talk.untilIdle("end_turn");
  assert.equal(of(seen, "session.status_running").length, 1, types(seen).join());
  const [call] = of(seen, "agent.tool_use");
  assert.deepEqual([call.name, call.input.command, call.evaluated_permission], ["bash", "echo $((6 * 7))", "allow"]);
  const [said, isError] = results(seen).get(call.id);
  assert.deepEqual([said.trim(), isError], ["42", false]);
  assert.match(text(of(seen, "agent.message").at(-1).content), /42/);
  const ends = of(seen, "span.model_request_end");
  assert(ends.length === 2 && ends.every((end) => end.model_usage.output_tokens > 0), JSON.stringify(ends));
}

async function confirmations(talk) {
  const verdict = (id, result, more) => ({ type: "user.tool_confirmation", tool_use_id: id, result, ...more });
  await talk.say("Please keep two notes.");
  let seen = await talk.untilIdle("requires_action");
  const [allowed, denied, free] = of(seen, "agent.tool_use");
  assert.deepEqual([allowed.input.file_path, denied.input.file_path], ["allowed.txt", "denied.txt"]);
  assert.deepEqual(seen.at(-1).stop_reason.event_ids, [allowed.id, denied.id]);
  assert.deepEqual([allowed.evaluated_permission, denied.evaluated_permission], ["ask", "ask"]);
  assert.deepEqual([...results(seen).keys()], [free.id], "what asks nobody has run, and nothing else");
  assert.match(await refused(400, () => talk.send(verdict(free.id, "allow"))), /tool_use_id/);

  await talk.send(verdict(allowed.id, "allow"));
  seen = await talk.untilIdle("requires_action");
  assert.deepEqual(seen.at(-1).stop_reason.event_ids, [denied.id], "what remains");
  assert.equal(results(seen).get(allowed.id)[1], false);

  await talk.send(verdict(denied.id, "deny", { deny_message: "one is enough" }));
  seen = await talk.untilIdle("end_turn");
  const [said, isError] = results(seen).get(denied.id);
  assert(isError && said.includes("one is enough"), said);
  const [listing] = of(seen, "agent.tool_use");
  assert.match(results(seen).get(listing.id)[0], /allowed\.txt/);
  assert.doesNotMatch(results(seen).get(listing.id)[0], /denied\.txt/);
}

async function customTool(talk) {
  await talk.say("How is the weather?");
  let seen = await talk.untilIdle("requires_action");
  const [call] = of(seen, "agent.custom_tool_use");
  assert.deepEqual([call.name, call.input], ["weather", { city: "Bern" }]);
  assert.deepEqual(seen.at(-1).stop_reason.event_ids, [call.id]);
  const content = [{ type: "text", text: "sunny" }];
  await talk.send({ type: "user.custom_tool_result", custom_tool_use_id: call.id, content });
  seen = await talk.untilIdle("end_turn");
  assert.equal(text(of(seen, "agent.message").at(-1).content), "It is sunny");
}

async function interruptOfAnAnswer(talk) {
  await talk.say("Tell me a long story.");
  const seen = await talk.until("event_delta");
  const since = performance.now();
  await talk.send({ type: "user.interrupt" });
  seen.push(...(await talk.untilIdle("end_turn")));
  step(`  idle ${seconds(since).toFixed(3)} s after the interrupt of an answer`);
  assert.deepEqual(of(seen, "agent.message"), [], "half an answer is none");
  assert.equal(of(seen, "span.model_request_end").at(-1).is_error, true);
}

async function interruptOfATool(talk) {
  await talk.say("Now sleep for long.");
  let seen = await talk.until("agent.tool_result");
  const [sleeper, watcher] = of(seen, "agent.tool_use");
  assert.match(results(seen).get(watcher.id)[0], /it sleeps/);
  const since = performance.now();
  await talk.send({ type: "user.interrupt" });
  seen = await talk.untilIdle("end_turn");
  step(`  idle ${seconds(since).toFixed(3)} s after the interrupt of a tool`);
  const [said, isError] = results(seen).get(sleeper.id);
  assert(isError && said.includes("interrupted"), said);
  await talk.say("And who sleeps now?");
  seen = await talk.untilIdle("end_turn");
  assert.match(text(of(seen, "agent.message").at(-1).content), /The sleeper is gone/, "the program goes on");
}

async function eventPages(talk) {
  const { events } = beta.sessions;
  const page = await events.list(talk.session, { limit: 7 });
  assert(page.data.length === 7 && page.hasNextPage());
  const ids = (items) => items.map((event) => event.id);
  const forwards = ids(await all(events.list(talk.session, { limit: 7 })));
  const backwards = ids(await all(events.list(talk.session, { limit: 7, order: "desc" })));
  assert.deepEqual(forwards, backwards.toReversed());
  assert.equal(new Set(forwards).size, forwards.length);
  assert.deepEqual(forwards, ids(talk.events), "the stream has shown what the list holds");
  await refused(400, () => events.list(talk.session, { limit: 7, order: "desc", page: page.next_page }));
  const some = await all(events.list(talk.session, { types: ["user.message", "user.interrupt"] }));
  assert.deepEqual(new Set(types(some)), new Set(["user.message", "user.interrupt"]));
}

async function sessionPages(agent, environment, first) {
  const made = [first];
  while (made.length < 3) made.push((await beta.sessions.create({ agent, environment_id: environment })).id);
  const page = await beta.sessions.list({ agent_id: agent, limit: 2 });
  assert(page.data.length === 2 && page.hasNextPage());
  const rest = await page.getNextPage();
  assert.deepEqual([rest.data.length, rest.hasNextPage()], [1, false]);
  const ids = (sessions) => sessions.map((session) => session.id);
  assert.deepEqual(ids([...page.data, ...rest.data]), made.toReversed(), "newest first");
  const back = await beta.sessions.list({ agent_id: agent, limit: 2, page: rest.prev_page });
  assert.deepEqual(ids(back.data), ids(page.data), "and back");
  assert.deepEqual(ids(await all(beta.sessions.list({ agent_id: agent, limit: 2, order: "asc" }))), made);
  return made;
}

async function end(talk, others, agent, environment) {
  const archived = await beta.sessions.archive(talk.session);
  assert(archived.status === "terminated" && archived.archived_at, JSON.stringify(archived));
  await talk.until("session.status_terminated");
  assert.match(await refused(400, () => talk.say("Are you still there?")), /archived/);
  const listed = async (more) => (await all(beta.sessions.list({ agent_id: agent, ...more }))).map((session) => session.id);
  assert(!(await listed()).includes(talk.session));
  assert((await listed({ include_archived: true })).includes(talk.session));
  await refused(409, () => beta.environments.delete(environment));
  for (const session of [talk.session, ...others]) {
    assert.deepEqual(await beta.sessions.delete(session), { id: session, type: "session_deleted" });
    await refused(404, () => beta.sessions.retrieve(session));
  }
  assert.equal((await beta.environments.delete(environment)).type, "environment_deleted");
  assert((await beta.agents.archive(agent)).archived_at);
}

async function main() {
  step(`@anthropic-ai/sdk ${VERSION}`);
  const agent = await agentWithVersions();
  const environment = await beta.environments.create({ name: NAME, config: { type: "cloud" } });
  await refused(409, () => beta.environments.create({ name: NAME, config: { type: "cloud" } }));
  const made = { agent, environment_id: environment.id, title: NAME, metadata: { driver: "npm" } };
  const session = await beta.sessions.create(made);
  assert.deepEqual([session.status, session.agent.version, session.title], ["idle", 2, NAME]);
  const talk = await Talk.open(session.id);
  for (const part of [tool, confirmations, customTool, interruptOfAnAnswer, interruptOfATool, eventPages]) {
    step(part.name);
    await part(talk);
  }
  const now = await beta.sessions.retrieve(session.id);
  assert(now.status === "idle" && now.usage.output_tokens > 0 && now.usage.input_tokens > 0, JSON.stringify(now));
  step("sessionPages");
  const [, ...others] = await sessionPages(agent, environment.id, session.id);
  step("end");
  await end(talk, others, agent, environment.id);
  step("done");
}

// Says where it hangs.
setTimeout(() => {
  console.error(`not within ${process.argv[2]} s: ${doing}`);
  process.exit(1);
}, Number(process.argv[2]) * 1000).unref();
await main();
// The stream of a session that is gone may still be open.
process.exit(0);
