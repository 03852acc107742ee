// The page for the operator: the server's figures, once a second, and a few minutes of their past.

import { bars, Chart } from "./chart.js";
import { bytes, count, number, seconds, share, span, UNKNOWN } from "./format.js";
import { Link, RpcError, showLink } from "./link.js";

const TOPIC = "system.metrics";
// Figures come once a second; three that do not come are no accident.
const STALE_S = 3.5;
const BUSY = 0.7;
const FULL = 0.9;

const at = (id) => document.getElementById(id);
const link = new Link();
const charts = {
  connections: new Chart(at("connections-chart"), count, 10),
  requests: new Chart(at("requests-chart"), number, 1),
  latency: new Chart(at("latency-chart"), seconds, 0.005),
  memory: new Chart(at("memory-chart"), bytes, 1e6),
  model: new Chart(at("model-chart"), count, 4),
};
let shownAt = null;
let shownTime = "";

const clock = () => performance.now() / 1000;
const sum = (counts) => Object.values(counts ?? {}).reduce((total, amount) => total + amount, 0);

function write(texts) {
  for (const [id, text] of Object.entries(texts)) {
    at(id).textContent = text;
  }
}

function meter([label, used, limit, unit]) {
  const row = document.createElement("div");
  const name = document.createElement("span");
  name.textContent = label;
  const figure = document.createElement("span");
  figure.textContent = `${count(used)} of ${count(limit)} ${unit}`;
  row.append(name, figure);
  const gauge = document.createElement("meter");
  Object.assign(gauge, { max: limit || 1, value: used ?? 0, low: limit * BUSY, high: limit * FULL, optimum: 0 });
  gauge.setAttribute("aria-label", label);
  const whole = document.createElement("div");
  whole.className = "meter";
  whole.append(row, gauge);
  return whole;
}

function showAlerts(alerts) {
  const texts = alerts.map(({ text, since }) => `${text} (since ${new Date(since).toLocaleTimeString()})`);
  const list = at("alert-list");
  // Left alone where nothing changed: it is read out.
  if (list.dataset.shown !== texts.join("\n")) {
    list.dataset.shown = texts.join("\n");
    list.replaceChildren(
      ...texts.map((text) => {
        const item = document.createElement("li");
        item.textContent = text;
        return item;
      }),
    );
  }
  at("calm").hidden = texts.length > 0;
  at("alerts").toggleAttribute("data-raised", texts.length > 0);
}

function showMethods(methods) {
  const rows = Object.entries(methods).sort(([, one], [, other]) => other.count - one.count);
  at("methods").replaceChildren(
    ...rows.map(([name, figures]) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = name;
      const cells = [
        count(figures.count),
        number(figures.per_second),
        ...[figures.p50, figures.p95, figures.p99].map(seconds),
      ].map((text) => {
        const cell = document.createElement("td");
        cell.textContent = text;
        return cell;
      });
      row.append(head, ...cells);
      return row;
    }),
  );
}

function showTimes(buckets) {
  // Only the part where something is; the bounds before and after say nothing.
  const first = buckets.findIndex((bucket) => bucket.count > 0);
  const last = buckets.findLastIndex((bucket) => bucket.count > 0);
  const entries = buckets
    .map(({ le, count: amount }, index) => [
      le === null ? `over ${seconds(buckets[index - 1]?.le ?? null)}` : `up to ${seconds(le)}`,
      amount,
    ])
    .slice(first < 0 ? buckets.length : first, last + 1);
  bars(at("model-times"), entries, count, "No answers in this window");
}

function availability(available) {
  return { true: "answers", false: "does not answer" }[available] ?? "not known yet";
}

function limit(value) {
  return value ? bytes(value) : "off";
}

function showFigures(data) {
  const { connections, requests, memory, handlers, database, background, model } = data;
  write({
    "connections-open": count(connections.open),
    "connections-max": count(connections.max),
    "connections-half-open": count(connections.half_open),
    "connections-refused": count(sum(connections.refused)),
    "connections-closed": count(sum(connections.closed)),
    "requests-rate": number(requests.per_second),
    "requests-total": count(requests.total),
    "requests-failed": share(requests.error_ratio),
    "latency-avg": seconds(requests.latency_s.avg),
    "latency-p50": seconds(requests.latency_s.p50),
    "latency-p95": seconds(requests.latency_s.p95),
    "latency-p99": seconds(requests.latency_s.p99),
    "loop-lag": seconds(data.loop.max_lag_s),
    "memory-resident": bytes(memory.resident_bytes),
    "memory-growth": memory.growth_bytes_per_s === null ? UNKNOWN : `${bytes(memory.growth_bytes_per_s)}/s`,
    "memory-soft": limit(memory.soft_limit_bytes),
    "memory-hard": limit(memory.hard_limit_bytes),
    "model-queued": count(model.queued),
    "model-available": availability(model.available),
    "model-rate": number(model.tokens_per_second),
    "model-first-token": `${seconds(model.first_token_s.p50)} / ${seconds(model.first_token_s.p95)}`,
    "model-p50": seconds(model.seconds.p50),
    "model-p95": seconds(model.seconds.p95),
    "model-p99": seconds(model.seconds.p99),
    "database-writes": count(database.write_queue),
    "database-reads": count(database.read_queue),
    "database-batch": number(database.mean_batch),
    "background-dropped": count(background.dropped),
    window: span(data.window_s),
    uptime: span(data.uptime_seconds),
  });
  at("pools").replaceChildren(
    ...[
      ["Handlers", handlers.running, handlers.limit, "running"],
      ["Database readers", database.readers_busy, database.readers, "busy"],
      ["Model slots", model.running, model.slots, "busy"],
      ["Model queue", model.queued, model.limit, "waiting"],
      ["Background jobs", background.queued, background.limit, "waiting"],
    ].map(meter),
  );
  const errors = Object.entries(data.errors).sort(([, one], [, other]) => other - one);
  bars(at("errors"), errors, count, "No errors in this window");
  showTimes(model.seconds.buckets ?? []);
  showMethods(requests.by_method);
  showAlerts(data.alerts);
}

function showHistory({ connections, requests, memory, model }) {
  const now = clock();
  charts.connections.add(now, connections.open);
  charts.requests.add(now, requests.per_second);
  charts.latency.add(now, requests.latency_s.p95);
  charts.memory.add(now, memory.resident_bytes);
  charts.model.add(now, model.queued);
}

function showAge() {
  if (shownAt === null) {
    return;
  }
  const isStale = clock() - shownAt > STALE_S;
  at("figures").classList.toggle("stale", isStale);
  // The time, not the age: a text that changes every second would be read out every second.
  const text = isStale ? `These figures are from ${shownTime}; no newer ones come.` : "";
  if (at("age").textContent !== text) {
    at("age").textContent = text;
  }
}

async function subscribe() {
  try {
    await link.call("events.subscribe", { topics: [TOPIC] });
  } catch (error) {
    if (error instanceof RpcError) {
      at("age").textContent = `The server gives no figures: ${error.message}.`;
    }
  }
}

link.addEventListener("open", subscribe);
link.addEventListener("notification", ({ detail: { method, params } }) => {
  if (method === "event" && params.topic === TOPIC && params.type === TOPIC) {
    showFigures(params.data);
    showHistory(params.data);
    shownAt = clock();
    shownTime = new Date().toLocaleTimeString();
    showAge();
  }
});
setInterval(showAge, 1000);
showLink(link);
link.start();
