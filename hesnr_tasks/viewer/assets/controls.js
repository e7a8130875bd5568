// The bars, the lists at the side and the totals.

const CHIPS = { pressed: (button) => button.getAttribute("aria-pressed") === "true" };

function chip(name, className, pressed, title, toggle) {
  const button = make("button", "chip " + className, make("span", "sample"), make("span", "", name));
  button.title = title;
  button.setAttribute("aria-pressed", String(pressed));
  button.addEventListener("click", () => toggle(!CHIPS.pressed(button)));
  return button;
}

function drawChips() {
  const kinds = KINDS.map((kind) => chip(kind, "k-" + kind, true, `Show or hide ${kind}`, (on) => showKind(kind, on)));
  byId("kinds").replaceChildren(...kinds);
  const filters = FILTERS.map((name, i) =>
    chip(name, "f" + i, true, `Filter ${name}: drop its characters or keep them`, (on) => applyFilter(i, on)));
  byId("filters").replaceChildren(...filters);
}

function showKind(kind, on) {
  byId("text").classList.toggle("hide-" + kind, !on);
  byId("kinds").children[KINDS.indexOf(kind)].setAttribute("aria-pressed", String(on));
}

function applyFilter(i, on) {
  state.filters = on ? state.filters | (1 << i) : state.filters & ~(1 << i);
  byId("filters").children[i].setAttribute("aria-pressed", String(on));
  redraw();
  drawCounts();
}

// --- colour ---

function drawModes(open) {
  const modes = modesOf(open.tokens);
  const options = Object.entries(modes).map(([value, { label }]) => {
    const option = make("option", "", label);
    option.value = value;
    return option;
  });
  byId("mode").replaceChildren(...options);
  byId("colouring").hidden = options.length < 2;
  byId("decision").hidden = !("entropy-a" in modes);
  byId("difference").hidden = !("surprisal-difference" in modes);
  document.documentElement.style.setProperty("--bars", byId("top").offsetHeight + "px");
  setMode(state.chosen in modes ? state.chosen : openingMode(open.tokens));
}

function choose(mode) {
  state.chosen = mode;
  setMode(mode);
}

function setMode(mode) {
  state.mode = mode;
  byId("mode").value = mode;
  document.documentElement.dataset.mode = mode;
  drawScale(modesOf(trajectory(state.trajectory).tokens)[mode]);
  redraw();
}

function drawScale(mode) {
  const scale = byId("scale");
  scale.replaceChildren();
  if (!mode || mode.set === undefined) return;
  const { top, span } = QUANTITIES[mode.quantity];
  const swatch = (className) => make("i", "swatch " + className);
  if (mode.set === "difference") {
    const down = [5, 4, 3, 2, 1].map((i) => swatch("heat down d" + i));
    const up = [1, 2, 3, 4, 5].map((i) => swatch("heat up d" + i));
    scale.append(`−${span}`, ...down, ...up, `+${span} nats`, inSet(" 𝓗: ", "set-both", "both "));
    scale.append(inSet("", "set-a", INDEX.names[0] + " "), inSet("", "set-b", INDEX.names[1]));
  } else {
    const steps = Array.from({ length: STEPS }, (_, i) => swatch(`heat ${mode.quantity} v${i}`));
    scale.append("0", ...steps, `≥ ${top.toFixed(mode.quantity === "entropy" ? 2 : 0)} nats`, inSet(" ", "set-both", "in 𝓗"));
  }
}

const inSet = (before, className, text) => make("span", "", before, make("span", className, text.trim()), " ");

// --- totals ---

const share = (part, whole) => (whole ? Math.round((100 * part) / whole) + " %" : "–");

function drawCounts() {
  const open = trajectory(state.trajectory);
  for (const turn of open.turns) {
    byId("turn-" + turn.number).querySelector(".counts").replaceChildren(...turnCounts(open, turn));
    const row = byId("outline").children[turn.number - 1];
    row.querySelector(".kept").textContent = `${number(kept(turn))} ch`;
  }
  drawSummary(open);
}

