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
  const data = unpackTokens(packed);
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

function unpackTokens(packed) {
  const start = packed.gap.slice();
  for (let i = 1; i < start.length; i++) start[i] += start[i - 1];
  const end = start.map((at, i) => at + packed.length[i]);
  return { start, end, a: unpackValues(packed.a), b: packed.b && unpackValues(packed.b), strings: packed.strings, unmatched: packed.unmatched };
}

// Columns that hold nothing were left out.
const unpackValues = ({ surprisal, entropy, decision, top }) => ({
  surprisal: surprisal || [], entropy: entropy || [], decision: decision || [], top: top || [],
});

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
  const values = tokens.members[owner].map((i) => tokens[set][quantity][i] ?? null);
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
    if (set && (set.surprisal[i] ?? set.entropy[i] ?? null) !== null) columns.append(oneModel(set, i, own, tokens.strings, name));
  }
  if (columns.children.length) box.append(columns);
  return box;
}

function oneModel(set, i, own, strings, name) {
  const box = make("div", "model");
  if (INDEX.names.length > 1) box.append(make("h4", "", name));
  const surprisal = set.surprisal[i] ?? null;
  const p = surprisal === null ? "" : ` (p = ${Math.exp(-surprisal).toPrecision(3)})`;
  box.append(make("p", "", `surprisal ${nats(surprisal)}${p}`));
  box.append(make("p", "", `H_top10 ${nats(set.entropy[i])}`, set.decision[i] ? make("b", "inset", " ∈ 𝓗") : ""));
  if (set.top[i]?.length) box.append(topTable(set.top[i], own, strings));
  return box;
}

function likely(probability) {
  if (probability === null) return "?";
  return probability < 0.0001 ? "< 0.0001" : probability.toFixed(4);
}

function topTable(flat, own, strings) {
  const table = make("table");
  for (let k = 0; k < flat.length; k += 2) {
    const text = strings[flat[k]], probability = flat[k + 1];
    const meter = make("i", "meter");
    meter.style.setProperty("width", Math.round(60 * (probability || 0)) + "px");
    const row = make("tr", text === own ? "own" : "", make("td", "", make("code", "", visible(text))));
    row.append(make("td", "", likely(probability)), make("td", "", meter));
    table.append(row);
  }
  return table;
}
