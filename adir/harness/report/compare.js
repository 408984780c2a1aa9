// Views of one test image: two of its images with a border to drag between them, all of them side
// by side, the scores, and the neighbours that each row was adapted to.

const viewer = document.getElementById("viewer");
const frame = document.getElementById("frame");
const handle = document.getElementById("handle");
const sceneTask = document.getElementById("scene-task");
const sceneSelect = document.getElementById("scene");
const seedSelect = document.getElementById("seed");
const sides = { left: document.getElementById("left"), right: document.getElementById("right") };
const COARSE = 320; // pixels: images up to this width are enlarged without smoothing

const state = { scene: 0, seed: data.firstSeed, left: null, right: null, at: 50 };
const scene = () => data.scenes[state.scene];
const hasRecord = (scene) => Object.keys(scene.cells).length > 0;
// All rows of the task; a row without a record is shown as missing.
const rowsOf = (scene) =>
  [...data.rows.keys()].filter(
    (row) =>
      data.rows[row].axes.task === scene.task && (data.rows[row].axes.data ?? "") === scene.data,
  );
const cellOf = (scene, row) => scene.cells[row]?.[state.seed];

// Return the images to choose from for a side: {key, name, image, lack: why it is missing, scores}.
// Keys stay the same when the test image changes.
function choices(scene) {
  const common = [
    {
      key: "truth",
      name: "ground truth",
      image: scene.truth,
      lack: "no ground truth among the results",
    },
    {
      key: "y",
      name: scene.sigma ? `y, noise ${scene.sigma}` : "y",
      image: scene.y,
      lack: "y is not among the results",
    },
  ];
  const rows = rowsOf(scene).map((row) => ({
    row,
    cell: cellOf(scene, row),
    name: data.rows[row].label,
  }));
  const restored = rows.map(({ row, cell, name }) => ({
    key: `row ${row}`,
    row,
    name,
    image: cell?.image ?? null,
    heat: cell?.heat ?? null,
    scores: cell?.scores,
    lack: !cell
      ? `missing: no record of seed ${state.seed}`
      : cell.error
        ? `failed: ${cell.error}`
        : "its file is missing",
  }));
  const errors = restored
    .filter((each) => each.heat !== null)
    .map((each) => ({
      key: `heat ${each.row}`,
      row: each.row,
      name: `error of ${each.name}`,
      image: each.heat,
      lack: "",
    }));
  return [...common, ...restored, ...errors];
}

function setImage(image, lack, choice) {
  const there = choice.image != null;
  image.hidden = !there;
  lack.hidden = there;
  lack.textContent = there ? "" : `${choice.name}: ${choice.lack}`;
  if (!there) {
    image.removeAttribute("src");
    return;
  }
  image.alt = `${choice.name} of ${scene().id}`;
  image.onload = () => {
    image.classList.toggle("coarse", image.naturalWidth <= COARSE);
    if (!choice.key.startsWith("y")) setShape(image);
  };
  image.onerror = () => {
    image.hidden = true;
    lack.hidden = false;
    lack.textContent = `${choice.name}: its file is not where it was when this page was made`;
  };
  image.src = data.images[choice.image];
}

function setShape(image) {
  const shape = `${image.naturalWidth} / ${image.naturalHeight}`;
  frame.style.setProperty("aspect-ratio", shape);
  document.getElementById("tiles").style.setProperty("--shape", shape);
}

function showSides() {
  const all = choices(scene());
  for (const side of ["left", "right"]) {
    const choice = all.find((each) => each.key === state[side]) ?? all[0];
    setImage(
      document.getElementById(`${side}-image`),
      document.getElementById(`${side}-lack`),
      choice,
    );
    fillSelect(
      sides[side],
      all.map((each) => [each.key, each.name]),
      state[side],
    );
  }
  for (const tile of document.querySelectorAll("#tiles button")) {
    const side = ["left", "right"].find((each) => state[each] === tile.dataset.key);
    tile.classList.toggle("shown", Boolean(side));
    find("b", tile).dataset.side = side ?? "";
  }
  moveBorder(state.at);
  showNeighbours();
}

function moveBorder(at) {
  state.at = Math.min(100, Math.max(0, at));
  frame.style.setProperty("--at", `${state.at}%`);
  handle.setAttribute("aria-valuenow", String(Math.round(state.at)));
  const name = (side) => sides[side].selectedOptions[0]?.textContent ?? "";
  handle.setAttribute(
    "aria-valuetext",
    `${Math.round(state.at)} % ${name("left")}, the rest ${name("right")}`,
  );
}

