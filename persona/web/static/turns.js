// The turns of a conversation as elements. Whatever was said is inserted as text, never as markup.

const ENDINGS = {
  cancelled: "stopped",
  timeout: "ran out of time",
  error: "broke off",
  disconnected: "broke off",
  length: "reached its length limit",
};
const NEAR_THE_END_PX = 80;

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

class Turn {
  constructor({ role, name, text = "" }) {
    this.role = role;
    this.element = element("li", role === "user" ? "turn mine" : "turn");
    this.textNode = document.createTextNode(text);
    const line = element("p", "text");
    line.append(this.textNode);
    this.note = element("p", "note");
    this.note.hidden = true;
    this.element.append(element("h2", "", name), line, this.note);
  }

  get text() {
    return this.textNode.data;
  }

  set text(text) {
    this.textNode.data = text;
  }

  set running(running) {
    this.element.classList.toggle("running", running);
    // Read out once, when it is whole: see `announce` in chat.js.
    this.element.setAttribute("aria-busy", String(running));
  }

  end(finishReason) {
    this.running = false;
    this.note.textContent = ENDINGS[finishReason] ?? "";
    this.note.hidden = !this.note.textContent;
  }
}

export class TurnList {
  #list;
  #scroller;
  turns = [];

  constructor(list, scroller) {
    this.#list = list;
    this.#scroller = scroller;
  }

  get last() {
    return this.turns.at(-1);
  }

  clear() {
    this.turns = [];
    this.#list.replaceChildren();
  }

  add(data) {
    const turn = new Turn(data);
    this.turns.push(turn);
    this.#list.append(turn.element);
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
    return turn;
  }

  // Older ones, oldest first, before those that are there; what is being read stays where it is.
  prepend(many) {
    const made = many.map(({ finishReason, ...data }) => {
      const turn = new Turn(data);
      turn.end(finishReason);
      return turn;
    });
    const fromEnd = this.#scroller.scrollHeight - this.#scroller.scrollTop;
    this.turns.unshift(...made);
    this.#list.prepend(...made.map((turn) => turn.element));
    this.#scroller.scrollTop = this.#scroller.scrollHeight - fromEnd;
  }

  remove(turn) {
    this.turns = this.turns.filter((other) => other !== turn);
    turn.element.remove();
  }

  // Follows the text unless the reader has scrolled up.
  append(turn, text) {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    const follows = scrollHeight - scrollTop - clientHeight < NEAR_THE_END_PX;
    turn.textNode.appendData(text);
    if (follows) {
      this.#scroller.scrollTop = this.#scroller.scrollHeight;
    }
  }
}
