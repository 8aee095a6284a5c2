// Reads what a picture was made with: the text `parameters` of a PNG, and the settings in that text, as the Stable
// Diffusion web UI writes them. Files come from anywhere: every length is checked, every amount is bounded.

/** Larger files are not looked at. */
export const PNG_BYTES_MAX = 64 * 1024 * 1024;

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const TEXT_BYTES_MAX = 1024 * 1024;
const CHUNKS_MAX = 100_000;
const PAIRS_MAX = 200;
const KEYWORD = 'parameters';

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let bit = 0; bit < 8; bit += 1) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
  return c >>> 0;
});

function crc(bytes) {
  let c = 0xffffffff;
  for (const byte of bytes) c = CRC_TABLE[(c ^ byte) & 255] ^ (c >>> 8);
  return (c ^ 0xffffffff) >>> 0;
}

const latin = (bytes) => new TextDecoder('latin1').decode(bytes);

async function inflate(bytes) {
  const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate')).getReader();
  const parts = [];
  let length = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    length += value.length;
    if (length > TEXT_BYTES_MAX) {
      await reader.cancel();
      throw new RangeError('a compressed text is too long');
    }
    parts.push(value);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/** The text of a chunk, or `null` when it is another text. */
async function textOf(type, data) {
  const end = data.indexOf(0);
  if (end < 1 || end > 79 || latin(data.subarray(0, end)) !== KEYWORD) return null;
  let rest = data.subarray(end + 1);
  if (type === 'tEXt') return latin(rest);
  if (type === 'zTXt') return rest[0] === 0 ? latin(await inflate(rest.subarray(1))) : null;
  // iTXt: compressed or not, method, language, translated keyword, text.
  const [compressed, method] = rest;
  rest = rest.subarray(2);
  for (let skipped = 0; skipped < 2; skipped += 1) {
    const stop = rest.indexOf(0);
    if (stop < 0) return null;
    rest = rest.subarray(stop + 1);
  }
  if (compressed === 1 && method === 0) rest = await inflate(rest);
  else if (compressed !== 0) return null;
  return new TextDecoder('utf-8').decode(rest);
}

/**
 * The text `parameters` of a PNG; `null` when it has none.
 * Throws a `RangeError` when the file is no PNG or is cut off before a text was found.
 */
export async function parametersText(buffer) {
  const bytes = new Uint8Array(buffer);
  const view = new DataView(buffer);
  if (bytes.length > PNG_BYTES_MAX) throw new RangeError('the file is too large');
  if (!SIGNATURE.every((byte, index) => bytes[index] === byte)) throw new RangeError('not a PNG');
  let at = SIGNATURE.length;
  for (let count = 0; count < CHUNKS_MAX; count += 1) {
    if (at + 12 > bytes.length) throw new RangeError('the file ends too early');
    const length = view.getUint32(at);
    const type = latin(bytes.subarray(at + 4, at + 8));
    if (length > bytes.length - at - 12) throw new RangeError('a chunk is longer than the file');
    const data = bytes.subarray(at + 8, at + 8 + length);
    if (type === 'IEND') return null;
    if (['tEXt', 'zTXt', 'iTXt'].includes(type) && length <= TEXT_BYTES_MAX) {
      const whole = view.getUint32(at + 8 + length) === crc(bytes.subarray(at + 4, at + 8 + length));
      const text = whole ? await textOf(type, data) : null;
      if (text !== null) return text;
    }
    at += 12 + length;
  }
  throw new RangeError('the file has too many chunks');
}

/** The pairs of the last line: `Key: value, Key: "a JSON string, with anything in it"`. */
function pairs(line) {
  const found = new Map();
  let at = 0;
  while (at < line.length && found.size < PAIRS_MAX) {
    const colon = line.indexOf(':', at);
    if (colon < 0) break;
    const key = line.slice(at, colon).trim();
    at = colon + 1;
    while (line[at] === ' ') at += 1;
    let value;
    if (line[at] === '"') {
      let end = at + 1;
      while (end < line.length && line[end] !== '"') end += line[end] === '\\' ? 2 : 1;
      const raw = line.slice(at, end + 1);
      try {
        value = String(JSON.parse(raw));
      } catch {
        value = raw;
      }
      at = line.indexOf(',', end);
    } else {
      const end = line.indexOf(',', at);
      value = line.slice(at, end < 0 ? line.length : end).trim();
      at = end;
    }
    if (key && !found.has(key)) found.set(key, value);
    if (at < 0) break;
    at += 1;
  }
  return found;
}

function whole(text, max) {
  return /^\d{1,9}$/.test(text || '') && Number(text) >= 1 && Number(text) <= max ? Number(text) : undefined;
}

/** The settings in such a text: prompt, negative, steps, guidance, seed, width, height, model. */
export function settingsOf(text) {
  const lines = text.replace(/\r\n?/g, '\n').trim().split('\n');
  const last = lines[lines.length - 1];
  const values = /^\s*Steps: \d/.test(last) ? pairs(lines.pop()) : new Map();
  const split = lines.findIndex((line) => line.startsWith('Negative prompt:'));
  const prompt = (split < 0 ? lines : lines.slice(0, split)).join('\n').trim();
  const negative = split < 0 ? '' : lines.slice(split).join('\n').slice('Negative prompt:'.length).trim();
  const settings = { prompt };
  if (negative) settings.negative = negative;
  const size = /^(\d{1,5})x(\d{1,5})$/.exec(values.get('Size') || '');
  if (size) [settings.width, settings.height] = [whole(size[1], 65_535), whole(size[2], 65_535)];
  settings.steps = whole(values.get('Steps'), 1_000_000);
  const guidance = Number(values.get('CFG scale') || NaN);
  if (Number.isFinite(guidance)) settings.guidance = guidance;
  if (/^\d{1,20}$/.test(values.get('Seed') || '')) settings.seed = values.get('Seed');
  if (values.get('Model')) settings.model = values.get('Model');
  return settings;
}

/** The settings a PNG carries; `null` when it carries none. Throws as [`parametersText`]. */
export async function parameters(buffer) {
  const text = await parametersText(buffer);
  return text === null ? null : settingsOf(text);
}