const STEPS = {
  ArrowLeft: -1,
  ArrowDown: -1,
  ArrowRight: 1,
  ArrowUp: 1,
  PageDown: -10,
  PageUp: 10,
  Home: -100,
  End: 100,
};
handle.addEventListener("keydown", (event) => {
  if (!(event.key in STEPS) || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  moveBorder(
    state.at + STEPS[event.key] * (event.shiftKey && event.key.startsWith("Arrow") ? 10 : 1),
  );
});

// Pointer events cover mouse, pen and finger. `touch-action: pan-y` still lets a finger scroll.
let dragging = null;
const followPointer = (event) => {
  const box = frame.getBoundingClientRect();
  moveBorder((100 * (event.clientX - box.left)) / box.width);
};
frame.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || dragging !== null) return;
  dragging = event.pointerId;
  frame.setPointerCapture(dragging);
  followPointer(event);
  handle.focus({ preventScroll: true });
  event.preventDefault();
});
frame.addEventListener("pointermove", (event) => {
  if (event.pointerId === dragging) followPointer(event);
});
for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
  frame.addEventListener(end, (event) => {
    if (event.pointerId === dragging) dragging = null;
  });
}

function showTiles() {
  const all = choices(scene());
  const first = data.metrics.findIndex((metric) => metric.direction !== "none");
  const image = (number, name) =>
    element("img", {
      src: data.images[number],
      alt: name,
      decoding: "async",
      onload: (event) =>
        event.target.classList.toggle("coarse", event.target.naturalWidth <= COARSE),
      onerror: (event) =>
        event.target.replaceWith(
          element("div", { className: "blank", textContent: "file not found" }),
        ),
    });
  const tiles = all
    .filter((each) => !each.key.startsWith("heat"))
    .map((each) => {
      const there = each.image != null;
      const shown = there
        ? image(each.image, each.name)
        : element("div", { className: "blank", textContent: each.lack });
      const button = element(
        "button",
        { type: "button", title: "Show on the right (with Shift: on the left)" },
        shown,
      );
      if (each.heat != null) button.append(image(each.heat, `error of ${each.name}`));
      button.append(element("b", { textContent: each.name }));
      if (each.scores && first >= 0 && each.scores[first] !== null) {
        button.append(
          element("span", { textContent: `${data.metrics[first].name} ${each.scores[first]}` }),
        );
      }
      button.dataset.key = each.key;
      button.addEventListener("click", (event) => {
        state[event.shiftKey ? "left" : "right"] = each.key;
        showSides();
      });
      return element("div", { className: "tile" }, button);
    });
  document.getElementById("tiles").replaceChildren(...tiles);
  const key = document.getElementById("heat-key");
  key.hidden = !all.some((each) => each.key.startsWith("heat"));
  if (!key.hidden && !key.childElementCount) {
    const n = data.errorColours.length;
    const bars = data.errorColours.map((fill, x) =>
      svg("rect", { x, y: 0, width: 1.1, height: 1, fill }),
    );
    key.append(
      "Error |x̂ − x|, mean over colours: 0",
      svg(
        "svg",
        { viewBox: `0 0 ${n} 1`, preserveAspectRatio: "none", "aria-hidden": "true" },
        ...bars,
      ),
      `${n} grey levels and above`,
    );
  }
}

function bestOf(column, rows) {
  const direction = data.metrics[column].direction;
  const values = rows
    .map((row) => cellOf(scene(), row)?.scores?.[column])
    .filter((value) => value != null)
    .map(Number);
  if (direction === "none" || values.length < 2) return null;
  return direction === "higher" ? Math.max(...values) : Math.min(...values);
}

function showScores() {
  const rows = rowsOf(scene());
  const arrow = { higher: " ↑", lower: " ↓", none: "" };
  const head = element(
    "tr",
    {},
    element("th", { scope: "col", className: "name" }),
    ...data.metrics.map((metric) =>
      element("th", {
        scope: "col",
        className: "number",
        textContent: metric.name + arrow[metric.direction],
      }),
    ),
  );
  const best = data.metrics.map((_, column) => bestOf(column, rows));
  const lines = rows.map((row) => {
    const cell = cellOf(scene(), row);
    const name = element(
      "th",
      { scope: "row", className: "name" },
      icon(row),
      data.rows[row].label,
    );
    if (!cell || cell.error) {
      return element(
        "tr",
        {},
        name,
        element("td", {
          colSpan: data.metrics.length,
          className: "failure",
          textContent: cell ? `failed: ${cell.error}` : "missing",
        }),
      );
    }
    return element(
      "tr",
      {},
      name,
      ...cell.scores.map((score, column) =>
        element(
          "td",
          { className: "number" },
          element("span", {
            textContent: score ?? "–",
            className: score !== null && Number(score) === best[column] ? "best" : "",
          }),
        ),
      ),
    );
  });
  document
    .getElementById("scores")
    .replaceChildren(element("thead", {}, head), element("tbody", {}, ...lines));
}

