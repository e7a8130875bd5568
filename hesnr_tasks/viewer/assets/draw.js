// Drawing a trajectory: turns, blocks of one kind, and chunks of text. A chunk holds its text from the start, so that
// the page is complete; filters, tokens and matches are drawn into it when it comes near the screen.

const CHUNK = 4000; // UTF-16 units drawn together
const FOLDABLE = 36; // lines from which an observation is folded,
const HEAD = 14; // to this many
const LINE = 96; // characters of a line, for guessing heights before they are known
const CONTROL = /[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;

let chunks = []; // of the open trajectory, in order: { element, start, end, block, version, near }
const chunkOf = new WeakMap();

const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const chunk = chunkOf.get(target);
    chunk.near = isIntersecting;
    if (isIntersecting) draw(chunk);
  }
}, { rootMargin: "900px" });

function drawTrajectory(open) {
  watcher.disconnect();
  chunks = [];
  const turns = open.turns.map((turn) => drawTurn(open, turn));
  byId("text").replaceChildren(...turns);
  for (const { element } of chunks) watcher.observe(element);
}

function drawTurn(open, turn) {
  const head = make("header", "", make("h2", "", "Turn " + turn.number), make("span", "counts"));
  const element = make("section", "turn", head, ...turn.blocks.map((block) => drawBlock(open, block)));
  element.id = "turn-" + turn.number;
  return element;
}

function drawBlock(open, block) {
  const kind = KINDS[block.kind];
  const text = open.text.slice(block.start, block.end);
  const body = make("div", "body");
  const element = make("div", "block k-" + kind, body);
  if (!text.trim()) element.classList.add("blank");
  const lines = guessLines(text);
  if (kind !== "scaffold") element.prepend(makeLabel(kind, text));
  const foldable = (kind === "observation" || kind === "context") && lines > FOLDABLE;
  const head = foldable ? block.start + headLength(text) : block.end;
  body.append(...makeChunks(open, block, block.start, head));
  if (head < block.end) body.append(...makeFold(open, block, head, lines - HEAD));
  return element;
}

const makeLabel = (kind, text) => make("div", "label", make("b", "", kind), make("span", "", number(Array.from(text).length)));

function guessLines(text) {
  let lines = 0;
  for (let at = 0; at < text.length; lines++) {
    const end = text.indexOf("\n", at);
    const stop = end < 0 ? text.length : end;
    lines += Math.floor((stop - at) / LINE);
    at = stop + 1;
  }
  return lines;
}

function headLength(text) {
  let at = 0;
  for (let lines = 0; lines < HEAD && at < HEAD * LINE; lines++) {
    const end = text.indexOf("\n", at);
    if (end < 0) break;
    at = end + 1;
  }
  return at > 0 && at < 2 * HEAD * LINE ? at : safeCut(text, HEAD * LINE);
}

const safeCut = (text, at) => (lowSurrogate(text.charCodeAt(at)) ? at - 1 : at);

function makeFold(open, block, start, lines) {
  const rest = make("div", "rest", ...makeChunks(open, block, start, block.end));
  const button = make("button", "fold");
  const fold = (folded) => {
    if (folded) rest.setAttribute("hidden", "until-found");
    else rest.removeAttribute("hidden");
    button.setAttribute("aria-expanded", String(!folded));
    button.textContent = folded ? `▾ ${number(lines)} more lines · ${number(block.end - start)} characters` : "▴ Fold";
  };
  rest.addEventListener("beforematch", () => fold(false));
  button.addEventListener("click", () => fold(!rest.hidden));
  rest.fold = fold;
  fold(true);
  return [rest, button];
}

function makeChunks(open, block, start, end) {
  const made = [];
  for (let at = start; at < end; ) {
    const stop = chunkEnd(open.text, at, end);
    const text = open.text.slice(at, stop);
    const element = make("div", "chunk", text);
    element.style.setProperty("contain-intrinsic-size", `auto ${Math.max(1, guessLines(text)) * 1.5}em`);
    const chunk = { element, start: at, end: stop, block, version: -1, near: false };
    chunks.push(chunk);
    chunkOf.set(element, chunk);
    made.push(element);
    at = stop;
  }
  return made;
}

