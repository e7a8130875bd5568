// What the page knows: the index of all trajectories and, unpacked when it is opened, one trajectory.

const byId = (id) => document.getElementById(id);
const INDEX = JSON.parse(byId("index").textContent);
const KINDS = INDEX.kinds;
const FILTERS = INDEX.filters;
const ACTION = KINDS.indexOf("action");
const number = new Intl.NumberFormat("en").format;

// What the reader has chosen. Everything that is drawn follows from the open trajectory and this.
const state = {
  trajectory: 0,
  filters: (1 << FILTERS.length) - 1, // bit set of the filters that are applied
  mode: null,
  chosen: null, // the mode that the reader chose; null: what the data suggest, see `openingMode`
  cursor: -1, // the token that a key or the list of differences went to
  version: 0, // grows with every change of how text is drawn
};

const decoded = new Map();

// The open trajectory; `load` comes first.
const trajectory = (i) => decoded.get(i);

let wanted = 0; // the trajectory that was asked for last: an earlier one may be unpacked after it

// Whether trajectory i is ready, and still the one that is wanted.
async function load(i) {
  wanted = i;
  if (decoded.has(i)) return true;
  const data = await unpack(byId("trajectory-" + i).textContent);
  if (wanted !== i) return false;
  decoded.clear(); // one at a time: a page may hold many
  decoded.set(i, prepare(data));
  return true;
}

// See `_packed` in page.py: a header, then arrays, the first bytes of all elements before the second.
async function unpack(base64) {
  const packed = Uint8Array.from(atob(base64), (unit) => unit.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  let at = 4 + new DataView(bytes.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, at)));
  const columns = {};
  for (const [name, type, length] of header.arrays) {
    columns[name] = readArray(bytes, at, type, length);
    at += columns[name].byteLength;
  }
  return { ...header, columns };
}

function readArray(bytes, at, type, length) {
  const values = new { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array }[type](length);
  for (let k = 0; k < values.BYTES_PER_ELEMENT; k++) {
    for (let i = 0; i < length; i++) values[i] += bytes[at + k * length + i] * 256 ** k;
  }
  return values;
}

function prepare(data) {
  const blocks = readBlocks(data.blocks);
  const bits = filterBits(data, blocks);
  const tokens = data.strings && prepareTokens(data, bits);
  const turns = [];
  for (const block of blocks) {
    while (turns.length < block.turn) {
      turns.push({ number: turns.length + 1, blocks: [], characters: KINDS.map(() => 0), byBits: new Map() });
    }
    turns[block.turn - 1].blocks.push(block);
    countBlock(turns[block.turn - 1], block, bits, data.text);
  }
  return { text: data.text, blocks, turns, hits: data.hits, tokens };
}

function readBlocks(flat) {
  const blocks = [];
  for (let i = 0, start = 0; i < flat.length; start = flat[i], i += 3) {
    blocks.push({ start, end: flat[i], kind: flat[i + 1], turn: flat[i + 2], index: blocks.length });
  }
  return blocks;
}

// For each UTF-16 unit of the text the filters that hit it; 255 outside actions.
function filterBits(data, blocks) {
  const bits = new Uint8Array(data.text.length).fill(255);
  for (const block of blocks) if (block.kind === ACTION) bits.fill(0, block.start, block.end);
  for (let i = 0; i < data.hits.length; i += 3) bits.fill(data.hits[i + 2], data.hits[i], data.hits[i + 1]);
  return bits;
}

const lowSurrogate = (unit) => unit >= 0xdc00 && unit <= 0xdfff;

// Counts are of characters, not of UTF-16 units.
function countBlock(turn, block, bits, text) {
  for (let i = block.start; i < block.end; i++) {
    if (i > block.start && lowSurrogate(text.charCodeAt(i))) continue;
    turn.characters[block.kind]++;
    if (block.kind === ACTION) turn.byBits.set(bits[i], (turn.byBits.get(bits[i]) || 0) + 1);
  }
}

function kept(turn) {
  let sum = 0;
  for (const [bits, count] of turn.byBits) if (!(bits & state.filters)) sum += count;
  return sum;
}

function hitBy(turn, filter) {
  let sum = 0;
  for (const [bits, count] of turn.byBits) if (bits & (1 << filter)) sum += count;
  return sum;
}

const sumOver = (turns, value) => turns.reduce((sum, turn) => sum + value(turn), 0);

// Names of the filters in a bit set.
const filterNames = (bits) => FILTERS.filter((_, i) => bits & (1 << i));

// The first index whose value is greater than `wanted`, in a sorted array.
function after(sorted, wanted) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] > wanted) high = middle;
    else low = middle + 1;
  }
  return low;
}

// An element with a class, text and children; text never becomes markup.
function make(tag, className = "", ...content) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content);
  return element;
}
