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
  document.documentElement.style.setProperty("--bars", byId("top").offsetHeight + "px");
  setMode(state.mode in modes ? state.mode : "kinds");
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
    row.querySelector(".kept").textContent = number(kept(turn));
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
  link.addEventListener("click", (event) => {
    event.preventDefault();
    jump(turn.number);
  });
  return make("li", "", link);
}

const OUTCOMES = new Map([[true, ["✓", "resolved"]], [false, ["✗", "not resolved"]], [null, ["?", "outcome not known"]]]);

function drawTrajectories() {
  const rows = INDEX.trajectories.map((entry, i) => {
    const [mark, title] = OUTCOMES.get(entry.resolved);
    const outcome = make("span", "outcome", mark);
    outcome.title = title;
    const link = make("a", "", outcome, make("span", "id", entry.id), make("span", "kept", number(entry.kept)));
    link.href = "#t=" + i;
    link.title = `${entry.id}: ${number(entry.characters)} characters in ${entry.turns} turns`;
    link.addEventListener("click", (event) => {
      event.preventDefault();
      show(i);
    });
    return make("li", "", link);
  });
  byId("trajectories").replaceChildren(...rows);
  byId("others").hidden = rows.length < 2;
}

function drawBadges(entry) {
  const [mark, title] = OUTCOMES.get(entry.resolved);
  const made = [make("span", "badge outcome-" + entry.resolved, `${mark} ${title}`)];
  if (entry.instance && entry.instance !== entry.id) made.push(make("span", "badge", entry.instance));
  made.push(make("span", "badge", entry.source || "unknown format"), make("span", "badge", entry.fidelity));
  byId("badges").replaceChildren(...made);
}