// At the end of a line if there is one, never within a character.
function chunkEnd(text, start, end) {
  if (end - start <= CHUNK * 1.25) return end;
  const line = text.lastIndexOf("\n", start + CHUNK) + 1;
  return line > start + CHUNK / 4 ? line : safeCut(text, start + CHUNK);
}

// --- one chunk ---

function draw(chunk) {
  if (chunk.version === state.version) return;
  chunk.version = state.version;
  const open = trajectory(state.trajectory);
  const layers = layersOf(open, chunk);
  chunk.element.replaceChildren(...pieces(open.text, chunk, layers));
}

function redraw() {
  state.version++;
  for (const chunk of chunks) if (chunk.near) draw(chunk);
}

function drawAll() {
  chunks.forEach(draw);
}

// A layer is a sorted list of spans that do not overlap, and how one of them changes a piece of text that lies in it.
function layersOf(open, chunk) {
  const layers = [controlLayer(open.text, chunk)];
  if (chunk.block.kind === ACTION) layers.push(hitLayer(open));
  if (open.tokens && state.mode !== "kinds") layers.push(tokenLayer(open.tokens));
  if (find.starts.length) layers.push(matchLayer());
  return layers;
}

function hitLayer(open) {
  const { hits } = open;
  open.hitStarts ||= hits.filter((_, i) => i % 3 === 0);
  open.hitEnds ||= hits.filter((_, i) => i % 3 === 1);
  const paint = (piece, i, text) => {
    const bits = hits[3 * i + 2], applied = bits & state.filters;
    piece.dataset.f = bits;
    if (!applied) return;
    const first = FILTERS.findIndex((_, k) => applied & (1 << k));
    piece.classList.add("dropped", "f" + first, text.trim() ? "ink" : "space");
  };
  return { starts: open.hitStarts, ends: open.hitEnds, paint };
}

function tokenLayer(tokens) {
  const mode = modesOf(tokens)[state.mode];
  const paint = (piece, i) => {
    piece.dataset.t = i;
    if (i === state.cursor) piece.classList.add("cursor");
    piece.classList.add(...tokenClass(tokens, i, mode).split(" ").filter(Boolean));
  };
  return { starts: tokens.starts, ends: tokens.ends, paint };
}

function matchLayer() {
  const paint = (piece, i) => {
    piece.classList.add("match");
    if (i === find.current) piece.classList.add("current");
  };
  return { starts: find.starts, ends: find.ends, paint };
}

// Control characters, and those that would turn the direction of text, show as signs.
function controlLayer(text, { start, end }) {
  const starts = Array.from(text.slice(start, end).matchAll(CONTROL), (match) => start + match.index);
  const paint = (piece, i) => {
    const code = text.charCodeAt(starts[i]);
    piece.classList.add("control");
    piece.dataset.c = code < 0x20 ? String.fromCharCode(0x2400 + code) : "U+" + code.toString(16).toUpperCase().padStart(4, "0");
  };
  return { starts, ends: starts.map((at) => at + 1), paint };
}

function* overlapping({ starts, ends }, a, b) {
  for (let i = Math.max(0, after(starts, a) - 1); i < starts.length && starts[i] < b; i++) if (ends[i] > a) yield i;
}

function pieces(text, { start, end }, layers) {
  const cuts = new Set([start, end]);
  for (const layer of layers) {
    for (const i of overlapping(layer, start, end)) {
      cuts.add(Math.max(start, layer.starts[i]));
      cuts.add(Math.min(end, layer.ends[i]));
    }
  }
  const at = [...cuts].sort((x, y) => x - y);
  return at.slice(1).map((stop, k) => onePiece(text.slice(at[k], stop), at[k], layers));
}

function onePiece(text, at, layers) {
  let piece = null;
  for (const layer of layers) {
    const i = after(layer.starts, at) - 1;
    if (i < 0 || layer.ends[i] <= at) continue;
    piece ||= make("span", "", text);
    layer.paint(piece, i, text);
  }
  return piece || text;
}
