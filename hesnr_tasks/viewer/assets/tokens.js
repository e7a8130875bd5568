// Tokens: which characters each one owns, what counts, and the colours of what models said of them.

const MODES = {
  kinds: { label: "kinds" },
  tokens: { label: "token boundaries" },
};
const QUANTITIES = {
  surprisal: { top: 6, span: 3, title: "surprisal −ln p" },
  entropy: { top: Math.log(10), span: 1.5, title: "entropy H_top10" },
};
const STEPS = 10;

// Tokens may share a character (its bytes are split); the first one owns it, so that every character is drawn once.
// `starts` and `ends` are those of the owners, `members` the tokens that an owner's characters stand for.
function prepareTokens(packed, bits) {
  const data = readTokens(packed);
  const starts = [], ends = [], members = [];
  let end = 0;
  for (let i = 0; i < data.start.length; i++) {
    const start = Math.max(data.start[i], end);
    if (start < data.end[i]) {
      starts.push(start);
      ends.push(data.end[i]);
      members.push([i]);
      end = data.end[i];
    } else {
      members[members.length - 1].push(i);
    }
  }
  return { ...data, starts, ends, members, covers: coverage(data, bits) };
}

function readTokens({ columns, strings, unmatched, width }) {
  const start = Uint32Array.from(columns.gap);
  for (let i = 1; i < start.length; i++) start[i] += start[i - 1];
  const end = start.map((at, i) => at + columns.length[i]);
  const values = (set) => Object.fromEntries(
    ["surprisal", "entropy", "decision", "top", "share"].map((name) => [name, columns[`${set}.${name}`] || []])); // empty: left out
  return { start, end, a: values("a"), b: INDEX.names.length > 1 ? values("b") : null, strings, unmatched, width };
}

// A value, or null where it is not known: columns hold 1 + thousandths, or 0.
const known = (column, i) => (column[i] ? (column[i] - 1) / 1000 : null);

// For each token the set of filter combinations that its action characters have, one bit each.
function coverage(data, bits) {
  return Int32Array.from(data.start, (start, i) => {
    let found = 0;
    for (let at = start; at < data.end[i]; at++) if (bits[at] !== 255) found |= 1 << bits[at];
    return found;
  });
}

// A token counts if it covers a character of an action that no applied filter drops.
function countedBits() {
  let mask = 0;
  for (let bits = 0; bits < 1 << FILTERS.length; bits++) if (!(bits & state.filters)) mask |= 1 << bits;
  return mask;
}

const counts = (tokens, i, mask = countedBits()) => (tokens.covers[i] & mask) !== 0;

// What a page opens on: the difference of surprisals, else surprisal, else kinds.
const openingMode = (tokens) => ["surprisal-difference", "surprisal-a", "kinds"].find((mode) => mode in modesOf(tokens));

// Which ways of colouring the data allows; "surprisal-a", "entropy-b", "surprisal-difference" and so on.
function modesOf(tokens) {
  if (!tokens) return { kinds: MODES.kinds };
  return (tokens.modes ||= findModes(tokens));
}

function findModes(tokens) {
  const found = { ...MODES };
  for (const [quantity, { title }] of Object.entries(QUANTITIES)) {
    if (!tokens.a[quantity].length) continue;
    for (const [i, name] of INDEX.names.entries()) {
      const of = INDEX.names.length > 1 ? ", " + name : "";
      found[quantity + "-" + "ab"[i]] = { label: title + of, quantity, set: "ab"[i] };
    }
    if (tokens.b) {
      const label = title + ", " + INDEX.names[1] + " − " + INDEX.names[0];
      found[quantity + "-difference"] = { label, quantity, set: "difference" };
    }
  }
  return found;
}

// The value an owner's characters are coloured by: surprisals of its tokens add up, of entropies the largest shows.
function valueOf(tokens, owner, quantity, set) {
  if (set === "difference") {
    const a = valueOf(tokens, owner, quantity, "a"), b = valueOf(tokens, owner, quantity, "b");
    return a === null || b === null ? null : b - a;
  }
  const values = tokens.members[owner].map((i) => known(tokens[set][quantity], i));
  if (values.includes(null)) return null;
  return quantity === "surprisal" ? values.reduce((sum, value) => sum + value, 0) : Math.max(...values);
}

function valueClass(value, { quantity, set }) {
  if (value === null) return "unknown";
  const { top, span } = QUANTITIES[quantity];
  if (set !== "difference") return `heat ${quantity} v${Math.min(STEPS - 1, Math.floor((STEPS * value) / top))}`;
  const step = Math.min(5, Math.round((5 * Math.abs(value)) / span));
  return `heat ${value > 0 ? "up" : "down"} d${step}`;
}

function decisionClass(tokens, owner, set) {
  const inside = (name) => tokens[name] && tokens.members[owner].some((i) => tokens[name].decision[i]);
  if (set !== "difference") return inside(set) ? "set-both" : "";
  if (inside("a") && inside("b")) return "set-both";
  return inside("a") ? "set-a" : inside("b") ? "set-b" : "";
}

function tokenClass(tokens, owner, mode) {
  if (mode.set === undefined) return `token ${owner % 2 ? "odd" : "even"}`;
  const value = valueClass(valueOf(tokens, owner, mode.quantity, mode.set), mode);
  const off = tokens.members[owner].some((i) => counts(tokens, i)) ? "" : " off";
  return `token ${value} ${decisionClass(tokens, owner, mode.set)}${off}`;
}

