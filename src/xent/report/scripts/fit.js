// Which way around: one bell q for a p with two humps. The least KL(p || q) covers both, the least KL(q || p) seeks one.

xent.fit = (() => {
  const { at, draw, show, animate } = xent.page;
  const { path, chart, whenSized } = xent.plot;
  const { bell, divergence, fitBell } = xent.compute;
  const { units } = xent;

  const PLACES = Array.from({ length: 161 }, (_, i) => -4 + i / 20);
  const STARTS = [[-1.5, 0.6], [1.5, 0.6], [0, 1.5]];
  const state = { stop: null };

  const value = (id) => Number(at(id).value);

  /** Two humps, as far apart as the slider says; the left one holds more. */
  function target() {
    const apart = value("fit-apart");
    const [left, right] = [bell(PLACES, -apart / 2, 0.45), bell(PLACES, apart / 2, 0.45)];
    return left.map((share, i) => 0.55 * share + 0.45 * right[i]);
  }

  const guess = () => bell(PLACES, value("fit-mean"), value("fit-width"));

  function paint() {
    const host = at("fit-picture");
    if (!host.clientWidth) return;
    const [p, q] = [target(), guess()];
    const [forward, reverse] = [divergence(p, q), divergence(q, p)];
    const top = Math.max(...p, ...q) * 1.12;
    const made = chart(host, {
      height: 280,
      label: `A distribution p with two humps, and one bell q. KL(p ‖ q) ${units.text(forward)}, KL(q ‖ p) ${units.text(reverse)}.`,
      x: { domain: [-4, 4], ticks: [-4, -2, 0, 2, 4].map((v) => [v, String(v).replace("-", "−")]) },
      y: { domain: [0, top], ticks: [], title: "probability" },
      margin: { left: 6 },
    });
    const points = (shares) => PLACES.map((x, i) => [made.x(x), made.y(shares[i])]);
    const floor = `L${made.x(4)} ${made.y(0)}L${made.x(-4)} ${made.y(0)}Z`;
    made.svg.append(draw("path", { class: "area", d: path(points(p)) + floor }));
    made.svg.append(draw("path", { class: "thick divergence", d: path(points(q)) }));
    const label = (words, shares, name) => {
      const i = shares.indexOf(Math.max(...shares));
      made.svg.append(xent.plot.text(made.x(PLACES[i]), made.y(shares[i]) - 8, words, { class: name, "text-anchor": "middle" }));
    };
    label("p", p, "event");
    label("q", q, "event divergence");
    state.scale = made.x;
    show("fit-forward", units.text(forward));
    show("fit-reverse", units.text(reverse));
    for (const id of ["fit-mean", "fit-width", "fit-apart"]) show(id, value(id).toFixed(2).replace("-", "−"));
  }

  /** Moves q, over a moment, to the fit with the least divergence of one direction. */
  function fit(isForward) {
    const p = target();
    const distance = isForward ? (q) => divergence(p, q) : (q) => divergence(q, p);
    const [mean, width] = fitBell(PLACES, distance, STARTS);
    const from = [value("fit-mean"), value("fit-width")];
    state.stop?.();
    state.stop = animate(0.8, (share) => {
      at("fit-mean").value = from[0] + share * (mean - from[0]);
      at("fit-width").value = from[1] + share * (width - from[1]);
      paint();
    }, () => show("fit-status", verdict(isForward)));
  }

  /** What the fit did, from how much of q lies on each side. */
  function verdict(isForward) {
    const right = guess().reduce((sum, share, i) => sum + (PLACES[i] > 0 ? share : 0), 0);
    const isAlone = Math.min(right, 1 - right) < 0.1;
    const least = isForward ? "KL(p ‖ q)" : "KL(q ‖ p)";
    const what = isAlone ? "seeks one hump and leaves out the other" : "covers both humps, and what is between them";
    return `With the least ${least}, q ${what}.`;
  }

  /** The pointer moves the bell. */
  function drag(event) {
    if (event.type === "pointermove" && !(event.buttons & 1)) return;
    const x = event.clientX - at("fit-picture").getBoundingClientRect().left;
    const [left, right] = [state.scale(-4), state.scale(4)];
    at("fit-mean").value = -4 + (8 * (x - left)) / (right - left);
    paint();
  }

  function start() {
    if (!at("fit-picture")) return;
    for (const id of ["fit-mean", "fit-width", "fit-apart"]) at(id).addEventListener("input", paint);
    at("fit-cover").addEventListener("click", () => fit(true));
    at("fit-seek").addEventListener("click", () => fit(false));
    for (const kind of ["pointerdown", "pointermove"]) at("fit-picture").addEventListener(kind, drag);
    whenSized(at("fit-picture"), paint);
    units.follow(paint);
  }

  return { start, state, target, PLACES };
})();
