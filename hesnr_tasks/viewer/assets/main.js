// Moving about: trajectories, turns, keys, the address, hovering and copying.

async function show(i) {
  document.documentElement.dataset.busy = "";
  if (!(await load(i))) return;
  state.trajectory = i;
  state.cursor = -1;
  hideTip();
  const open = trajectory(i);
  const entry = INDEX.trajectories[i];
  find.starts = find.ends = [];
  byId("name").textContent = entry.id;
  byId("name").title = entry.id;
  drawBadges(entry);
  drawTrajectory(open);
  drawSide(open);
  drawModes(open);
  drawCounts();
  byId("turn").max = open.turns.length;
  byId("turns").textContent = "of " + open.turns.length;
  markOpen(i);
  foldAll(true);
  search(find.query);
  window.scrollTo(0, 0);
  follow();
  delete document.documentElement.dataset.busy;
}

// Twice: the first jump lets parts be drawn whose true heights were not known.
function scrollTo(element, block) {
  element.scrollIntoView({ block });
  requestAnimationFrame(() => requestAnimationFrame(() => element.scrollIntoView({ block })));
}

function jump(turn) {
  const target = byId("turn-" + turn);
  if (!target) return;
  scrollTo(target, "start");
  document.body.classList.remove("menu");
  remember({ turn });
}

let currentTurn = 0;

// Mark the turn at the top of the screen in the list.
function follow() {
  const top = byId("top").offsetHeight + 40;
  const turns = [...document.querySelectorAll(".turn")];
  const passed = turns.filter((turn) => turn.getBoundingClientRect().top <= top).length;
  currentTurn = Math.max(1, passed);
  [...byId("outline").children].forEach((row, i) => row.classList.toggle("open", i === currentTurn - 1));
  if (document.activeElement !== byId("turn")) byId("turn").value = currentTurn;
  const row = byId("outline").children[currentTurn - 1];
  if (row) keepInSight(row);
}

function keepInSight(row) {
  const side = byId("side"), box = row.getBoundingClientRect(), frame = side.getBoundingClientRect();
  if (box.bottom > frame.bottom - 20) side.scrollTop += box.bottom - frame.bottom + 80;
  else if (box.top < frame.top + 20) side.scrollTop -= frame.top - box.top + 80;
}

function foldAll(folded) {
  for (const rest of document.querySelectorAll(".rest")) rest.fold(folded);
  byId("unfold").setAttribute("aria-pressed", String(!folded));
  byId("unfold").textContent = folded ? "Unfold all" : "Fold long ones";
}

// The address holds what is shown, so that a place can be sent to somebody.
function remember(extra = {}) {
  const parts = { t: state.trajectory, turn: currentTurn, q: find.query, colour: state.mode, ...extra };
  const opening = openingMode(trajectory(state.trajectory).tokens);
  const kept = Object.entries(parts).filter(([key, value]) => value && value !== { turn: 1, colour: opening }[key]);
  try {
    history.replaceState(null, "", "#" + new URLSearchParams(kept));
  } catch {
    // pages inside other pages may not be allowed to
  }
}

async function recall() {
  const hash = new URLSearchParams(location.hash.slice(1));
  const place = Number(hash.get("t"));
  await show(place > 0 && place < INDEX.trajectories.length ? place : 0);
  if (hash.get("colour") in modesOf(trajectory(state.trajectory).tokens)) choose(hash.get("colour"));
  if (hash.get("q")) {
    byId("query").value = hash.get("q");
    search(hash.get("q"));
  }
  if (Number(hash.get("turn")) > 1) jump(Number(hash.get("turn")));
}

function setTheme(theme) {
  if (theme !== "dark" && theme !== "light") return;
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("hesnr-theme", theme);
  } catch {
    // a file opened from disk may have no storage
  }
}

function storedTheme() {
  try {
    return localStorage.getItem("hesnr-theme");
  } catch {
    return null;
  }
}

