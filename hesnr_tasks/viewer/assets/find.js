// Finding text in the open trajectory, folded and hidden parts included.

const MOST = 20000;
const find = { query: "", starts: [], ends: [], current: -1 };

function search(query) {
  find.query = query;
  find.starts = [];
  find.ends = [];
  find.current = -1;
  if (query) {
    // a regular expression, because lower-casing can change lengths and so places
    const pattern = new RegExp(query.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "giu");
    for (const match of trajectory(state.trajectory).text.matchAll(pattern)) {
      find.starts.push(match.index);
      find.ends.push(match.index + match[0].length);
      if (find.starts.length === MOST) break;
    }
  }
  redraw();
  showCount();
}

function showCount() {
  const all = find.starts.length;
  const many = number(all) + (all === MOST ? "+" : "");
  const at = find.current >= 0 ? `${number(find.current + 1)} of ` : "";
  byId("count").textContent = find.query ? (all ? at + many : "none") : "";
  byId("query").classList.toggle("nothing", Boolean(find.query) && !all);
}

// Go `by` matches on (or back), around the ends; the first step goes to the first match below the top of the screen.
function step(by) {
  const all = find.starts.length;
  if (!all) return;
  find.current = find.current < 0 ? firstBelow(by) : (find.current + by + all) % all;
  redraw();
  showCount();
  reveal(find.starts[find.current]);
}

function firstBelow(by) {
  const i = after(find.starts, chunkOnScreen().start - 1);
  return by > 0 ? i % find.starts.length : (i - 1 + find.starts.length) % find.starts.length;
}

function chunkOnScreen() {
  const top = byId("top").offsetHeight;
  return chunks.find(({ element }) => element.getBoundingClientRect().bottom > top) || chunks[0];
}

// Show the place in the text: unfold, unhide, draw and scroll to it.
function reveal(place, mark = ".match.current") {
  const chunk = chunks[after(chunks.map(({ start }) => start), place) - 1];
  const rest = chunk.element.closest(".rest");
  if (rest) rest.fold(false);
  showKind(KINDS[chunk.block.kind], true);
  draw(chunk);
  const target = chunk.element.querySelector(mark) || chunk.element;
  scrollTo(target, "center");
}