// --- what hovering shows ---

const SIGNS = { "\n": "⏎", "\t": "⇥", " ": "␣", "\r": "␍", "\x7f": "␡" };
const sign = (unit) => SIGNS[unit] || (unit < " " ? String.fromCharCode(0x2400 + unit.charCodeAt(0)) : unit);
const visible = (text) => Array.from(text.slice(0, 60), sign).join("") + (text.length > 60 ? "…" : "");
const nats = (value) => (value == null ? "not known" : value.toFixed(3) + " nats");

function tokenTip(open, owner) {
  const tip = document.createDocumentFragment();
  for (const i of open.tokens.members[owner]) tip.append(oneToken(open, i));
  return tip;
}

function oneToken(open, i) {
  const { tokens, text } = open;
  const own = text.slice(tokens.start[i], tokens.end[i]);
  const box = make("div", "one", make("code", "piece", visible(own)));
  box.append(make("span", "counts", counts(tokens, i) ? "counts" : "does not count"));
  const columns = make("div", "columns");
  for (const [k, name] of INDEX.names.entries()) {
    const set = tokens["ab"[k]];
    if (set && (known(set.surprisal, i) ?? known(set.entropy, i)) !== null) columns.append(oneModel(tokens, set, i, own, name));
  }
  if (columns.children.length) box.append(columns);
  return box;
}

function oneModel(tokens, set, i, own, name) {
  const box = make("div", "model");
  if (INDEX.names.length > 1) box.append(make("h4", "", name));
  const surprisal = known(set.surprisal, i);
  const p = surprisal === null ? "" : ` (p = ${Math.exp(-surprisal).toPrecision(3)})`;
  box.append(make("p", "", `surprisal ${nats(surprisal)}${p}`));
  box.append(make("p", "", `H_top10 ${nats(known(set.entropy, i))}`, set.decision[i] ? make("b", "inset", " ∈ 𝓗") : ""));
  const top = topOf(tokens, set, i);
  if (top.length) box.append(topTable(top, own));
  if (!tokens.covers[i] && set.top.length && INDEX.candidates < 10) {
    box.append(make("p", "counts", `outside actions: ${INDEX.candidates} of 10 candidates, to keep the page small`));
  }
  return box;
}

function likely(probability) {
  if (probability === null) return "?";
  return probability < 0.001 ? "< 0.001" : probability.toFixed(3);
}

// The top tokens of token i as [text, probability].
function topOf({ strings, width, start }, set, i) {
  const top = [];
  for (let k = 0, at = i; k < width && set.top[at]; k++, at += start.length) {
    top.push([strings[set.top[at] - 1], known(set.share, at)]);
  }
  return top;
}

function topTable(top, own) {
  const table = make("table");
  for (const [text, probability] of top) {
    const meter = make("i", "meter");
    meter.style.setProperty("width", Math.round(60 * (probability || 0)) + "px");
    const row = make("tr", text === own ? "own" : "", make("td", "", make("code", "", visible(text))));
    row.append(make("td", "", likely(probability)), make("td", "", meter));
    table.append(row);
  }
  return table;
}

// --- going from token to token ---

const LARGE = 1; // nats: a difference that a key stops at

const STOPS = {
  decision: (tokens, i) => counts(tokens, i) && Boolean(tokens.a.decision[i] || (tokens.b && tokens.b.decision[i])),
  difference: (tokens, i) => {
    if (!tokens.b || !counts(tokens, i)) return false;
    const a = known(tokens.a.surprisal, i), b = known(tokens.b.surprisal, i);
    return a !== null && b !== null && Math.abs(b - a) >= LARGE;
  },
};

// Go to the next (or previous) token that is one of `STOPS`, around the ends.
function goOn(stop, by) {
  const { tokens } = trajectory(state.trajectory);
  if (!tokens || !tokens.starts.length) return;
  const all = tokens.starts.length;
  let owner = state.cursor >= 0 && isOnScreen() ? state.cursor : firstOnScreen(tokens) - (by > 0 ? 1 : 0);
  for (let tried = 0; tried < all; tried++) {
    owner = (owner + by + all) % all;
    if (tokens.members[owner].some((i) => STOPS[stop](tokens, i))) return goToToken(owner);
  }
  say(stop === "decision" ? "no token is in 𝓗 here" : `no difference of ${LARGE} nat or more here`);
}

function goToToken(owner) {
  const { tokens } = trajectory(state.trajectory);
  state.cursor = owner;
  if (state.mode === "kinds" || state.mode === "tokens") setMode(openingMode(tokens));
  else redraw();
  reveal(tokens.starts[owner], ".cursor");
  const frame = () => new Promise(requestAnimationFrame);
  frame().then(frame).then(frame).then(() => {
    const target = document.querySelector("#text .cursor");
    if (target && state.cursor === owner) pin(target);
  });
}

function isOnScreen() {
  const box = document.querySelector("#text .cursor")?.getBoundingClientRect();
  return Boolean(box) && box.bottom > byId("top").offsetHeight && box.top < innerHeight;
}

const firstOnScreen = (tokens) => after(tokens.starts, chunkOnScreen().start - 1);
