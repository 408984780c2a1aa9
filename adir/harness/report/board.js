// The leaderboard can be sorted by any column within each task, and filtered by words. Missing
// values come last in both directions.

const board = document.getElementById("board");
const headers = [...board.tHead.rows[0].cells];
const bodies = [...board.tBodies];
const inOrder = bodies.map((body) => [...body.rows].slice(1));

function sortValue(row, column) {
  const cell = row.cells[column];
  if (headers[column].classList.contains("number"))
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  const text = cell.textContent.trim();
  const number = Number(text.split("/")[0]);
  return text === "–" ? null : Number.isNaN(number) ? text : number;
}

function compareValues(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b));
}

function sortBoard(column) {
  const header = headers[column];
  const bestFirst = header.dataset.direction === "higher" ? "descending" : "ascending";
  const otherWay = bestFirst === "descending" ? "ascending" : "descending";
  const now = header.getAttribute("aria-sort");
  // The third press restores the original order.
  const next = now === "none" ? bestFirst : now === bestFirst ? otherWay : "none";
  headers.forEach((each) => each.setAttribute("aria-sort", "none"));
  header.setAttribute("aria-sort", next);
  const sign = next === "descending" ? -1 : 1;
  bodies.forEach((body, number) => {
    const rows = [...inOrder[number]];
    if (next !== "none")
      rows.sort((a, b) => compareValues(sortValue(a, column), sortValue(b, column), sign));
    body.append(...rows);
  });
}

const filterField = document.getElementById("filter");
const taskFilter = document.getElementById("task-filter");
function filterBoard() {
  const words = filterField.value.toLowerCase().split(/\s+/).filter(Boolean);
  const task = taskFilter ? taskFilter.value : "";
  let shown = 0;
  bodies.forEach((body, number) => {
    let any = false;
    for (const row of inOrder[number]) {
      const fits =
        (!task || body.dataset.task === task) &&
        words.every((word) => row.dataset.find.includes(word));
      row.hidden = !fits;
      any ||= fits;
      shown += fits;
    }
    body.hidden = !any;
  });
  const total = inOrder.flat().length;
  document.getElementById("filter-count").textContent =
    shown === total ? `${total} rows` : `${shown} of ${total} rows`;
}

headers.forEach((header, column) =>
  find("button", header).addEventListener("click", () => sortBoard(column)),
);
filterField.addEventListener("input", filterBoard);
if (taskFilter) taskFilter.addEventListener("change", filterBoard);
for (const place of board.querySelectorAll("i.icon"))
  place.replaceWith(icon(place.closest("tr").dataset.row));
filterBoard();
