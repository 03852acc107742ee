// The page to chat on: one persona at a time, one answer at a time.

import { Link, LostError, RpcError, showLink } from "./link.js";
import { explain } from "./trouble.js";
import { TurnList } from "./turns.js";

const PAGE = 50;
const ids = [
  "persona", "fresh", "about", "older", "empty", "composer", "notice", "line", "send", "stop", "regenerate", "announce",
];
const ui = Object.fromEntries(ids.map((id) => [id, document.getElementById(id)]));
const link = new Link();
const turns = new TurnList(document.getElementById("turns"), document.getElementById("conversation"));

let personas = new Map();
let methods = new Set();
let before = null;
let loading = 0;
// The answer under way: {requestId, streamId, question, answer, stopped}.
let running = null;
// A line whose connection was lost while it was being answered.
let unconfirmed = null;

const storage = {
  conversation: (personaId) => localStorage.getItem(`persona.conversation.${personaId}`),
  keepConversation: (personaId, id) => localStorage.setItem(`persona.conversation.${personaId}`, id),
  dropConversation: (personaId) => localStorage.removeItem(`persona.conversation.${personaId}`),
};

const chosen = () => personas.get(ui.persona.value);

function notice(text, isBad = false) {
  ui.notice.textContent = text;
  ui.notice.classList.toggle("bad", isBad);
}

function refresh() {
  const ready = link.state === "open" && personas.has(ui.persona.value) && !loading;
  ui.persona.disabled = !personas.size || running !== null;
  ui.fresh.disabled = !ready || running !== null;
  ui.send.disabled = !ready;
  ui.send.hidden = running !== null;
  ui.stop.hidden = running === null;
  ui.stop.disabled = running?.stopped ?? true;
  const canRegenerate = methods.has("conversation.regenerate") && turns.last?.role === "assistant";
  ui.regenerate.hidden = !canRegenerate || !ready || running !== null;
  ui.empty.hidden = turns.turns.length > 0 || !ready;
  ui.older.hidden = before === null;
}

async function loadPersonas() {
  const { personas: list } = await link.call("persona.list");
  const kept = ui.persona.value || localStorage.getItem("persona.chosen");
  personas = new Map(list.map((persona) => [persona.id, persona]));
  ui.persona.replaceChildren(
    ...list.map(({ id, name, available }) => new Option(available ? name : `${name} (resting)`, id)),
  );
  if (personas.has(kept)) {
    ui.persona.value = kept;
  }
  ui.about.textContent = chosen()?.description ?? "There is no persona yet.";
}

// Somebody made, changed or deleted one.
async function followPersonas() {
  const id = ui.persona.value;
  await loadPersonas();
  if (ui.persona.value !== id && running === null) {
    await loadHistory();
  }
  refresh();
}

function shape(turn) {
  const name = turn.role === "user" ? "You" : chosen().name;
  return { role: turn.role, name, text: turn.content, finishReason: turn.finish_reason };
}

// The newest turns, or, with `older`, those before them.
async function loadHistory(older = false) {
  const persona = chosen();
  if (persona === undefined) {
    return;
  }
  loading += 1;
  refresh();
  try {
    const known = storage.conversation(persona.id);
    const where = known === null ? { persona_id: persona.id } : { conversation_id: known };
    const cursor = older ? { before } : {};
    const history = await link.call("conversation.history", { ...where, ...cursor, limit: PAGE });
    // By id: what is known of the personas may have been read anew meanwhile.
    if (ui.persona.value !== persona.id) {
      return;
    }
    if (!older) {
      turns.clear();
    }
    if (history.conversation_id !== null) {
      storage.keepConversation(persona.id, history.conversation_id);
    }
    turns.prepend(history.turns.map(shape));
    before = history.has_more ? history.next_before : null;
  } catch (error) {
    if (error instanceof RpcError && error.reason === "not_found" && storage.conversation(persona.id) !== null) {
      // Another user's, or of a database that is no longer there.
      storage.dropConversation(persona.id);
      await loadHistory();
      return;
    }
    throw error;
  } finally {
    loading -= 1;
    refresh();
  }
}

// Deleted elsewhere, or removed because nothing was said in it; or it is another user's.
function isGone(error) {
  return error instanceof RpcError && error.reason === "not_found" && error.data.field === "conversation_id";
}

// What a page does not await: a lost connection is told of elsewhere, anything else here.
function attempt(promise) {
  promise.catch((error) => {
    if (!(error instanceof LostError)) {
      notice(explain(error, chosen()?.name ?? "The persona"), true);
    }
  });
}

async function prepare() {
  // Whatever it tells of was on the connection before.
  notice("");
  const description = await link.call("rpc.discover");
  methods = new Set(description.methods.map(({ name }) => name));
  await link.call("events.subscribe", { topics: ["personas"] });
  await loadPersonas();
  await loadHistory();
  const lost = unconfirmed;
  unconfirmed = null;
  if (lost !== null && !turns.turns.slice(-2).some(({ role, text }) => role === "user" && text === lost)) {
    ui.line.value ||= lost;
    notice("Your last line was lost with the connection. You can send it again.", true);
  }
}

