// One WebSocket with JSON-RPC on it, which comes back by itself when it is lost.
//
// Events: "state" ({state, text}), "open", "lost", "notification" ({method, params}).
// States: connecting, open, waiting (for the next try), token (somebody has to give one).

const FIRST_DELAY_MS = 500;
const LAST_DELAY_MS = 15000;
const OPEN_WITHIN_MS = 10000;
const TOKEN_KEY = "persona.token";
const POLICY_VIOLATION = 1008;

const REFUSALS = {
  draining: "The server is shutting down.",
  max_connections: "The server is full.",
  memory: "The server is short of memory.",
  database: "The server cannot reach its database.",
};

export class RpcError extends Error {
  constructor({ code, message, data }) {
    super(message);
    this.code = code;
    this.data = data ?? {};
    this.reason = this.data.reason ?? "";
  }
}

export class LostError extends Error {}

async function fetchJson(path) {
  const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(OPEN_WITHIN_MS) });
  return response.json();
}

export class Link extends EventTarget {
  #socket = null;
  #calls = new Map();
  #nextId = 1;
  #delayMs = FIRST_DELAY_MS;
  #timer = 0;
  #attempt = 0;

  state = "connecting";

  start() {
    const wake = () => this.state === "waiting" && !document.hidden && this.retry();
    addEventListener("online", wake);
    document.addEventListener("visibilitychange", wake);
    this.#connect();
  }

  // Try at once what would be tried later, or only by somebody's decision.
  retry() {
    if (this.state === "waiting" || this.state === "token") {
      this.#connect();
    }
  }

  // Kept for as long as the tab is open, so that a reload does not ask again.
  giveToken(token) {
    sessionStorage.setItem(TOKEN_KEY, token);
    this.#connect();
  }

  // The answer. Rejects with `RpcError`, or `LostError` when the connection went first.
  call(method, params = {}, { onId = () => {} } = {}) {
    return new Promise((resolve, reject) => {
      if (this.state !== "open") {
        reject(new LostError("not connected"));
        return;
      }
      const id = this.#nextId++;
      this.#calls.set(id, { resolve, reject });
      onId(id);
      this.#socket.send(JSON.stringify({ jsonrpc: "2.0", id, method, params }));
    });
  }

  #enter(state, text) {
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, text } }));
  }

  async #connect() {
    clearTimeout(this.#timer);
    const attempt = ++this.#attempt;
    this.#enter("connecting", "Connecting…");
    let config;
    try {
      config = await fetchJson("/config.json");
    } catch {
      if (attempt === this.#attempt) {
        this.#wait("The server does not answer.");
      }
      return;
    }
    if (attempt !== this.#attempt) {
      return;
    }
    const token = config.token_required ? sessionStorage.getItem(TOKEN_KEY) : null;
    if (config.token_required && !token) {
      this.#enter("token", "A token is needed.");
      return;
    }
    try {
      this.#open(config.url, token ? ["mcp", `persona.auth.${token}`] : ["mcp"], Boolean(token));
    } catch {
      // What a sub-protocol cannot carry is no token of this server's either.
      this.#refuseToken("A token has no spaces and no such characters.");
    }
  }

  #open(url, protocols, hasToken) {
    const socket = new WebSocket(url, protocols);
    const patience = setTimeout(() => socket.close(), OPEN_WITHIN_MS);
    let opened = false;
    this.#socket = socket;
    socket.onopen = () => {
      clearTimeout(patience);
      opened = true;
      this.#delayMs = FIRST_DELAY_MS;
      this.#enter("open", "Connected");
      this.dispatchEvent(new Event("open"));
    };
    socket.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    socket.onclose = ({ code, reason }) => {
      clearTimeout(patience);
      if (this.#socket !== socket) {
        return;
      }
      this.#socket = null;
      this.#lose();
      if (!opened) {
        this.#explain(hasToken);
      } else if (code === POLICY_VIOLATION && hasToken && reason.includes("token")) {
        this.#refuseToken("The token is no longer valid.");
      } else {
        this.#wait(reason ? `Connection lost: ${reason}.` : "Connection lost.");
      }
    };
  }

  // A browser does not tell why a WebSocket was refused; the probe does, or it was the token.
  async #explain(hasToken) {
    const attempt = this.#attempt;
    let readiness;
    try {
      readiness = await fetchJson("/readyz");
    } catch {
      readiness = { ready: false, reason: "" };
    }
    if (attempt !== this.#attempt) {
      return;
    }
    if (!readiness.ready) {
      this.#wait(REFUSALS[readiness.reason] ?? "The server does not answer.");
    } else if (hasToken) {
      this.#refuseToken("The server does not know this token.");
    } else {
      this.#wait(`The server refuses ${location.origin}: see server.allowed_origins and server.public_url.`);
    }
  }

  #refuseToken(problem) {
    sessionStorage.removeItem(TOKEN_KEY);
    this.#enter("token", problem);
  }

  #wait(problem) {
    // Spread, so that the pages of a server that restarts do not all come at once.
    const delayMs = this.#delayMs * (0.5 + Math.random() / 2);
    this.#delayMs = Math.min(this.#delayMs * 2, LAST_DELAY_MS);
    this.#timer = setTimeout(() => this.#connect(), delayMs);
    this.#enter("waiting", problem);
  }

  #lose() {
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    for (const { reject } of calls) {
      reject(new LostError("the connection was lost"));
    }
    this.dispatchEvent(new Event("lost"));
  }

  #receive(message) {
    if (message.method !== undefined) {
      this.dispatchEvent(new CustomEvent("notification", { detail: message }));
      return;
    }
    const call = this.#calls.get(message.id);
    if (call !== undefined) {
      this.#calls.delete(message.id);
      if (message.error) {
        call.reject(new RpcError(message.error));
      } else {
        call.resolve(message.result);
      }
    }
  }
}

// Shows the link's state in the page's head, and asks for a token where one is needed.
export function showLink(link) {
  const [label, retry, dialog, form, field, problem] = [
    "link", "retry", "token-dialog", "token-form", "token", "token-problem",
  ].map((id) => document.getElementById(id));
  let asked = false;
  link.addEventListener("state", ({ detail: { state, text } }) => {
    label.textContent = text;
    label.dataset.state = state;
    retry.hidden = state !== "waiting" && state !== "token";
    if (state === "token") {
      problem.textContent = asked ? text : "";
      field.value = "";
      if (!dialog.open) {
        dialog.showModal();
      }
    } else if (dialog.open && state === "open") {
      dialog.close();
    }
  });
  retry.addEventListener("click", () => link.retry());
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    asked = true;
    link.giveToken(field.value.trim());
  });
}
