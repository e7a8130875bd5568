// Tables of the report: sorted by a click on a heading, columns to choose, figures to save. No request, no storage.
"use strict";

const number = (text) => {
  const match = /^[^\d−+-]*([−+-]?[\d.,]+(?:e[+-]?\d+)?)/i.exec(text.replace("−", "-"));
  return match ? parseFloat(match[1].replace(/,/g, "")) : NaN;
};

function sort(table, index, button) {
  const down = button.dataset.order !== "down";
  table.querySelectorAll("th button").forEach((other) => delete other.dataset.order);
  button.dataset.order = down ? "down" : "up";
  table.querySelectorAll("th").forEach((cell, i) =>
    i === index ? cell.setAttribute("aria-sort", down ? "descending" : "ascending") : cell.removeAttribute("aria-sort"));
  const numeric = table.tHead.rows[0].cells[index].classList.contains("n");
  const value = (row) => row.cells[index].textContent.trim();
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (!numeric) return x.localeCompare(y, undefined, { numeric: true });
    const [u, v] = [number(x), number(y)];
    if (isNaN(u) || isNaN(v)) return isNaN(u) - isNaN(v); // without a value: last in both orders
    return down ? v - u : u - v;
  });
  if (!numeric && down) rows.reverse();
  table.tBodies[0].append(...rows);
}

function chooser(table) {
  const heads = [...table.tHead.rows[0].cells];
  if (heads.length < 6) return;
  const box = document.createElement("details"), title = document.createElement("summary");
  box.className = "columns";
  title.textContent = "Choose columns";
  box.append(title);
  heads.forEach((head, index) => {
    if (!index) return;
    const label = document.createElement("label"), tick = document.createElement("input");
    tick.type = "checkbox";
    tick.checked = true;
    tick.addEventListener("change", () => {
      for (const row of table.rows) row.cells[index].hidden = !tick.checked;
    });
    label.append(tick, " ", head.textContent.trim());
    box.append(label);
  });
  table.parentElement.before(box);
}

document.querySelectorAll("table.sortable").forEach((table) => {
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, index, button));
  });
  chooser(table);
});

document.querySelectorAll("a[data-figure]").forEach((link) => {
  link.addEventListener("click", () => {
    const svg = document.getElementById(link.dataset.figure).querySelector("svg");
    link.href = URL.createObjectURL(new Blob([svg.outerHTML], { type: "image/svg+xml" }));
  });
});

// The value of a point beside it at once, by mouse, touch and keyboard; titles alone come late, and not on phones.
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
document.addEventListener("pointerover", (event) => {
  const point = event.target.closest ? event.target.closest("use, .hit") : null;
  const title = point && point.querySelector("title");
  tip.hidden = !title;
  if (!title) return;
  tip.textContent = title.textContent;
  tip.style.setProperty("left", `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`);
  tip.style.setProperty("top", `${event.clientY + 14}px`);
});