function neighbourStrip(row) {
  const near = cellOf(scene(), row).near;
  const items = near.map(([number, distance]) => {
    const [id, image] = data.neighbours[number];
    const shown =
      image === null
        ? element("div", { className: "blank", textContent: id })
        : element("img", { src: data.images[image], alt: id, decoding: "async" });
    return element("li", { title: id }, shown, distance ?? "");
  });
  const measured = near.some(([, distance]) => distance !== null);
  const order = measured ? ", nearest first, with the distance to y" : ", distances not measured";
  const title = `${data.rows[row].label}: ${items.length}${order}`;
  return element(
    "div",
    { className: "strip" },
    element("h4", { textContent: title }),
    element("ol", { tabIndex: 0, ariaLabel: title }, ...items),
  );
}

// The rows chosen for the two sides come first; the others are folded away.
function showNeighbours() {
  const rows = rowsOf(scene()).filter((row) => cellOf(scene(), row)?.near);
  const onSides = rows.filter((row) =>
    [state.right, state.left].some((key) => key === `row ${row}` || key === `heat ${row}`),
  );
  const first = onSides.length ? onSides : rows.slice(0, 1);
  const box = document.getElementById("neighbours");
  const more = document.getElementById("more-neighbours");
  box.replaceChildren(...first.map(neighbourStrip));
  if (!rows.length)
    box.append(
      element("p", {
        className: "small",
        textContent: "No row of this image was adapted to neighbours.",
      }),
    );
  const others = rows.filter((row) => !first.includes(row));
  more.hidden = !others.length;
  find("div", more).replaceChildren(...others.map(neighbourStrip));
  const left = scene().excluded;
  document.getElementById("excluded").textContent = left.length
    ? `Left out of the corpus as copies, or nearly, of the test image: ${left.join(", ")}.`
    : "";
}

function showScene(number) {
  state.scene = number;
  const shown = scene();
  if (shown.seeds.length && !shown.seeds.includes(state.seed))
    state.seed = shown.seeds.includes(data.firstSeed) ? data.firstSeed : shown.seeds[0];
  const ofTask = data.scenes
    .map((each, place) => [place, each])
    .filter(([, each]) => each.task === shown.task);
  sceneTask.value = shown.task;
  const severalSets = unique(ofTask.map(([, each]) => each.data)).length > 1;
  fillSelect(
    sceneSelect,
    ofTask.map(([place, each]) => [place, severalSets ? `${each.id} (${each.data})` : each.id]),
    number,
  );
  fillSelect(
    seedSelect,
    shown.seeds.map((seed) => [seed, seed]),
    state.seed,
  );
  document.getElementById("previous").disabled = number === ofTask[0][0];
  document.getElementById("next").disabled = number === ofTask.at(-1)[0];
  document.getElementById("scene-title").textContent =
    `${shown.id}, ${shown.task}` +
    (shown.sigma === null ? "" : ` (σ ${shown.sigma})`) +
    `, seed ${state.seed}`;
  const all = choices(shown);
  const keys = all.map((each) => each.key);
  const rows = rowsOf(shown);
  const k = (row) => data.rows[row].axes.k ?? 0;
  const wanted = (mode) =>
    rows
      .filter((row) => data.rows[row].axes.adaptation === mode && shown.cells[row])
      .sort((a, b) => k(b) - k(a))[0];
  const adapted =
    wanted("knn") ?? wanted("self") ?? rows.filter((row) => shown.cells[row]).at(-1) ?? rows.at(-1);
  if (!keys.includes(state.left))
    state.left = rows.length ? `row ${wanted("none") ?? rows[0]}` : "truth";
  if (!keys.includes(state.right)) state.right = adapted === undefined ? "y" : `row ${adapted}`;
  if (state.left === state.right) state.left = "y";
  showTiles();
  showSides();
  showScores();
}

function showTask(task) {
  // Show the same image if it has a record under the new task, else the first with a record.
  const places = [...data.scenes.keys()].filter((place) => data.scenes[place].task === task);
  const wanted = [(each) => each.id === scene().id && hasRecord(each), hasRecord, () => true];
  state.left = state.right = null;
  showScene(
    wanted
      .map((fits) => places.find((place) => fits(data.scenes[place])))
      .find((place) => place !== undefined),
  );
}

if (data.scenes.length) {
  viewer.hidden = false;
  fillSelect(
    sceneTask,
    unique(data.scenes.map((each) => each.task)).map((task) => [task, task]),
  );
  sceneTask.addEventListener("change", () => showTask(sceneTask.value));
  sceneSelect.addEventListener("change", () => showScene(Number(sceneSelect.value)));
  seedSelect.addEventListener("change", () => {
    state.seed = Number(seedSelect.value);
    showScene(state.scene);
  });
  document.getElementById("previous").addEventListener("click", () => showScene(state.scene - 1));
  document.getElementById("next").addEventListener("click", () => showScene(state.scene + 1));
  for (const side of ["left", "right"]) {
    sides[side].addEventListener("change", () => {
      state[side] = sides[side].value;
      showSides();
    });
  }
  showScene(Math.max(0, data.scenes.findIndex(hasRecord)));
}