// The conversation to speak in; one is begun where there is none.
async function conversation(persona) {
  const known = storage.conversation(persona.id);
  if (known !== null) {
    return known;
  }
  const { conversation_id: id } = await link.call("persona.switch", { persona_id: persona.id });
  storage.keepConversation(persona.id, id);
  return id;
}

async function say(line) {
  const persona = chosen();
  const question = turns.add({ role: "user", name: "You", text: line });
  const clientMsgId = `${Date.now()}-${Math.random()}`;
  const params = { message: line, persona_id: persona.id, client_msg_id: clientMsgId };
  await answer(persona, question, "persona.chat", params);
}

async function regenerate() {
  const old = turns.last;
  turns.remove(old);
  await answer(chosen(), null, "conversation.regenerate", {}, old.text);
}

// One answer, from the request to its end. `replaced` is the text of the one before it.
async function answer(persona, question, method, params, replaced = null) {
  const turn = turns.add({ role: "assistant", name: persona.name });
  turn.running = true;
  const own = { requestId: null, streamId: null, question, answer: turn, stopped: false };
  running = own;
  const known = storage.conversation(persona.id);
  let isLost = false;
  notice(`${persona.name} is thinking…`);
  refresh();
  try {
    const where = { conversation_id: await conversation(persona), stream: true };
    const result = await link.call(method, { ...params, ...where }, { onId: (id) => (own.requestId = id) });
    turn.text = result.response;
    turn.end(result.finish_reason);
    storage.keepConversation(persona.id, result.conversation_id);
    notice("");
    ui.announce.textContent = `${persona.name}: ${result.response}`;
  } catch (error) {
    fail(own, error, persona, replaced);
    isLost = known !== null && isGone(error);
  } finally {
    running = null;
    refresh();
  }
  try {
    // Who talks tires, and may rest now.
    await loadPersonas();
  } catch (error) {
    // It is no trouble of the answer's, which is there. Who rests is seen the next time.
    if (!(error instanceof RpcError)) {
      throw error;
    }
  }
  if (isLost) {
    await beginAnother(persona, question);
  } else if (ui.persona.value !== persona.id) {
    // It was deleted while it spoke.
    await loadHistory();
  }
}

// The conversation is gone. A line that was refused with it is said again, to the same persona.
async function beginAnother(persona, question) {
  storage.dropConversation(persona.id);
  await loadHistory();
  if (question !== null && ui.line.value === question.text && ui.persona.value === persona.id) {
    send();
  }
}

function fail(own, error, persona, replaced) {
  const { answer: turn, question } = own;
  const wasStopped = error instanceof RpcError && error.reason === "cancelled";
  turn.end(wasStopped ? "cancelled" : "error");
  notice(wasStopped ? "Stopped." : explain(error, persona.name), !wasStopped);
  if (turn.text) {
    unconfirmed = error instanceof LostError && question !== null ? question.text : null;
    return;
  }
  // Nothing came, so nothing was kept: the line goes back to where it can be sent again.
  turns.remove(turn);
  if (replaced !== null) {
    turns.add({ role: "assistant", name: persona.name, text: replaced });
  } else if (question !== null) {
    turns.remove(question);
    ui.line.value ||= question.text;
  }
}

function stop() {
  if (running === null || running.requestId === null || running.stopped) {
    return;
  }
  running.stopped = true;
  refresh();
  attempt(link.call("stream.cancel", { request_id: running.requestId }));
}

function onStreamEvent({ event_type: type, stream_id: streamId, data }) {
  if (running === null) {
    return;
  }
  if (type === "stream_start") {
    running.streamId = streamId;
  } else if (streamId !== running.streamId) {
    return;
  }
  if (type === "stream_queued") {
    notice(data.position === 1 ? "Next in line for the model." : `Number ${data.position} in line for the model.`);
  } else if (type === "stream_chunk") {
    if (!running.answer.text) {
      notice("");
    }
    turns.append(running.answer, data.chunk);
  }
}

function send() {
  const line = ui.line.value.trim();
  if (line && running === null && !ui.send.disabled) {
    ui.line.value = "";
    attempt(say(line));
  }
}

async function startAfresh() {
  const persona = chosen();
  await link.call("session.clear");
  storage.dropConversation(persona.id);
  turns.clear();
  before = null;
  await conversation(persona);
  notice("");
  refresh();
  ui.line.focus();
}

link.addEventListener("open", () => attempt(prepare()));
link.addEventListener("state", refresh);
link.addEventListener("notification", ({ detail: { method, params } }) => {
  if (method === "stream.event") {
    onStreamEvent(params);
  } else if (method === "event" && params.topic === "personas") {
    attempt(followPersonas());
  }
});
ui.composer.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
ui.line.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    stop();
  }
});
ui.stop.addEventListener("click", stop);
ui.regenerate.addEventListener("click", () => attempt(regenerate()));
ui.fresh.addEventListener("click", () => attempt(startAfresh()));
ui.older.addEventListener("click", () => attempt(loadHistory(true)));
ui.persona.addEventListener("change", () => {
  localStorage.setItem("persona.chosen", ui.persona.value);
  ui.about.textContent = chosen().description;
  notice("");
  attempt(loadHistory());
});

showLink(link);
link.start();
