"use strict";
const cells = JSON.parse(document.getElementById("cells").textContent);

function close(row) {
  const below = row.nextElementSibling;
  if (below && below.classList.contains("opened")) below.remove();
  for (const button of row.querySelectorAll("[aria-expanded=true]"))
    button.setAttribute("aria-expanded", "false");
}

function open(button) {
  const row = button.closest("tr");
  const wasOpen = button.getAttribute("aria-expanded") === "true";
  close(row);
  if (wasOpen) return;
  button.setAttribute("aria-expanded", "true");
  const below = document.createElement("tr");
  below.className = "opened";
  const place = below.insertCell();
  place.colSpan = row.cells.length;
  const inner = place.appendChild(document.createElement("div"));
  for (const number of button.dataset.cells.split(" ")) {
    const cell = cells[number];
    const head = inner.appendChild(document.createElement("h4"));
    const parts = [cell.checkpoint, cell.task, cell.protocol, cell.mode, "seed " + cell.seed];
    head.textContent = parts.join(" · ");
    inner.appendChild(document.createElement("pre")).textContent = JSON.stringify(cell, null, 1);
  }
  row.after(below);
}

function sort(table, head) {
  const column = head.cellIndex;
  const was = head.getAttribute("aria-sort");
  const now = was ? (was === "ascending" ? "descending" : "ascending") : head.dataset.first;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", now);
  const body = table.tBodies[0];
  for (const row of [...body.rows]) if (row.isConnected) close(row);
  const sign = now === "ascending" ? 1 : -1;
  const value = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
  const missing = (text) => Number(text === "" || text === "NaN");
  const isNumber = head.dataset.kind === "number";
  const rows = [...body.rows].sort((one, other) => {
    const a = value(one), b = value(other);
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    return sign * (isNumber ? a - b : a.localeCompare(b, "en", { numeric: true }));
  });
  body.append(...rows);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.cells) open(button);
  else sort(button.closest("table"), button.closest("th"));
});