function turnCounts(open, turn) {
  const made = KINDS.filter((kind, i) => turn.characters[i] && kind !== "scaffold").map((kind) =>
    make("span", "k-" + kind, `${kind} ${number(turn.characters[KINDS.indexOf(kind)])}`));
  if (turn.characters[ACTION]) made.push(make("b", "", `${number(kept(turn))} kept`));
  if (open.tokens) made.push(make("span", "", tokenCounts(open, [turn])));
  return made;
}

// Tokens of some turns (a token belongs to the turn of its last character): all, those that count, those in 𝓗.
function tokenCounts(open, turns) {
  const tallies = tokenTallies(open);
  const sum = (value) => turns.reduce((all, turn) => all + value(tallies[turn.number]), 0);
  const decision = INDEX.names.map((_, k) => number(sum((tally) => tally.decision[k]))).join(" / ");
  const text = `${number(sum((tally) => tally.all))} tokens, ${number(sum((tally) => tally.counted))} count`;
  return "entropy-a" in modesOf(open.tokens) ? `${text}, ${decision} in 𝓗` : text;
}

function tokenTallies(open) {
  if (open.tallies && open.tallies.filters === state.filters) return open.tallies;
  const { tokens } = open, mask = countedBits();
  open.tokenTurn ||= tokenTurns(open);
  const tallies = Array.from({ length: open.turns.length + 1 }, () => ({ all: 0, counted: 0, decision: [0, 0] }));
  for (let i = 0; i < tokens.start.length; i++) {
    const tally = tallies[open.tokenTurn[i]];
    tally.all++;
    if (!counts(tokens, i, mask)) continue;
    tally.counted++;
    for (const [k, set] of ["a", "b"].entries()) if (tokens[set] && tokens[set].decision[i]) tally.decision[k]++;
  }
  tallies.filters = state.filters;
  return (open.tallies = tallies);
}

function tokenTurns(open) {
  const ends = open.blocks.map((block) => block.end);
  return open.tokens.end.map((end) => open.blocks[after(ends, end - 1)].turn);
}

function drawSummary(open) {
  const totals = KINDS.map((_, i) => sumOver(open.turns, (turn) => turn.characters[i]));
  const all = totals.reduce((sum, count) => sum + count, 0);
  const cards = KINDS.map((kind, i) => card(kind, totals[i], share(totals[i], all), "k-" + kind));
  const keptAll = sumOver(open.turns, kept);
  cards.push(card("kept", keptAll, share(keptAll, totals[ACTION]) + " of action", "keeps"));
  const dropped = FILTERS.map((name, i) => {
    const count = sumOver(open.turns, (turn) => hitBy(turn, i));
    const on = state.filters & (1 << i);
    return make("span", "f" + i + (on ? "" : " unused"), make("span", "sample"), `${name} ${number(count)}`);
  });
  const lines = [make("div", "line", "Dropped from actions: ", ...dropped, make("small", "", "a character may be dropped by several"))];
  if (open.tokens) lines.push(make("div", "line", tokenCounts(open, open.turns) + unmatched(open.tokens)));
  const { warnings } = INDEX.trajectories[state.trajectory];
  if (warnings.length) lines.push(make("ul", "warnings", ...warnings.map((text) => make("li", "", text))));
  byId("summary").replaceChildren(stack(totals, all), make("div", "cards", ...cards), ...lines);
}

const unmatched = ({ unmatched: count }) => (count ? `; ${number(count)} of them have no counterpart in ${INDEX.names[1]}` : "");

const card = (name, count, note, className) =>
  make("div", "card " + className, make("span", "name", name), make("b", "", number(count)), make("small", "", note));

function stack(counts, whole, className = "stack") {
  const bar = make("div", className);
  counts.forEach((count, i) => {
    if (!count) return;
    const part = make("i", "k-" + KINDS[i]);
    part.style.setProperty("flex-grow", String(count / whole));
    part.title = `${KINDS[i]} ${number(count)}`;
    bar.append(part);
  });
  return bar;
}

// --- the side ---

function drawSide(open) {
  const most = Math.max(...open.turns.map((turn) => turn.characters.reduce((sum, count) => sum + count, 0)), 1);
  byId("outline").replaceChildren(...open.turns.map((turn) => turnRow(turn, most)));
}

