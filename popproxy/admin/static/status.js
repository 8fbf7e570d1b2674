"use strict";

// Everything that comes from popproxy is put in as text, never as HTML: names are chosen by strangers.
const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const SIGNS = { ok: "\u2714", warn: "\u25b2", bad: "\u2716" };
const STATES = { up: "ok", down: "bad", drain: "warn", maintenance: "warn" };
const PLACES = { ok: "\u25cf", warn: "\u25b2", bad: "\u25a0" };

function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function count(number) {
  return Math.round(number).toLocaleString("en").replaceAll(",", "\u202f");
}

function rate(number) {
  return number >= 100 ? count(number) : number.toFixed(number >= 10 || number === 0 ? 0 : 1);
}

function octets(number) {
  let unit = 0;
  while (number >= 999.5 && unit < 4) { number /= 1000; unit += 1; }
  return `${unit && number < 100 ? number.toFixed(1) : Math.round(number)}\u202f${["B", "kB", "MB", "GB", "TB"][unit]}`;
}

function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

function words(name) {
  return name.replaceAll("_", " ");
}

function chip(kind, text) {
  const made = make("span", `chip ${kind}`);
  const sign = make("span", "", `${PLACES[kind]} `);
  sign.setAttribute("aria-hidden", "true");
  made.append(sign, text);
  return made;
}

// Rows of cells; a cell is a text, a node, or [text, class].
function fill(id, rows, nothing) {
  const table = at(id);
  const heads = [...table.querySelectorAll("thead th")];
  table.classList.toggle("stack", heads.length > 4);
  const body = document.createElement("tbody");
  for (const cells of rows) {
    const row = body.insertRow();
    cells.forEach((cell, number) => {
      const [value, className] = Array.isArray(cell) ? cell : [cell, ""];
      const made = row.insertCell();
      made.className = `${heads[number].className} ${className}`.trim();
      made.dataset.head = heads[number].textContent;
      made.append(value);
    });
  }
  if (!rows.length) {
    const cell = body.insertRow().insertCell();
    cell.colSpan = heads.length;
    cell.className = "alone";
    cell.textContent = nothing;
  }
  table.tBodies[0].replaceWith(body);
}

function barred(text, share) {
  if (!share) return text;
  const cell = document.createDocumentFragment();
  const bar = make("span", "bar");
  bar.style.width = `${Math.max(1, Math.round(share * 100))}%`;
  cell.append(text, bar);
  return cell;
}

function sparkline(values, label) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 300 50");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  const top = Math.max(...values, 1e-9);
  const step = 300 / Math.max(1, values.length - 1);
  const points = values.map((value, n) => `${(n * step).toFixed(1)},${(47 - (value / top) * 44).toFixed(1)}`);
  const area = document.createElementNS(SVG, "polygon");
  area.setAttribute("points", `0,50 ${points.join(" ")} ${((values.length - 1) * step).toFixed(1)},50`);
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", points.join(" "));
  svg.append(area, line);
  return svg;
}

function card(title, value, more, values, show, length) {
  const made = make("article", "card");
  made.append(make("h2", "", title), make("p", "value", value), make("p", "more", more));
  if (values.length > 1) {
    const most = show(Math.max(...values));
    made.append(sparkline(values, `${title} in the last ${length}: at most ${most}, now ${value}`));
    const ends = make("p", "span");
    ends.append(make("span", "", `${length} ago`), make("span", "", `at most ${most}`));
    made.append(ends);
  }
  return made;
}

function cards(status) {
  const { sessions, history, rates } = status;
  const length = span(history.interval * Math.max(1, history.sessions.length - 1));
  const row = (name) => history[name];
  at("cards").replaceChildren(
    card("Sessions", count(sessions.transaction), `${count(sessions.authorization)} logging in, ${count(sessions.update)} in UPDATE`,
      row("sessions"), count, length),
    card("Logins a second", rate(rates.logins), `${count(status.logins.success)} since the start`, row("logins"), rate, length),
    card("Failed logins a second", rate(rates.failures),
      `${count(status.logins.failure)} refused, ${count(status.logins.error)} not judged`, row("failures"), rate, length),
    card("Traffic a second", octets(rates.octets), `${octets(status.octets.to_client)} to clients`, row("octets"), octets, length),
  );
}

function certificate(listener, now) {
  if (!listener.certificate_expires) return ["none", "none"];
  const days = Math.floor((listener.certificate_expires - now) / 86400);
  if (days < 0) return chip("bad", "has expired");
  return days < 21 ? chip(days < 7 ? "bad" : "warn", `expires in ${days} d`) : `${days} days left`;
}

