// Figures as people read them. What is not known is a dash.

export const UNKNOWN = "–";

const known = (value) => typeof value === "number" && Number.isFinite(value);

function digits(value) {
  return Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
}

export function number(value, most = digits(value ?? 0)) {
  return known(value) ? value.toLocaleString("en", { maximumFractionDigits: most }) : UNKNOWN;
}

export function count(value) {
  return number(value, 0);
}

export function seconds(value) {
  if (!known(value)) {
    return UNKNOWN;
  }
  if (value < 1) {
    return `${number(value * 1000)} ms`;
  }
  return value < 100 ? `${number(value)} s` : `${number(value / 60, 1)} min`;
}

export function bytes(value) {
  if (!known(value)) {
    return UNKNOWN;
  }
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = value;
  let unit = 0;
  while (Math.abs(size) >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${number(size, unit < 2 ? 0 : 1)} ${units[unit]}`;
}

export function share(value) {
  return known(value) ? `${number(value * 100, value < 0.1 ? 2 : 1)} %` : UNKNOWN;
}

export function span(value) {
  if (!known(value)) {
    return UNKNOWN;
  }
  const parts = [
    [Math.floor(value / 86400), "d"],
    [Math.floor(value / 3600) % 24, "h"],
    [Math.floor(value / 60) % 60, "min"],
    [Math.floor(value) % 60, "s"],
  ];
  const first = Math.max(0, parts.findIndex(([amount]) => amount > 0));
  const start = parts.some(([amount]) => amount > 0) ? first : parts.length - 1;
  return parts.slice(start, start + 2).map(([amount, unit]) => `${amount} ${unit}`).join(" ");
}