// Bars are as long as the root of the turn's size: one observation of 60,000 characters must not flatten all others.
function turnRow(turn, most) {
  const all = turn.characters.reduce((sum, count) => sum + count, 0);
  const bar = stack(turn.characters, all, "stack small");
  bar.style.setProperty("width", Math.max(4, 100 * Math.sqrt(all / most)) + "%");
  const link = make("a", "", make("span", "n", String(turn.number)), make("span", "room", bar), make("span", "kept"));
  link.href = "#turn=" + turn.number;
  link.title = `Turn ${turn.number}: ${number(all)} characters; at the right, those of actions that no filter drops`;
  link.addEventListener("click", (event) => {
    event.preventDefault();
    jump(turn.number);
  });
  return make("li", "", link);
}

const OUTCOMES = new Map([[true, ["✓", "resolved"]], [false, ["✗", "not resolved"]], [null, ["?", "outcome not known"]]]);

// A link that opens trajectory i, and then does what `then` says.
function opening(i, content, then = remember) {
  const link = make("a", "", ...content);
  link.href = "#t=" + i;
  link.addEventListener("click", (event) => {
    event.preventDefault();
    document.body.classList.remove("menu");
    show(i).then(() => then());
  });
  return link;
}

const ratio = (value) => (value === null ? "–" : value.toFixed(4));
const percent = (value) => (value === null ? "–" : (100 * value).toFixed(1) + " %");
const heSnr = (entry, k = 0) => (entry.runs[k] ? entry.runs[k].he_snr : null);

function outcomeOf(entry) {
  const [mark, title] = OUTCOMES.get(entry.resolved);
  const outcome = make("span", "outcome", mark);
  outcome.title = title;
  return outcome;
}

// The columns of the table: heading, what hovering says, value (what sorts), text (what shows).
function tableColumns() {
  const scored = INDEX.trajectories[0].runs;
  const plain = (heading, title, value, text = value) => ({ heading, title, value, text });
  const columns = [
    plain("trajectory", "Identifier", (entry) => entry.id),
    plain("outcome", "Whether the task was resolved", (entry) => OUTCOMES.get(entry.resolved)[1], (entry) => OUTCOMES.get(entry.resolved)[0]),
    plain("turns", "Number of turns", (entry) => entry.turns, (entry) => number(entry.turns)),
    plain("kept ch", "Characters of actions that no filter drops", (entry) => entry.kept, (entry) => number(entry.kept)),
  ];
  const eachRun = (heading, title, value, text) => scored.forEach((_, k) => {
    const name = scored.length > 1 ? " " + INDEX.names[k] : "";
    columns.push(plain(heading + name, `${INDEX.names[k]}: ${title}`, (e) => value(e.runs[k]), (e) => text(value(e.runs[k]))));
  });
  eachRun("HE-SNR", "HE-SNR over filtered actions (1/nat; higher is better)", (run) => run.he_snr, ratio);
  if (scored.length > 1) {
    const gain = (e) => (heSnr(e) === null || heSnr(e, 1) === null ? null : heSnr(e, 1) - heSnr(e));
    columns.push(plain("Δ HE-SNR", `HE-SNR of ${INDEX.names[1]} minus that of ${INDEX.names[0]} (1/nat)`, gain, (e) => signed(gain(e), 4)));
  }
  eachRun("𝓗", "share of the tokens that count which are in 𝓗", (run) => (run.tokens ? run.he_tokens / run.tokens : null), percent);
  eachRun("scored", "share of the tokens that count which fit the context and were scored", (run) => run.scored, percent);
  return columns;
}

const signed = (value, digits) => (value === null ? "–" : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits));

let sorted = { column: -1, by: 1 };

function drawTrajectories() {
  const columns = tableColumns();
  const [head] = byId("all").querySelectorAll("thead");
  head.replaceChildren(make("tr", "", ...columns.map((column, c) => {
    const button = make("button", "", column.heading);
    button.title = column.title + ". Sorts.";
    button.addEventListener("click", () => sortBy(columns, c));
    const cell = make("th", "", button);
    cell.setAttribute("scope", "col");
    return cell;
  })));
  byId("all").hidden = INDEX.trajectories.length < 2;
  byId("others").hidden = INDEX.trajectories.length < 2;
  byId("unit").textContent = INDEX.trajectories[0].runs.length ? "HE-SNR" : "kept characters";
  drawRows(columns);
}

