// Numbers for people, as the report writes them: few digits, one unit, a narrow space before it.

const NARROW = "\u202f";

/** To so many significant digits, in plain notation with grouped thousands: 213 to two digits is 210. */
export function significant(value, digits = 2) {
  if (!value) return "0";
  const places = digits - 1 - Math.floor(Math.log10(Math.abs(value)));
  const shown = Math.max(0, places);
  const rounded = Number(value.toPrecision(digits));
  return rounded.toLocaleString("en-US", { minimumFractionDigits: shown, maximumFractionDigits: shown })
    .replace("-", "\u2212");
}

function laddered(value, digits, steps) {
  const rounded = value ? Number(value.toPrecision(digits)) : 0;
  const [size, unit] = steps.find(([size]) => Math.abs(rounded) >= size) ?? steps.at(-1);
  return [significant(value / size, digits), unit];
}

export function seconds(value) {
  const [text, unit] = laddered(value, 2, [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]]);
  return text + NARROW + unit;
}

export function bytes(value, digits = 3) {
  const [text, unit] = laddered(value, digits, [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]]);
  return (text.includes(".") ? text.replace(/0+$/, "").replace(/\.$/, "") : text) + NARROW + unit;
}

export function joules(value) {
  return significant(value, 2) + NARROW + "J";
}

export function rate(value) {
  return significant(value, 2) + NARROW + "tokens/s";
}

export function count(value, one, many = one + "s") {
  return `${value.toLocaleString("en-US")} ${value === 1 ? one : many}`;
}

/** `1/14`, `62 %`, `3.1 times`. */
export function ratio(value) {
  if (value > 1.05) return `${significant(value)} times`;
  return value < 0.1 ? `1/${significant(1 / value)}` : `${significant(value * 100)}${NARROW}%`;
}

/** `14 March 2026, 09:41`. */
export function when(at) {
  return new Date(at * 1000).toLocaleString("en-GB",
    { day: "numeric", month: "long", year: "numeric", hour: "2-digit", minute: "2-digit" });
}

/** A long name with its middle left out: both ends tell models apart. */
export function clip(name, longest) {
  if (name.length <= longest) return name;
  const keep = longest - 1;
  return `${name.slice(0, Math.floor(keep / 2))}…${name.slice(name.length - Math.ceil(keep / 2))}`;
}
