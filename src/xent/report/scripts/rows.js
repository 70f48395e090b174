// The reader's own rows: guess first, then see the label, what both networks say, and what it costs them.

xent.rows = (() => {
  const { at, data, make, show } = xent.page;
  const { magnitude, percent, scientific } = xent.format;
  const NETWORKS = [
    { key: "by_cross_entropy", name: "cross-entropy", kind: "cross-entropy" },
    { key: "by_squared_error", name: "squared error", kind: "squared-error" },
  ];
  const state = { place: 0, guessed: null, tally: { rows: 0, you: 0, "cross-entropy": 0, "squared error": 0 }, seen: new Set() };

  const nats = (value) => (value === null ? "∞ nats" : `${magnitude(value)} nats`);
  const probability = (q) => (q === null ? "none" : q > 0 && q < 0.001 ? scientific(q, 2) : percent(q));

  const plain = (value) => value.toLocaleString("en-US", { maximumSignificantDigits: 6, useGrouping: false }).replace("-", "−");

  /** The rows of the kind that the menu says. */
  const shown = () => data.rows.rows.filter((row) => row.kind === at("rows-kind").value);
  const current = () => shown()[state.place];

  /** Draws the pixels of a row, ink on paper, one pixel of the canvas for each. */
  function picture(canvas, row) {
    const [height, width] = data.rows.image;
    canvas.width = width;
    canvas.height = height;
    canvas.style.aspectRatio = `${width} / ${height}`;
    const { ink, paper } = xent.surface.colours();
    const pen = canvas.getContext("2d");
    const image = pen.createImageData(width, height);
    row.pixels.forEach((value, k) => {
      for (let c = 0; c < 3; c++) image.data[4 * k + c] = paper[c] + (value / 255) * (ink[c] - paper[c]);
      image.data[4 * k + 3] = 255;
    });
    pen.putImageData(image, 0, 0);
  }

  /** The row itself: its picture, or its values. */
  function drawRow(row) {
    at("row-name").textContent = `Row ${row.row.toLocaleString("en-US")}`;
    if (data.rows.image) {
      const canvas = at("row-picture");
      canvas.setAttribute("aria-label", `Picture of row ${row.row}, ${data.rows.image.join(" by ")} pixels`);
      return picture(canvas, row);
    }
    const cells = data.rows.columns.map((name, i) => {
      const value = row.values[i];
      const words = typeof value === "number" ? plain(value) : (value ?? "none");
      return make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, words));
    });
    return at("row-values").replaceChildren(...cells);
  }

  /** Shows a row that is still to be guessed. */
  function ask() {
    state.guessed = null;
    const row = current();
    drawRow(row);
    const buttons = row.classes.map((label) => {
      const button = make("button", { type: "button" }, data.rows.classes[label]);
      button.addEventListener("click", () => guess(label));
      return button;
    });
    at("row-guesses").replaceChildren(...buttons);
    at("row-answer").hidden = true;
    show("row-count", `${state.place + 1} of ${shown().length}`);
  }

  /** The class that a network holds most probable, among those shown. */
  function choice(row, key) {
    const q = row[key].probabilities;
    return row.classes[q.reduce((best, value, j) => ((value ?? -1) > (q[best] ?? -1) ? j : best), 0)];
  }

  /** Takes the reader's guess, counts it the first time, and shows what there is to know. */
  function guess(label) {
    const row = current();
    state.guessed = label;
    if (!state.seen.has(row.row)) {
      state.seen.add(row.row);
      state.tally.rows += 1;
      state.tally.you += label === row.label;
      for (const { key, name } of NETWORKS) state.tally[name] += choice(row, key) === row.label;
    }
    [...at("row-guesses").children].forEach((button, j) => {
      button.setAttribute("aria-pressed", String(row.classes[j] === label));
      button.classList.toggle("right", row.classes[j] === row.label);
    });
    reveal(row);
  }

  function reveal(row) {
    const { tally } = state;
    const name = data.rows.classes[row.label];
    const words = state.guessed === row.label ? "Right" : "Not this time";
    show("row-verdict", `${words}: its label is ${name}.`);
    show("row-tally", `So far, of ${tally.rows}: you ${tally.you}, cross-entropy’s network ${tally["cross-entropy"]}, squared error’s ${tally["squared error"]}.`);
    const lines = row.classes.map((label, j) => {
      const cells = NETWORKS.map(({ key, kind }) => bar(row[key].probabilities[j], kind));
      const mark = label === row.label ? " ◂ label" : "";
      return make("tr", label === row.label ? { class: "label" } : {}, make("th", { scope: "row" }, data.rows.classes[label] + mark), ...cells);
    });
    at("row-probabilities").replaceChildren(...lines);
    for (const { key, name: loss } of NETWORKS) {
      const short = loss === "cross-entropy" ? "ce" : "se";
      show(`row-${short}-nats`, nats(row[key].cross_entropy_nats));
      show(`row-${short}-squared`, magnitude(row[key].squared_error ?? NaN));
    }
    at("row-answer").hidden = false;
  }

  function bar(q, kind) {
    const fill = make("span", { class: `fill ${kind}` });
    fill.style.width = `${100 * (q ?? 0)}%`;
    return make("td", { class: "share" }, make("span", { class: "track" }, fill), make("span", { class: "of-bar" }, probability(q)));
  }

  function next() {
    state.place = (state.place + 1) % shown().length;
    ask();
  }

  /** The pictures of the row that the story follows. */
  function threads() {
    if (!data.rows.image) return;
    const row = data.rows.rows[data.rows.followed];
    for (const canvas of document.querySelectorAll("canvas.thread-picture")) picture(canvas, row);
  }

  function start() {
    if (!data.rows || !at("row-guesses")) return;
    at("rows-kind").addEventListener("change", () => {
      state.place = 0;
      ask();
    });
    at("row-next").addEventListener("click", next);
    ask();
    threads();
    xent.surface.watchScheme(() => {
      drawRow(current());
      threads();
    });
  }

  return { start, state };
})();
