// Information as area: each event is a box as wide as its probability under p and as high as its code word under q.
// All boxes together are H(p, q); up to the code made for p itself they are H(p); the rest is KL(p || q).

xent.areas = (() => {
  const { at, draw, show, animate } = xent.page;
  const { text, whenSized, scale } = xent.plot;
  const { percent, significant } = xent.format;
  const { entropy, cross, divergence } = xent.compute;
  const { handle, say, withShare } = xent.handles;
  const { units } = xent;

  const LEAST = 1 / 64;
  const NAMES = ["A", "B", "C", "D"];
  const SETS = {
    code: { p: [1 / 2, 1 / 4, 1 / 8, 1 / 8], q: [1 / 8, 1 / 2, 1 / 4, 1 / 8] },
    even: { p: [1 / 2, 1 / 4, 1 / 8, 1 / 8], q: [1 / 4, 1 / 4, 1 / 4, 1 / 4] },
    equal: { p: [1 / 2, 1 / 4, 1 / 8, 1 / 8], q: [1 / 2, 1 / 4, 1 / 8, 1 / 8] },
    label: { p: [0, 0, 1], q: [0.6, 0.2, 0.2] },
  };
  const state = { ...structuredClone(SETS.code), handles: {} };

  /** The length of a code word in nats: -log q. */
  const word = (q) => -Math.log(q);
  const most = () => 6 * Math.LN2;

  /** The axes: probability across, length of the code word upwards. */
  function frame(host) {
    const width = Math.max(host.clientWidth, 260);
    const height = width < 500 ? 330 : 400;
    const svg = draw("svg", { width, height, role: "group", "aria-label": "Information as area: boxes with handles" });
    const room = { left: 40, right: 14, top: 34, bottom: 40 };
    const x = scale([0, 1], [room.left, width - room.right]);
    const y = scale([0, most()], [height - room.bottom, room.top]);
    const step = units.isBits() ? 2 : 1;
    for (let value = 0; units.back(value) <= most() + 1e-9; value += step) {
      const at_ = y(units.back(value));
      svg.append(draw("line", { class: "grid", x1: room.left, x2: width - room.right, y1: at_, y2: at_ }));
      svg.append(text(room.left - 8, at_ + 4, String(value), { class: "tick", "text-anchor": "end" }));
    }
    svg.append(text(0, 12, `length of the code word, ${units.name()}`, { class: "title" }));
    svg.append(text(width - room.right, height - 4, "probability under p", { class: "title", "text-anchor": "end" }));
    return { svg, x, y, width, height };
  }

  /** One event: the part that both codes need, what q needs more, or what it saves. */
  function box({ svg, x, y }, from, p, q, name) {
    if (p <= 0) return;
    const [own, needed] = [Math.min(word(p), most()), Math.min(word(q), most())];
    const rect = (kind, low, high) => {
      if (high > low) svg.append(draw("rect", { class: kind, x: x(from), width: x(from + p) - x(from), y: y(high), height: y(low) - y(high) }));
    };
    rect("shared", 0, Math.min(own, needed));
    rect("more", own, needed);
    rect("less", needed, own);
    rect("outline", 0, needed);
    const middle = x(from + p / 2);
    if (x(from + p) - x(from) > 22) {
      svg.append(text(middle, y(0) + 18, name, { "text-anchor": "middle", class: "event" }));
    }
    if (x(from + p) - x(from) > 58) {
      const label = Number.isFinite(word(q)) ? significant(units.of(word(q))) : "∞";
      svg.append(text(middle, y(needed) - 14, label, { "text-anchor": "middle", class: "value" }));
    }
  }

  /** The handles: between two events for p, on top of each box for q. */
  function addHandles(made) {
    const { svg, x, y } = made;
    state.handles = { p: [], q: [] };
    let from = 0;
    state.p.forEach((p, j) => {
      const start = from;
      const middle = x(start + p / 2);
      const needed = Math.min(word(state.q[j]), most());
      if (p > 0) {
        const wide = Math.max(10, Math.min(34, x(start + p) - x(start) - 4));
        const grip = [
          draw("rect", { class: "reach", x: middle - 22, y: y(needed) - 12, width: 44, height: 24 }),
          draw("rect", { class: "grip", x: middle - wide / 2, y: y(needed) - 4, width: wide, height: 8, rx: 4 }),
        ];
        const name = `Code word of ${NAMES[j]}: its probability under q`;
        const group = handle(svg, {
          name, axis: "y", grip,
          drag: (_, py) => setWord(j, ((y(0) - py) / (y(0) - y(most()))) * most()),
          nudge: (steps) => setWord(j, word(state.q[j]) + units.back(0.1 * steps)),
        });
        say(group, 0, units.of(Math.min(word(state.q[j]), most())), units.of(most()), `${NAMES[j]}: q ${percent(state.q[j])}, ${units.text(word(state.q[j]))}`);
        state.handles.q[j] = group;
      }
      from += p;
      if (j === state.p.length - 1) return;
      const edge = x(from);
      const grip = [
        draw("rect", { class: "reach", x: edge - 12, y: y(0) - 26, width: 24, height: 44 }),
        draw("circle", { class: "grip", cx: edge, cy: y(0), r: 7 }),
      ];
      const group = handle(svg, {
        name: `Edge between ${NAMES[j]} and ${NAMES[j + 1]}: their probabilities under p`, axis: "x", grip,
        drag: (px) => setEdge(j, (px - x(0)) / (x(1) - x(0))),
        nudge: (steps) => setEdge(j, state.p.slice(0, j + 1).reduce((a, b) => a + b, 0) + 0.01 * steps),
      });
      say(group, 0, from, 1, `${NAMES[j]} ${percent(p)}, ${NAMES[j + 1]} ${percent(state.p[j + 1])}`);
      state.handles.p[j] = group;
    });
  }

  /** Moves the edge after event j, between the edges beside it. */
  function setEdge(j, value) {
    const before = state.p.slice(0, j).reduce((a, b) => a + b, 0);
    const both = state.p[j] + state.p[j + 1];
    state.p[j] = Math.min(Math.max(value - before, 0), both);
    state.p[j + 1] = both - state.p[j];
    moved("p", j);
  }

  /** Gives event j a code word of this length, in nats; the other words become as long as they must. */
  function setWord(j, nats) {
    const q = Math.min(Math.max(Math.exp(-nats), LEAST), 1 - LEAST * (state.q.length - 1));
    state.q = withShare(state.q, j, q);
    moved("q", j);
  }

  function moved(which, j) {
    paint();
    state.handles[which][j]?.focus({ preventScroll: true });
  }

  /** Draws the picture, and writes every number of it. */
  function paint() {
    const host = at("areas-picture");
    if (!host.clientWidth) return;
    const made = frame(host);
    made.svg.prepend(hatching());
    let from = 0;
    state.p.forEach((p, j) => {
      box(made, from, p, state.q[j], NAMES[j]);
      from += p;
    });
    host.replaceChildren(made.svg);
    addHandles(made);
    write();
  }

  function hatching() {
    const line = draw("path", { d: "M0 6L6 0", class: "hatch" });
    return draw("defs", {}, draw("pattern", { id: "saved", width: 6, height: 6, patternUnits: "userSpaceOnUse" }, line));
  }

  function write() {
    const { p, q } = state;
    const [own, all, more] = [entropy(p), cross(p, q), divergence(p, q)];
    show("area-entropy", units.text(own));
    show("area-cross", units.text(all));
    show("area-divergence", units.text(more));
    show("area-reversed", units.text(divergence(q, p)));
    const list = (shares) => shares.map((share, j) => `${NAMES[j]} ${percent(share)}`).join(", ");
    show("area-p", list(p));
    show("area-q", list(q));
    const words = `p: ${list(p)}. q: ${list(q)}. Entropy ${units.text(own)}, divergence ${units.text(more)}, cross-entropy ${units.text(all)}.`;
    at("areas-picture").firstChild?.setAttribute("aria-label", `Information as area. ${words}`);
  }

  /** Exchanges p and q: every box turns from one into the other. */
  function swap() {
    const [p, q] = [state.p.slice(), state.q.slice()];
    const mix = (a, b, share) => a.map((value, j) => value + share * (b[j] - value));
    animate(0.7, (share) => {
      state.p = share < 1 ? mix(p, q, share) : q;
      state.q = share < 1 ? mix(q, p, share) : p;
      paint();
    }, () => show("area-status", `Swapped. KL(p ‖ q) is ${units.text(divergence(state.p, state.q))} now.`));
  }

  function choose(name) {
    Object.assign(state, structuredClone(SETS[name]));
    paint();
  }

  function start() {
    if (!at("areas-picture")) return;
    at("areas-set").addEventListener("change", (event) => choose(event.target.value));
    at("areas-swap").addEventListener("click", swap);
    whenSized(at("areas-picture"), paint);
    units.follow(paint);
  }

  return { start, state };
})();