// Numbers fall first, words rise first; what is not known comes last both ways.
function sortBy(columns, c) {
  const first = typeof columns[c].value(INDEX.trajectories[0]) === "string" ? 1 : -1;
  sorted = { column: c, by: sorted.column === c ? -sorted.by : first };
  byId("all").querySelectorAll("th").forEach((cell, k) => {
    if (k === c) cell.setAttribute("aria-sort", sorted.by > 0 ? "ascending" : "descending");
    else cell.removeAttribute("aria-sort");
  });
  drawRows(columns);
}

function drawRows(columns) {
  const order = INDEX.trajectories.map((_, i) => i);
  if (sorted.column >= 0) {
    const values = INDEX.trajectories.map(columns[sorted.column].value);
    const rank = (i, k) => (values[i] === null) - (values[k] === null)
      || sorted.by * ((values[i] > values[k]) - (values[i] < values[k])) || i - k;
    order.sort(rank);
  }
  byId("all").querySelector("tbody").replaceChildren(...order.map((i) => tableRow(columns, i)));
  byId("trajectories").replaceChildren(...order.map(sideRow));
  markOpen(state.trajectory);
}

function tableRow(columns, i) {
  const entry = INDEX.trajectories[i];
  const cells = columns.map((column, c) => {
    const text = String(column.text(entry));
    return c ? make("td", typeof column.value(entry) === "string" ? "" : "n", text) : make("td", "id", opening(i, [text]));
  });
  cells[0].title = entry.id;
  cells[1].title = OUTCOMES.get(entry.resolved)[1];
  const row = make("tr", "", ...cells);
  row.dataset.i = i;
  return row;
}

function sideRow(i) {
  const entry = INDEX.trajectories[i];
  const value = entry.runs.length ? ratio(heSnr(entry)) : `${number(entry.kept)} ch`;
  const link = opening(i, [outcomeOf(entry), make("span", "id", entry.id), make("span", "kept", value)]);
  const of = INDEX.names.length > 1 ? ` (${INDEX.names[0]})` : "";
  const snr = entry.runs.length ? `, HE-SNR ${ratio(heSnr(entry))} per nat${of}` : "";
  link.title = `${entry.id}: ${number(entry.characters)} characters in ${entry.turns} turns, ${number(entry.kept)} kept${snr}`;
  const row = make("li", "", link);
  row.dataset.i = i;
  return row;
}

function markOpen(i) {
  for (const row of document.querySelectorAll("#trajectories > li, #all tbody > tr")) row.classList.toggle("open", Number(row.dataset.i) === i);
}

// --- the largest differences ---

function drawDifferences() {
  byId("largest").hidden = !INDEX.differences.length;
  byId("differences").replaceChildren(...INDEX.differences.map((d) => {
    const difference = make("span", d.b > d.a ? "kept rise" : "kept fall", signed(d.b - d.a, 2));
    const link = opening(d.trajectory, [make("span", "n", String(d.turn)), make("code", "id", visible(d.text)), difference], () =>
      goToToken(trajectory(d.trajectory).tokens.members.findIndex((members) => members.includes(d.token))));
    const { id } = INDEX.trajectories[d.trajectory];
    link.title = `${id}, turn ${d.turn}: ${INDEX.names[0]} ${nats(d.a)}, ${INDEX.names[1]} ${nats(d.b)}`;
    return make("li", "", link);
  }));
}

// A short message at the bottom, for a while.
function say(text) {
  const box = byId("message");
  box.textContent = text;
  box.hidden = false;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => (box.hidden = true), 2500);
}

function drawBadges(entry) {
  const [mark, title] = OUTCOMES.get(entry.resolved);
  const made = [make("span", "badge outcome-" + entry.resolved, `${mark} ${title}`)];
  if (entry.instance && entry.instance !== entry.id) made.push(make("span", "badge", entry.instance));
  made.push(make("span", "badge", entry.source || "unknown format"), make("span", "badge", entry.fidelity));
  byId("badges").replaceChildren(...made);
}
