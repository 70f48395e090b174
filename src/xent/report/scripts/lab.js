// Train it here: two equal networks from one start, one trained with each loss, as the reader plays, steps and resets.

xent.lab = (() => {
  const { at, data: page, show, isStill } = xent.page;
  const { LOSSES, network, copy, step, measure } = xent.compute;
  const { history, add, paint, MEASURES } = xent.curves;
  const { look, worst, list } = xent.inspect;
  const { magnitude } = xent.format;
  const { SETS, own } = xent.datasets;

  const RATES = [0.01, 0.03, 0.1, 0.3, 1, 3, 10];
  const UNITS = 16;
  const SEED = 2;
  const WRONG_STEPS = 400;
  const SEARCHED = 300;
  const WORST = 4;
  const STILL_STEPS = 100;
  const SHORT = { "cross-entropy": "ce", "squared error": "se" };
  const names = Object.keys(LOSSES);

  const state = { step: 0, chosen: 0, isPlaying: false, isVisible: true, frames: [] };
  const views = {};
  let slow = 0;

  /** What the controls say. */
  function choices() {
    return {
      set: at("lab-data").value,
      columns: [at("lab-across"), at("lab-up")].map((menu) => Number(menu?.value ?? 0)),
      isWrong: at("lab-start").value === "wrong",
      hidden: at("lab-hidden").checked ? UNITS : 0,
      speed: Number(at("lab-speed").value),
    };
  }

  const rate = (loss) => RATES[Number(at(`lab-rate-${SHORT[loss]}`).value)];

  /** A start for both: ordinary, or trained by cross-entropy on labels shifted by one class. */
  function startOf(data, { isWrong, hidden }) {
    const net = network(2, hidden, data.classes.length, SEED);
    if (isWrong) {
      const shifted = { ...data, labels: data.labels.map((label) => (label + 1) % data.classes.length) };
      for (let k = 0; k < WRONG_STEPS; k++) step(net, shifted, "cross-entropy", 1);
    }
    return net;
  }

  /** Back to the start that the controls describe. */
  function reset() {
    const chosen = choices();
    const id = JSON.stringify([chosen.set, chosen.columns]);
    if (state.data?.id !== id) {
      state.data = { ...(chosen.set === "own" ? own(page.plane, chosen.columns) : SETS[chosen.set]()), id };
      legend();
    }
    state.origin = startOf(state.data, chosen);
    state.nets = Object.fromEntries(names.map((loss) => [loss, copy(state.origin)]));
    state.step = 0;
    state.past = history();
    at("lab-own").hidden = chosen.set !== "own";
    at("lab-point").max = state.data.labels.length - 1;
    note();
    state.chosen = worst(state.measured["squared error"].nats, 1)[0];
    pause();
    draw(true);
    tell("Reset.");
  }

  /** Measures both networks, and keeps it for the curves. */
  function note() {
    state.measured = Object.fromEntries(names.map((loss) => [loss, measure(state.nets[loss], state.data, loss)]));
    add(state.past, state.step, state.measured);
  }

  /** So many steps of gradient descent for both. */
  function advance(steps) {
    for (let k = 0; k < steps; k++) for (const loss of names) step(state.nets[loss], state.data, loss, rate(loss));
    state.step += steps;
    note();
  }

  /** Draws all; lists and bars, which are read and not watched, only now and then. */
  function draw(isWhole) {
    at("lab-point").value = state.chosen;
    for (const loss of names) {
      const { accuracy, nats } = state.measured[loss];
      const rows = worst(nats, WORST);
      views[loss].paint(state.nets[loss], state.data, rows, state.chosen);
      show(`lab-accuracy-${SHORT[loss]}`, `${Math.round(100 * accuracy)}%`);
      if (isWhole) list(at(`lab-worst-${SHORT[loss]}`), rows, state.data, nats, choose);
    }
    for (const kind of MEASURES) {
      paint(at(`lab-${kind.name}`), state.past, kind);
      for (const loss of names) show(`lab-${kind.name}-${SHORT[loss]}`, kind.text(state.measured[loss][kind.name]));
    }
    show("lab-step", state.step.toLocaleString("en-US"));
    if (isWhole) {
      look({ "cross-entropy": at("lab-bars-ce"), "squared error": at("lab-bars-se") }, state.nets, state.data, state.chosen);
      const label = state.data.classes[state.data.labels[state.chosen]];
      at("lab-point").setAttribute("aria-valuetext", `point ${state.chosen + 1}, ${label}`);
    }
  }

  /** Says to a screen reader where the training is; only when something stopped, not at each step. */
  function tell(before) {
    const each = names.map((loss) => {
      const { accuracy, crossEntropy, squaredError, gradient } = state.measured[loss];
      const means = `${magnitude(crossEntropy)} nats, squared error ${magnitude(squaredError)}, gradient ${magnitude(gradient)}`;
      return `${loss} ${Math.round(100 * accuracy)}% right, mean ${means}`;
    });
    show("lab-status", `${before} Step ${state.step}: ${each.join("; ")}.`);
    for (const loss of names) {
      at(`lab-field-${SHORT[loss]}`).setAttribute(
        "aria-label",
        `Decision surface of the network trained with ${loss}, after ${state.step} steps: ` +
          `${Math.round(100 * state.measured[loss].accuracy)}% of ${state.data.labels.length} points right.`,
      );
    }
  }

  function choose(row) {
    state.chosen = row;
    draw(true);
  }

  function pause() {
    state.isPlaying = false;
    const words = isStill() ? `Train ${STILL_STEPS} steps` : state.step ? "Go on" : "Play";
    at("lab-play").textContent = words;
  }

  function play() {
    if (isStill()) {
      advance(STILL_STEPS);
      draw(true);
      return tell("Trained.");
    }
    if (state.isPlaying) {
      pause();
      draw(true);
      return tell("Paused.");
    }
    state.isPlaying = true;
    at("lab-play").textContent = "Pause";
    return requestAnimationFrame(frame);
  }

  /** One frame of the animation. */
  function frame(now) {
    if (!state.isPlaying) return;
    requestAnimationFrame(frame);
    if (!state.isVisible) return;
    const began = performance.now();
    advance(choices().speed);
    draw(++slow % 10 === 0);
    state.frames.push([now, performance.now() - began]); // for benchmarks/why_frames.py
    if (state.frames.length > 600) state.frames.shift();
  }

  function stepOnce() {
    if (state.isPlaying) pause();
    advance(1);
    draw(true);
    pause();
    tell("One step.");
  }

  /** How well a loss does with a rate from this start: the mean accuracy over 300 steps. */
  function scoreOf(loss, rate_) {
    const net = copy(state.origin);
    let sum = 0;
    for (let k = 1; k <= SEARCHED; k++) {
      step(net, state.data, loss, rate_);
      if (k % 10 === 0) sum += measure(net, state.data, loss).accuracy;
    }
    return sum / (SEARCHED / 10);
  }

  /** Tries every rate for each loss, one in each turn of the browser, and sets the best. */
  async function bestRates() {
    pause();
    at("lab-best").disabled = true;
    for (const loss of names) {
      let best = { score: -1 };
      for (let i = 0; i < RATES.length; i++) {
        await new Promise((resolve) => setTimeout(resolve));
        const score = scoreOf(loss, RATES[i]);
        if (score > best.score) best = { score, i };
      }
      at(`lab-rate-${SHORT[loss]}`).value = best.i;
    }
    at("lab-best").disabled = false;
    sayRates();
    reset();
    tell(`The best rates are ${names.map((loss) => `${rate(loss)} for ${loss}`).join(" and ")}.`);
  }

  function sayRates() {
    for (const loss of names) {
      show(`lab-rate-${SHORT[loss]}-value`, String(rate(loss)));
      at(`lab-rate-${SHORT[loss]}`).setAttribute("aria-valuetext", String(rate(loss)));
    }
  }

  /** The names of the classes, with their marks. */
  function legend() {
    const { make, draw: shape } = xent.page;
    const marks = [
      () => shape("circle", { cx: 7, cy: 7, r: 5 }),
      () => shape("rect", { x: 2.5, y: 2.5, width: 9, height: 9 }),
      () => shape("path", { d: "M7 1.5L12.5 12H1.5Z" }),
    ];
    const items = state.data.classes.map((name, j) => {
      const mark = shape("svg", { width: 14, height: 14, "aria-hidden": "true", class: `mark class-${j + 1}` }, marks[j]());
      return make("span", { class: "key" }, mark, name);
    });
    at("lab-legend").replaceChildren(...items);
  }

  function listen() {
    at("lab-play").addEventListener("click", play);
    at("lab-step").addEventListener("click", stepOnce);
    at("lab-reset").addEventListener("click", reset);
    at("lab-best").addEventListener("click", bestRates);
    for (const id of ["lab-data", "lab-start", "lab-hidden", "lab-across", "lab-up"]) at(id)?.addEventListener("change", reset);
    for (const loss of names) at(`lab-rate-${SHORT[loss]}`).addEventListener("input", sayRates);
    at("lab-point").addEventListener("input", (event) => choose(Number(event.target.value)));
    for (const loss of names) {
      const canvas = at(`lab-field-${SHORT[loss]}`);
      canvas.addEventListener("pointerdown", (event) => choose(views[loss].nearest(state.data, event.offsetX, event.offsetY)));
    }
  }

  function start() {
    if (!at("lab-play")) return;
    for (const loss of names) views[loss] = xent.surface.view(at(`lab-field-${SHORT[loss]}`));
    listen();
    sayRates();
    reset();
    xent.plot.whenSized(at("train"), () => draw(true));
    xent.surface.watchScheme(() => draw(true));
    new IntersectionObserver(([entry]) => (state.isVisible = entry.isIntersecting)).observe(at("train"));
  }

  return { start, state, views, advance, reset, choices, rate, scoreOf, RATES };
})();