function isDark() {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

// --- hovering ---

let pinned = null; // the element whose tip stays

function tip(event) {
  if (pinned) return;
  const target = event.target instanceof Element && event.target.closest("[data-t], [data-f]");
  if (target) showTip(target);
  else hideTip();
}

function hideTip() {
  pinned = null;
  byId("tip").hidden = true;
}

function pin(target) {
  showTip(target);
  pinned = target;
}

function keepTip() {
  if (pinned?.isConnected) place(byId("tip"), pinned.getClientRects()[0] || pinned.getBoundingClientRect());
  else hideTip();
}

function showTip(target) {
  const box = byId("tip");
  box.hidden = false;
  const open = trajectory(state.trajectory);
  const parts = [];
  if (target.dataset.f) parts.push(filterTip(Number(target.dataset.f)));
  if (target.dataset.t) parts.push(tokenTip(open, Number(target.dataset.t)));
  box.replaceChildren(...parts);
  place(box, target.getClientRects()[0] || target.getBoundingClientRect());
}

function filterTip(bits) {
  const applied = filterNames(bits & state.filters), idle = filterNames(bits & ~state.filters);
  const text = applied.length ? "dropped by " + applied.join(", ") : "";
  const rest = idle.length ? `${text ? "; " : ""}would be dropped by ${idle.join(", ")}` : "";
  return make("div", "filter", text + rest);
}

function place(box, rect) {
  const below = rect.bottom + 6, above = rect.top - 6 - box.offsetHeight;
  box.style.setProperty("left", Math.max(8, Math.min(rect.left, innerWidth - box.offsetWidth - 16)) + "px");
  box.style.setProperty("top", (below + box.offsetHeight < innerHeight || above < 0 ? below : above) + "px");
}

// Copied text is the trajectory's own: no labels, no line breaks that only the layout makes.
function copy(event) {
  const selection = getSelection();
  if (!selection.rangeCount || !byId("text").contains(selection.getRangeAt(0).commonAncestorContainer)) return;
  const range = selection.getRangeAt(0);
  const parts = [...range.cloneContents().querySelectorAll(".chunk")].map((chunk) => chunk.textContent);
  event.clipboardData.setData("text/plain", parts.length ? parts.join("") : range.toString());
  event.preventDefault();
}

// --- keys and buttons ---

const KEYS = {
  "/": () => byId("query").focus(),
  j: () => jump(Math.min(currentTurn + 1, byId("outline").children.length)),
  k: () => jump(Math.max(currentTurn - 1, 1)),
  h: () => goOn("decision", 1),
  H: () => goOn("decision", -1),
  d: () => goOn("difference", 1),
  D: () => goOn("difference", -1),
  Escape: () => {
    hideTip();
    document.body.classList.remove("menu");
  },
};

function onKey(event) {
  const typing = event.target instanceof Element && event.target.matches("input, select");
  if (event.ctrlKey || event.metaKey || event.altKey || (typing && event.key !== "Escape")) return;
  const act = KEYS[event.key];
  if (!act) return;
  act();
  if (event.key === "/") event.preventDefault();
}

function listen() {
  let timer = 0, frame = 0;
  byId("query").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => (search(byId("query").value), remember()), 150);
  });
  byId("find").addEventListener("submit", (event) => event.preventDefault());
  byId("query").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    if (byId("query").value !== find.query) search(byId("query").value);
    step(event.shiftKey ? -1 : 1);
  });
  byId("next").addEventListener("click", () => step(1));
  byId("previous").addEventListener("click", () => step(-1));
  byId("turn").addEventListener("change", () => jump(Number(byId("turn").value)));
  byId("mode").addEventListener("change", () => (choose(byId("mode").value), remember()));
  byId("theme").addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
  byId("unfold").addEventListener("click", () => foldAll(byId("unfold").getAttribute("aria-pressed") === "true"));
  for (const stop of Object.keys(STOPS)) byId(stop).addEventListener("click", (event) => goOn(stop, event.shiftKey ? -1 : 1));
  byId("menu").addEventListener("click", () => (hideTip(), document.body.classList.toggle("menu")));
  document.addEventListener("keydown", onKey);
  document.addEventListener("pointerover", tip);
  document.addEventListener("copy", copy);
  byId("text").addEventListener("click", (event) => {
    const target = event.target.closest("[data-t]");
    if (!pinned && target) return pin(target);
    hideTip();
    tip(event);
  });
  window.addEventListener("hashchange", recall);
  window.addEventListener("beforeprint", drawAll);
  window.addEventListener("scroll", () => {
    keepTip();
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(follow);
  }, { passive: true });
}

setTheme(storedTheme());
drawChips();
drawTrajectories();
drawDifferences();
byId("foot").replaceChildren(
  make("p", "", "Keys: / find, j and k next and previous turn, h and H next and previous token in 𝓗, d and D next and previous difference of 1 nat or more, Esc closes."),
  make("p", "", `hesnr-tasks ${INDEX.version}. Every character is shown once, in order; nothing is loaded from anywhere.`));
if ("DecompressionStream" in window) recall().then(listen);
else byId("text").textContent = "This browser cannot unpack the page: open it in Chrome or Edge 80, Firefox 113, Safari 16.4, or later.";
