// A server of everything besides plain requests, in HTTP/2 and HTTP/1.1 on one port: events, uploads, downloads, WebSockets, redirects,
// objects that are signed for, and an echo of the credential in every form.
//
//   node protocols.mjs --cert FILE --key FILE --secrets FOLDER [--port 8443]
//
// The folder has the values `one` and `other`, which are sent as bearers, and `access-key-id` and `secret-access-key`. `GET /seen` says how
// often what was asked for, in which version and with which of them. No value is in a log, and in no answer but that of `/echo` and of the
// WebSocket.

import { createCipheriv, createHash, createHmac, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import { createSecureServer } from "node:http2";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { parseArgs } from "node:util";

const { values: words } = parseArgs({
  options: {
    cert: { type: "string" },
    key: { type: "string" },
    secrets: { type: "string" },
    port: { type: "string", default: "8443" },
  },
});
const SIZE = 100 << 20;
const PIECE = 1 << 20;
const MAX_OBJECT = 1 << 20;
// How long one request is held for another one, in milliseconds.
const HELD = 60_000;
const WEBSOCKET = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const secret = (name) => readFileSync(`${words.secrets}/${name}`, "utf8").trim();
const sha256 = (data) => createHash("sha256").update(data).digest("hex");
const hmac = (key, text) => createHmac("sha256", key).update(text).digest();

const seen = {};
const objects = new Map();

// Which credential a request has, and never its value.
function known(headers) {
  const sent = headers.authorization;
  if (sent === undefined) return "nothing";
  if (/lh[ps]_/.test(sent)) return "a placeholder";
  return ["one", "other"].find((name) => sent === `Bearer ${secret(name)}`) ?? "another credential";
}

function count(what, version, who) {
  const name = `${what} ${version} ${who}`;
  seen[name] = (seen[name] ?? 0) + 1;
}

function say(response, status, value, headers = {}) {
  response.writeHead(status, { "content-type": "application/json", ...headers });
  response.end(`${JSON.stringify(value)}\n`);
}

// What is waited for by a name, until somebody says that it is there.
const waits = new Map();
function wait(name) {
  if (!waits.has(name)) {
    const one = {};
    one.there = new Promise((resolve, reject) => {
      one.tell = resolve;
      setTimeout(reject, HELD, new Error(`nobody told of ${name}`)).unref();
    });
    one.there.catch(() => {});
    waits.set(name, one);
  }
  return waits.get(name);
}

// A stream that does not end before its reader has said, by another request, that the first event is there.
async function events(_request, response, query) {
  response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
  response.write("data: first\n\n");
  await wait(`first of ${query.get("id")}`).there;
  response.end("data: second\n\n");
}

function told(_request, response, query) {
  wait(`first of ${query.get("id")}`).tell();
  say(response, 200, {});
}

async function upload(request, response, query) {
  const hash = createHash("sha256");
  let size = 0;
  for await (const piece of request) {
    hash.update(piece);
    size += piece.length;
    if (query.has("id")) wait(`upload of ${query.get("id")}`).tell();
  }
  const { "content-length": length = null, "transfer-encoding": transfer = null } = request.headers;
  say(response, 200, { size, sha256: hash.digest("hex"), length, transfer });
}

// Answers once something of an upload is there that has not ended.
async function arrived(_request, response, query) {
  await wait(`upload of ${query.get("id")}`).there;
  say(response, 200, {});
}

// What does not compress, and is the same at each start.
function* content() {
  const cipher = createCipheriv("aes-256-ctr", Buffer.alloc(32, 7), Buffer.alloc(16));
  const zeros = Buffer.alloc(PIECE);
  for (let at = 0; at < SIZE; at += PIECE) yield cipher.update(zeros);
}
const contentHash = createHash("sha256");
for (const piece of content()) contentHash.update(piece);
const CONTENT_SHA256 = contentHash.digest("hex");

async function download(_request, response) {
  response.writeHead(200, { "content-length": SIZE, "content-type": "application/octet-stream", "x-sha256": CONTENT_SHA256 });
  await pipeline(Readable.from(content()), response);
}

// A value in the forms in which servers return what they were sent.
function forms(value) {
  const bytes = Buffer.from(value);
  return {
    raw: value,
    base64: bytes.toString("base64"),
    base64url: bytes.toString("base64url"),
    basic: Buffer.from(`me:${value}`).toString("base64"),
    url: encodeURIComponent(value),
    hex: bytes.toString("hex"),
    upper: bytes.toString("hex").toUpperCase(),
  };
}

// In headers and in a body whose pieces end in the middle of a value; in HTTP/2 in a trailer too.
function echo(request, response) {
  const value = request.headers.authorization.replace(/^Bearer /, "");
  const all = Object.entries(forms(value));
  response.writeHead(200, {
    "content-type": "text/plain",
    "set-cookie": `session=${value}`,
    ...Object.fromEntries(all.map(([name, form]) => [`x-echo-${name}`, form])),
  });
  if (request.httpVersion === "2.0") response.addTrailers({ "x-trailer": value });
  for (const [name, form] of all) {
    const middle = form.length >> 1;
    response.write(`${name}=${form.slice(0, middle)}`);
    response.write(`${form.slice(middle)}.\n`);
  }
  response.end("end\n");
}

// Signature Version 4, computed anew from the real key.
function signature(request, url, scope, names, payload) {
  const [date, region, service, end] = scope;
  const encode = (text) => encodeURIComponent(text).replace(/[!'()*]/g, (letter) => `%${letter.charCodeAt(0).toString(16).toUpperCase()}`);
  const path = url.pathname.split("/").map((part) => encode(decodeURIComponent(part))).join("/");
  const query = [...url.searchParams].map(([name, value]) => `${encode(name)}=${encode(value)}`).sort().join("&");
  const value = (name) => (name === "host" ? request.headers.host ?? request.headers[":authority"] : request.headers[name] ?? "");
  const headers = names.map((name) => `${name}:${value(name).trim().replace(/ +/g, " ")}\n`).join("");
  const canonical = [request.method, path, query, headers, names.join(";"), payload].join("\n");
  const text = ["AWS4-HMAC-SHA256", request.headers["x-amz-date"], scope.join("/"), sha256(canonical)].join("\n");
  const key = [date, region, service, end].reduce(hmac, `AWS4${secret("secret-access-key")}`);
  return hmac(key, text).toString("hex");
}

function refusal(request, url, body) {
  const sent = /^AWS4-HMAC-SHA256 Credential=([^/]+)\/([^,]+), ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})$/;
  const [, id, scope, names, given] = sent.exec(request.headers.authorization ?? "") ?? [];
  if (!id) return "AccessDenied";
  if (id !== secret("access-key-id")) return "InvalidAccessKeyId";
  const payload = request.headers["x-amz-content-sha256"] ?? sha256(body);
  if (payload !== "UNSIGNED-PAYLOAD" && payload !== sha256(body)) return "XAmzContentSHA256Mismatch";
  const time = (request.headers["x-amz-date"] ?? "").replace(/^(....)(..)(..T..)(..)(..Z)$/, "$1-$2-$3:$4:$5");
  if (!(Math.abs(Date.now() - Date.parse(time)) < 900_000)) return "RequestTimeTooSkewed";
  // What has a meaning counts only if it is signed.
  const meaning = Object.keys(request.headers).filter((name) => name.startsWith("x-amz-"));
  if (!["host", "x-amz-date", ...meaning].every((name) => names.split(";").includes(name))) return "AccessDenied";
  const expected = signature(request, url, scope.split("/"), names.split(";"), payload);
  return timingSafeEqual(Buffer.from(given), Buffer.from(expected)) ? null : "SignatureDoesNotMatch";
}

async function object(request, response, url) {
  const pieces = [];
  let size = 0;
  for await (const piece of request) {
    size += piece.length;
    if (size > MAX_OBJECT) return say(response, 413, {});
    pieces.push(piece);
  }
  const body = Buffer.concat(pieces);
  const code = refusal(request, url, body);
  count(`object ${request.method}`, request.httpVersion, code ?? "signed");
  if (code) return say(response, 403, { code });
  if (request.method === "PUT") objects.set(url.pathname, body);
  const found = objects.get(url.pathname);
  if (!found) return say(response, 404, { code: "NoSuchKey" });
  response.writeHead(200, { "content-type": "application/octet-stream" });
  response.end(request.method === "PUT" ? "" : found);
}

const ROUTES = {
  "/whoami": (request, response) => say(response, 200, { version: request.httpVersion, known: known(request.headers) }),
  "/redirect": (_request, response, query) => say(response, 302, {}, { location: query.get("to") }),
  "/events": events,
  "/events/told": told,
  "/upload": upload,
  "/upload/arrived": arrived,
  "/download": download,
  "/echo": echo,
};
// Whoever comes to these by a redirect may have no credential.
const OPEN = ["/whoami"];

async function answer(request, response) {
  const url = new URL(request.url, "https://server");
  const host = request.headers.host ?? request.headers[":authority"] ?? "";
  if (url.pathname === "/healthz") return response.end("ok\n");
  if (url.pathname === "/seen") return say(response, 200, seen);
  if (host.startsWith("s3.")) return object(request, response, url);
  const who = known(request.headers);
  count(url.pathname, request.httpVersion, who);
  const route = ROUTES[url.pathname];
  if (!route) return say(response, 404, {});
  if (!["one", "other"].includes(who) && !OPEN.includes(url.pathname)) return say(response, 401, {});
  return route(request, response, url.searchParams);
}

// Frames of less than 64 KiB, as servers send them.
function frame(kind, data) {
  const head = data.length < 126 ? [0x80 | kind, data.length] : [0x80 | kind, 126, data.length >> 8, data.length & 255];
  return Buffer.concat([Buffer.from(head), data]);
}

// The first frame of what has come, and the rest; nothing if it is not there as a whole.
function parse(bytes) {
  if (bytes.length < 2) return null;
  const long = (bytes[1] & 127) === 126;
  const begin = (long ? 4 : 2) + 4;
  if (bytes.length < begin) return null;
  const length = long ? bytes.readUInt16BE(2) : bytes[1] & 127;
  if (bytes.length < begin + length) return null;
  const mask = bytes.subarray(begin - 4, begin);
  const data = Buffer.from(bytes.subarray(begin, begin + length)).map((byte, at) => byte ^ mask[at % 4]);
  return { kind: bytes[0] & 15, data: Buffer.from(data), rest: bytes.subarray(begin + length) };
}

// Says how it was asked for, returns each text with `echo: ` before it, and to `secret` the credential in every form.
function websocket(request, socket, head) {
  const who = known(request.headers);
  count("websocket", request.httpVersion, who);
  socket.on("error", () => {});
  if (who !== "one") return socket.end("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
  const accept = createHash("sha1").update(request.headers["sec-websocket-key"] + WEBSOCKET).digest("base64");
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`);
  const text = (data) => socket.write(frame(1, Buffer.from(data)));
  text(JSON.stringify({ known: who, extensions: request.headers["sec-websocket-extensions"] ?? null }));
  let pending = head;
  const read = (more) => {
    pending = Buffer.concat([pending, more]);
    for (let got = parse(pending); got; got = parse(pending)) {
      pending = got.rest;
      if (got.kind === 8) socket.end(frame(8, got.data));
      else if (got.data.toString() === "secret") text(JSON.stringify(forms(secret("one"))));
      else text(`echo: ${got.data}`);
    }
  };
  socket.on("data", read);
  read(Buffer.alloc(0));
}

const server = createSecureServer({ allowHTTP1: true, cert: readFileSync(words.cert), key: readFileSync(words.key) });
server.on("request", (request, response) => {
  answer(request, response).catch((error) => {
    console.error(`${request.method} ${request.url.split("?")[0]} ended with ${error.message}`);
    response.stream ? response.stream.close() : response.destroy();
  });
});
server.on("upgrade", websocket);
// A client that goes is no failure of this server.
server.on("sessionError", (error) => console.error(`a connection ended with ${error.message}`));
server.on("tlsClientError", () => {});
process.on("SIGTERM", () => process.exit());
server.listen(Number(words.port));
