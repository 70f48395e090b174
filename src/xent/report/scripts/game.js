// Likelihood as a game: drag the model's probabilities of a coin or a die, and watch the product, the sum and the peak.

xent.game = (() => {
  const { at, draw, show } = xent.page;
  const { text, path, chart, scale, whenSized } = xent.plot;
  const { percent, scientific, significant, grouped } = xent.format;
  const { entropy, cross, divergence } = xent.compute;
  const { handle, say, withShare } = xent.handles;

  const GAMES = {
    coin: { names: ["heads", "tails"], counts: [13, 7] },
    die: { names: ["1", "2", "3", "4", "5", "6"], counts: [3, 4, 5, 4, 6, 8] },
  };
  const LEAST = 0.001;
  const state = { game: "coin", q: [0.2, 0.8], moved: 0, handles: [] };

  const counts = () => GAMES[state.game].counts.map((count) => count * Number(at("game-times").value));
  const total = (numbers) => numbers.reduce((a, b) => a + b, 0);
  const frequencies = () => counts().map((count) => count / total(counts()));

  /** The likelihood as a product of float64 numbers, and its logarithm as a sum, in nats. */
  function likelihood(q) {
    const product = counts().reduce((all, count, j) => all * q[j] ** count, 1);
    return { product, log: counts().reduce((all, count, j) => all + count * Math.log(q[j]), 0) };
  }

  /** The bars: frequencies as outlines, the model's probabilities filled, with a handle on top. */
  function paintBars() {
    const host = at("game-bars");
    const { names } = GAMES[state.game];
    const width = Math.max(host.clientWidth, 240);
    const height = 300;
    const svg = draw("svg", { width, height, role: "group", "aria-label": "The model's probabilities, with handles" });
    const y = scale([0, 1], [height - 30, 26]);
    for (const value of [0, 0.25, 0.5, 0.75, 1]) {
      svg.append(draw("line", { class: "grid", x1: 40, x2: width, y1: y(value), y2: y(value) }));
      svg.append(text(34, y(value) + 4, percent(value), { class: "tick", "text-anchor": "end" }));
    }
    svg.append(text(0, 10, "probability", { class: "title" }));
    const step = (width - 44) / names.length;
    const wide = Math.min(90, step * 0.66);
    const seen = frequencies();
    state.handles = names.map((name, j) => {
      const x = 44 + step * (j + 0.5);
      const bar = (kind, share) => draw("rect", { class: kind, x: x - wide / 2, width: wide, y: y(share), height: y(0) - y(share) });
      svg.append(bar("model", state.q[j]), bar("seen", seen[j]));
      svg.append(text(x, height - 10, name, { "text-anchor": "middle", class: "event" }));
      svg.append(text(x, y(state.q[j]) - 14, percent(state.q[j]), { "text-anchor": "middle", class: "value" }));
      const grip = [
        draw("rect", { class: "reach", x: x - wide / 2, y: y(state.q[j]) - 14, width: wide, height: 28 }),
        draw("rect", { class: "grip", x: x - Math.min(17, wide / 2), y: y(state.q[j]) - 4, width: Math.min(34, wide), height: 8, rx: 4 }),
      ];
      const group = handle(svg, {
        name: `The model's probability of ${name}`, axis: "y", grip,
        drag: (_, py) => set(j, (y(0) - py) / (y(0) - y(1))),
        nudge: (steps) => set(j, state.q[j] + 0.01 * steps),
      });
      say(group, 0, state.q[j], 1, `${percent(state.q[j])}; it came up in ${percent(seen[j])}`);
      return group;
    });
    host.replaceChildren(svg);
  }

  /** The likelihood, as a share of its peak, along the way of the outcome moved last. */
  function paintCurve() {
    const host = at("game-curve");
    const j = state.moved;
    const f = frequencies();
    const n = total(counts());
    const floor = divergence(f, withShare(state.q, j, f[j]));
    const share = (x) => Math.exp(-n * (divergence(f, withShare(state.q, j, x)) - floor));
    const name = GAMES[state.game].names[j];
    const made = chart(host, {
      height: 300,
      label: `Likelihood as a share of its peak against the model's probability of ${name}. The peak is at the frequency, ${percent(f[j])}.`,
      x: { domain: [0, 1], ticks: [0, 0.25, 0.5, 0.75, 1].map((v) => [v, percent(v)]), title: `the model’s probability of ${name}` },
      y: { domain: [0, 1], ticks: [[0, "0"], [1, "1"]], title: "likelihood, as a share of its peak" },
      margin: { left: 22, right: 22 },
    });
    const places = Array.from({ length: 399 }, (_, i) => (i + 1) / 400);
    made.svg.append(draw("line", { class: "frequency", x1: made.x(f[j]), x2: made.x(f[j]), y1: made.y(0), y2: made.y(1) }));
    const label = text(made.x(f[j]) + (f[j] > 0.5 ? -8 : 8), made.y(0.5), `frequency ${percent(f[j])}`, { class: "value", "text-anchor": f[j] > 0.5 ? "end" : "start" });
    made.svg.append(draw("path", { class: "thick cross-entropy", d: path(places.map((x) => [made.x(x), made.y(share(x))])) }), label);
    made.svg.append(draw("circle", { class: "dot", cx: made.x(state.q[j]), cy: made.y(share(state.q[j])), r: 7 }));
  }

  function paint() {
    if (!at("game-bars").clientWidth) return;
    paintBars();
    paintCurve();
    const f = frequencies();
    const { product, log } = likelihood(state.q);
    const n = total(counts());
    show("game-what", `A ${state.game}`);
    show("game-throws", grouped(n, 0));
    show("game-product", product === 0 ? "0, where float64 ends" : scientific(product));
    show("game-sum", `${significant(log, 4)} nats`);
    show("game-mean", `${significant(cross(f, state.q), 4)} nats`);
    show("game-floor", `${significant(entropy(f), 4)} nats`);
    const gap = divergence(f, state.q);
    show("game-gap", `${significant(gap < 1e-12 ? 0 : gap)} nats`);
    const peak = gap < 1e-3;
    show("game-verdict", peak ? "This is the peak: the model says what came up, and cross-entropy is at its minimum, the entropy." : "");
  }

  /** Sets one probability of the model; the others keep their proportions. */
  function set(j, value) {
    const most = 1 - LEAST * (state.q.length - 1);
    state.q = withShare(state.q, j, Math.min(Math.max(value, LEAST), most));
    state.moved = j;
    paint();
    state.handles[j].focus({ preventScroll: true });
  }

  function choose() {
    state.game = at("game-kind").value;
    const { names } = GAMES[state.game];
    state.q = names.map((_, j) => (names.length === 2 ? [0.2, 0.8][j] : 1 / names.length));
    state.moved = names.length === 2 ? 0 : 5;
    paint();
  }

  /** Sets the model to the frequencies. */
  function peak() {
    state.q = frequencies();
    paint();
    show("game-status", "The model now has the frequencies.");
  }

  function start() {
    if (!at("game-bars")) return;
    at("game-kind").addEventListener("change", choose);
    at("game-times").addEventListener("change", paint);
    at("game-peak").addEventListener("click", peak);
    whenSized(at("game-bars"), paint);
  }

  return { start, state, likelihood };
})();
