// The panel's languages: words from files, numbers from the browser.
//
// A word may hold `{name}`, or `{name:form}` with a form of [`FORMS`]; where it depends on a count it is an object with
// the plural categories of its language as keys, chosen by the value `count`.

import { recall, remember } from './dom.js';

/** What can be chosen, each in its own words. */
export const LANGUAGES = { en: 'English', 'zh-Hans': '简体中文', 'zh-Hant': '繁體中文', ru: 'Русский' };

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
const FORMS = { bytes, seconds, percent, number };

let language = 'en';
let words = {};
let english = {};
const listeners = [];

/** Calls `act` as soon as there are words, and after each change of language. */
export function onLanguage(act) {
  listeners.push(act);
  if (Object.keys(words).length) act();
}

/** The language in use. */
export const current = () => language;

async function load(code) {
  const response = await fetch(new URL(`words/${code}.json`, import.meta.url));
  if (!response.ok) throw new Error(`words/${code}.json: HTTP ${response.status}`);
  return response.json();
}

function preferred() {
  const kept = recall('language');
  if (kept in LANGUAGES) return kept;
  for (const tag of navigator.languages || [navigator.language]) {
    const { language: base, script } = new Intl.Locale(tag).maximize();
    const code = base === 'zh' ? `zh-${script}` : base;
    if (code in LANGUAGES) return code;
  }
  return 'en';
}

/** Reads the words; to be awaited before anything is shown. */
export async function startWords() {
  english = await load('en');
  await useLanguage(preferred(), false);
}

/** Changes the language, and keeps it for the next visit where a hand chose it. */
export async function useLanguage(code, chosen = true) {
  try {
    words = code === 'en' ? english : await load(code);
    language = code;
  } catch {
    words = english;
    language = 'en';
  }
  if (chosen) remember('language', language);
  document.documentElement.lang = language;
  translate(document);
  for (const act of listeners) act();
}

/** Puts the words of this language into what is written down in the page. */
function translate(root) {
  for (const node of root.querySelectorAll('[data-word]')) node.textContent = say(node.dataset.word);
  for (const node of root.querySelectorAll('[data-word-hint]')) node.placeholder = say(node.dataset.wordHint);
  for (const node of root.querySelectorAll('[data-word-label]')) {
    node.setAttribute('aria-label', say(node.dataset.wordLabel));
    if (node.matches('button, a, select')) node.title = say(node.dataset.wordLabel);
  }
}

function pick(word, values) {
  if (typeof word !== 'object') return word;
  return word[new Intl.PluralRules(language).select(values.count ?? 0)] ?? word.other;
}

/** Whether there is a word, and every value it names. */
export function canSay(key, values) {
  const word = pick(words[key] ?? '', values);
  return Boolean(word) && [...word.matchAll(/\{(\w+)/g)].every(([, name]) => values[name] !== undefined && values[name] !== null);
}

/** The words for `key`, with its values filled in. */
export function say(key, values = {}) {
  const word = pick(words[key] ?? english[key] ?? key, values);
  return word.replace(/\{(\w+)(?::(\w+))?\}/g, (_, name, form) => {
    const value = values[name];
    if (value === undefined || value === null) return '';
    if (form) return FORMS[form](value);
    return typeof value === 'number' ? number(value) : String(value);
  });
}

/** A number as the language writes it. */
export function number(value, digits = 0) {
  return new Intl.NumberFormat(language, { maximumFractionDigits: digits }).format(value);
}

/** A share of 1. */
export function percent(value) {
  return new Intl.NumberFormat(language, { style: 'percent', maximumFractionDigits: 0 }).format(value);
}

/** Bytes in the largest unit that leaves something before the point. */
export function bytes(value) {
  let unit = 0;
  let size = Math.max(0, Number(value) || 0);
  while (size >= 1000 && unit < UNITS.length - 1) {
    size /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || size >= 100 ? 0 : size >= 10 ? 1 : 2;
  return `${number(size, digits)}\u00a0${UNITS[unit]}`;
}

function unit(value, name, digits = 0) {
  return new Intl.NumberFormat(language, { style: 'unit', unit: name, unitDisplay: 'short', maximumFractionDigits: digits }).format(value);
}

/** Seconds as people read them: 850 ms, 3.1 s, 4 min 10 s, 2 h 5 min. */
export function seconds(value) {
  const s = Math.max(0, Number(value) || 0);
  if (s < 0.0005) return unit(0, 'second');
  if (s < 0.9995) return unit(s * 1e3, 'millisecond');
  if (s < 9.95) return unit(s, 'second', 1);
  const whole = Math.round(s);
  if (whole < 60) return unit(whole, 'second');
  const minutes = Math.floor(whole / 60);
  if (whole < 3600) return [unit(minutes, 'minute'), whole % 60 && unit(whole % 60, 'second')].filter(Boolean).join(' ');
  return [unit(Math.floor(minutes / 60), 'hour'), minutes % 60 && unit(minutes % 60, 'minute')].filter(Boolean).join(' ');
}

/** How long ago a moment in milliseconds was. */
export function ago(ms) {
  const s = Math.round((ms - Date.now()) / 1e3);
  const words = new Intl.RelativeTimeFormat(language, { numeric: 'auto', style: 'short' });
  if (s > -5) return words.format(0, 'second');
  if (s > -60) return words.format(s, 'second');
  if (s > -3600) return words.format(Math.round(s / 60), 'minute');
  if (s > -86400) return words.format(Math.round(s / 3600), 'hour');
  return words.format(Math.round(s / 86400), 'day');
}

/** A moment in milliseconds as date and time. */
export function moment(ms) {
  return new Intl.DateTimeFormat(language, { dateStyle: 'medium', timeStyle: 'medium' }).format(ms);
}

/** A refusal of the service in this language, with its numbers where they say more than the sentence. */
export function reason(error) {
  if (!error || !error.code) return String((error && error.message) || error);
  if (canSay(`error.${error.code}`, error.numbers)) return say(`error.${error.code}`, error.numbers);
  return error.message;
}
