// Numbers, times and digests as people read them.

const UNKNOWN = "–";
const WHOLE = new Intl.NumberFormat("en");

const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);

export const SHORT = 12;
/** The first digits of a digest, enough for every call of the server. */
export const short = (digest) => (/^[0-9a-f]{64}$/.test(digest) ? digest.slice(0, SHORT) : digest);

export const whole = (value) => (known(value) ? WHOLE.format(value) : UNKNOWN);

/** 0.125 as "12.5 %", and 0.5 as "50 %". What is not nothing never reads as nothing, nor what is not all as all. */
export function percent(share) {
  if (!known(share)) return UNKNOWN;
  const value = share * 100;
  if (value === 0) return "0 %";
  if (value < 0.1) return "< 0.1 %";
  if (value > 99.9 && value < 100) return "> 99.9 %";
  return `${value.toFixed(1).replace(/\.0$/, "")} %`;
}

export function rate(perSecond) {
  if (!known(perSecond)) return UNKNOWN;
  if (perSecond === 0) return "0";
  return perSecond < 10 ? perSecond.toFixed(1) : whole(Math.round(perSecond));
}

export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  if (seconds < 0.01) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 10 ? `${seconds.toFixed(1)} s` : span(seconds);
}

const SPANS = [
  [86400, "d"],
  [3600, "h"],
  [60, "min"],
  [1, "s"],
];

/** A long time in its largest unit. */
export function span(seconds) {
  if (!known(seconds)) return UNKNOWN;
  const [length, unit] = SPANS.find(([one]) => seconds >= one) ?? [1, "s"];
  return `${Math.floor(seconds / length)} ${unit}`;
}

export function bytes(count) {
  if (!known(count)) return UNKNOWN;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let index = 0;
  let value = count;
  while (value >= 1000 && index < units.length - 1) {
    value /= 1000;
    index += 1;
  }
  return `${index === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[index]}`;
}

/** Unix seconds as local date and time. */
export const moment = (unix) => (known(unix) ? new Date(unix * 1000).toLocaleString() : UNKNOWN);

export const clock = (unix) => new Date(unix * 1000).toLocaleTimeString();

export function ago(unix) {
  const seconds = Date.now() / 1000 - unix;
  return seconds < 5 ? "just now" : `${span(seconds)} ago`;
}

export const score = (value) => (known(value) ? value.toFixed(3) : UNKNOWN);

export const count = (number, one, many = `${one}s`) => `${whole(number)} ${number === 1 ? one : many}`;
