// Small drawings in SVG: a line with its history, and bars.

const SVG = "http://www.w3.org/2000/svg";
const HISTORY_S = 300;
// A longer pause is drawn as a gap: nothing is known of it.
const GAP_S = 5;
const WIDTH = 300;
const HEIGHT = 64;

function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    made.setAttribute(name, value);
  }
  return made;
}

function drawing(width, height) {
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
}

// The stretches without a gap, as points on the drawing; the newest at its right end.
function stretches(points, now, top) {
  const found = [];
  let previous = -Infinity;
  for (const { at, value } of points) {
    if (at - previous > GAP_S) {
      found.push([]);
    }
    previous = at;
    const x = WIDTH * (1 - (now - at) / HISTORY_S);
    found.at(-1).push([x.toFixed(1), (HEIGHT - 2 - (value / top) * (HEIGHT - 6)).toFixed(1)]);
  }
  return found;
}

export class Chart {
  #format;
  #drawing = drawing(WIDTH, HEIGHT);
  #peak = document.createElement("span");
  #points = [];

  // `least` is the smallest span from bottom to top: noise around nothing should look like nothing.
  constructor(place, format, least) {
    this.#format = format;
    this.least = least;
    const caption = document.createElement("p");
    const start = document.createElement("span");
    start.textContent = "5 min";
    const end = document.createElement("span");
    end.textContent = "now";
    caption.append(start, this.#peak, end);
    place.append(this.#drawing, caption);
  }

  // A figure, in seconds of the page's own clock; null where it is not known.
  add(at, value) {
    if (typeof value === "number") {
      this.#points.push({ at, value });
    }
    this.#points = this.#points.filter((point) => at - point.at <= HISTORY_S);
    this.#draw(at);
  }

  #draw(now) {
    const peak = this.#points.reduce((most, { value }) => Math.max(most, value), 0);
    const top = Math.max(peak, this.least);
    this.#peak.textContent = this.#points.length ? `peak ${this.#format(peak)}` : "";
    const parts = [svg("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT - 1, y2: HEIGHT - 1 })];
    for (const points of stretches(this.#points, now, top)) {
      const line = points.map(([x, y]) => `${x},${y}`).join(" L");
      const [firstX] = points[0];
      const [lastX] = points.at(-1);
      parts.push(svg("path", { class: "area", d: `M${firstX},${HEIGHT - 1} L${line} L${lastX},${HEIGHT - 1} Z` }));
      parts.push(svg("path", { class: "line", d: `M${line}` }));
    }
    this.#drawing.replaceChildren(...parts);
  }
}

// One bar for each of `entries` ([label, amount]); `nothing` where there are none.
export function bars(place, entries, format, nothing) {
  if (!entries.length) {
    const text = document.createElement("p");
    text.textContent = nothing;
    place.replaceChildren(text);
    return;
  }
  const most = Math.max(...entries.map(([, amount]) => amount), 1);
  place.replaceChildren(
    ...entries.flatMap(([label, amount]) => {
      const name = document.createElement("span");
      name.textContent = label;
      const bar = drawing(100, 10);
      bar.append(svg("rect", { width: (amount / most) * 100, height: 10 }));
      const figure = document.createElement("span");
      figure.textContent = format(amount);
      return [name, bar, figure];
    }),
  );
}