function show(status) {
  document.title = `${SIGNS[status.health]} popproxy: ${status.verdict}`;
  at("about").textContent = `${status.version}, up ${span(status.seconds)}`;
  const banner = at("health");
  if (banner.dataset.said !== JSON.stringify([status.verdict, status.reasons])) { // or screen readers say it again and again
    banner.dataset.said = JSON.stringify([status.verdict, status.reasons]);
    banner.className = `banner ${status.health}`;
    at("sign").textContent = SIGNS[status.health];
    at("verdict").textContent = status.verdict;
    at("reasons").replaceChildren(...status.reasons.map((reason) => make("li", "", reason)));
  }
  cards(status);
  fill("servers", status.backends.map((one) => [
    one.pool, one.server, chip(STATES[one.state] || "warn", one.state), one.since ? span(status.at - one.since) : ["", "none"],
    one.limit ? `${count(one.sessions)} of ${count(one.limit)}` : count(one.sessions), one.why ? one.why : ["", "none"],
  ]), "no servers");
  fill("listeners", status.listeners.map((one) => [
    one.name, one.addresses.join(", "), one.protocol, count(one.sessions), count(one.connections), count(one.refused),
    certificate(one, status.at),
  ]), "no listeners");
  const methods = Object.entries(status.mechanisms).sort((a, b) => b[1].success - a[1].success);
  const most = Math.max(1, ...methods.map(([, by]) => by.success));
  fill("methods", methods.map(([name, by]) => [barred(name, by.success / most), count(by.success), count(by.failure), count(by.error)]),
    "no login yet");
  const failures = Object.entries(status.failures).sort((a, b) => b[1] - a[1]);
  fill("failures", failures.map(([name, number]) => [barred(words(name), number / failures[0][1]), count(number)]), "no failed login");
  totals(status);
  at("locked").hidden = status.sessions_listed;
  at("unlock").hidden = !status.sessions_listed;
}

function totals(status) {
  const waiting = Object.entries(status.waiting).map(([pool, logins]) => `${count(logins)} for ${pool}`);
  const rows = {
    "Messages fetched": count(status.messages.RETR),
    "Deletions committed": count(status.deletions.committed),
    "Deletions undone": count(status.deletions.abandoned),
    "UPDATE unknown or refused": count(status.updates.unknown + status.updates.refused),
    "Audit log": status.audit.healthy ? "written" : "CANNOT BE WRITTEN",
    "Audit records lost": count(status.audit.dropped),
    ...(waiting.length ? { "Logins waiting for a place": waiting.join(", ") } : {}),
  };
  at("totals").replaceChildren(...Object.entries(rows).map(([name, value]) => {
    const pair = make("div");
    pair.append(make("dt", "", name), make("dd", "", value));
    return pair;
  }));
}

function live(kind, text) {
  at("live").className = `chip ${kind}`;
  at("live").textContent = text;
}

function watch() {
  const events = new EventSource("/api/events");
  let latest = Date.now();
  events.onmessage = (message) => {
    latest = Date.now();
    live("ok", "live");
    show(JSON.parse(message.data));
  };
  events.onerror = () => {
    live("bad", "connection lost, trying again");
    if (events.readyState === EventSource.CLOSED) { events.close(); setTimeout(watch, 3000); }
  };
  const timer = setInterval(() => {
    if (events.readyState === EventSource.CLOSED) clearInterval(timer);
    else if (Date.now() - latest > 15000) live("bad", `nothing heard for ${span((Date.now() - latest) / 1000)}`);
  }, 1000);
}

let token = "";

async function list() {
  at("said").textContent = "asking";
  let answer;
  try {
    answer = await fetch("/api/sessions", { headers: { Authorization: `Bearer ${token}` } });
  } catch {
    at("said").textContent = "popproxy does not answer";
    return;
  }
  if (!answer.ok) {
    forget();
    at("said").textContent = answer.status === 401 ? "That is not the token." : `refused (${answer.status}), try again later`;
    return;
  }
  const { sessions } = await answer.json();
  at("said").textContent = `${count(sessions.length)} session${sessions.length === 1 ? "" : "s"} at ${new Date().toLocaleTimeString()}`;
  at("token").value = "";
  at("token").required = false;
  at("token").hidden = document.querySelector("label[for=token]").hidden = true;
  at("forget").hidden = false;
  document.querySelector("#unlock button").textContent = "Refresh";
  at("sessions").hidden = false;
  fill("sessions", sessions.map((one) => [
    one.user, one.address, one.mechanism, one.tls || "none", one.backend, span(one.seconds), octets(one.octets.to_client), one.id,
  ]), "nobody is logged in");
}

function forget() {
  token = "";
  at("token").hidden = document.querySelector("label[for=token]").hidden = false;
  at("token").required = true;
  at("forget").hidden = true;
  at("sessions").hidden = true;
  at("said").textContent = "";
  document.querySelector("#unlock button").textContent = "Show sessions";
}

at("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value || token;
  list();
});
at("forget").addEventListener("click", forget);
watch();
