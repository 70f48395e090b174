// The picture of the head: both losses from the confidently wrong start, drawn as the training ran.

xent.race = (() => {
  const { at, data, draw, animate, isStill, show } = xent.page;
  const { path, text, chart, whenSized } = xent.plot;
  const SECONDS = 5;
  const CLASS = { "cross-entropy": "cross-entropy", "squared error": "squared-error" };

  /** The accuracy of the curve at a place on the logarithmic axis, on the line between two recorded steps. */
  function valueAt(curve, step) {
    let i = 0;
    while (i + 2 < curve.step.length && curve.step[i + 1] <= step) i++;
    const share = Math.log(step / curve.step[i]) / Math.log(curve.step[i + 1] / curve.step[i]);
    return curve.accuracy[i] + Math.min(share, 1) * (curve.accuracy[i + 1] - curve.accuracy[i]);
  }

  /** A chart of all curves behind a clip, which the animation opens from left to right. */
  function scene(host, race) {
    const last = Math.max(...race.medians.flatMap((curve) => curve.step));
    const steps = [1, 10, 100, 1000, 10000].filter((step) => step <= last);
    const small = host.clientWidth < 500;
    const made = chart(host, {
      height: small ? 300 : 400,
      label: race.description,
      margin: { right: small ? 20 : 170, left: 50 },
      x: {
        domain: [0.5, last],
        log: true,
        ticks: [[0.5, "0"], ...steps.map((step) => [step, step.toLocaleString("en-US")])],
        title: "steps of gradient descent",
      },
      y: { domain: [0, 1], ticks: [0, 0.25, 0.5, 0.75, 1].map((v) => [v, `${100 * v}%`]), title: race.measure },
    });
    const clip = draw("rect", { x: 0, y: 0, width: 0, height: made.height });
    made.svg.append(draw("clipPath", { id: "race-clip" }, clip));
    const lines = draw("g", { "clip-path": "url(#race-clip)" });
    const line = (curve, name) => {
      const points = curve.step.map((step, i) => [made.x(step), made.y(curve.accuracy[i])]);
      lines.append(draw("path", { class: `${name} ${CLASS[curve.loss]}`, d: path(points) }));
    };
    for (const curve of race.seeds) line(curve, "thin");
    for (const curve of race.medians) line(curve, "thick");
    made.svg.append(lines);
    const heads = race.medians.map((curve) => ({ curve, ...head(made.svg, curve) }));
    return { ...made, clip, heads, last, small };
  }

  /** The mark that leads a curve, with its name and value. */
  function head(svg, curve) {
    const mark = curve.loss === "cross-entropy" ? draw("circle", { r: 6 }) : draw("path", { d: "M0 -7L7 6H-7Z" });
    const group = draw("g", { class: `head ${CLASS[curve.loss]}` }, mark);
    const words = text(0, 0, "", { class: `name ${CLASS[curve.loss]}` });
    svg.append(group, words);
    return { group, words };
  }

  /** Shows the race up to a share of its way. */
  function drawTo(made, share) {
    const step = 0.5 * (made.last / 0.5) ** share;
    const x = made.x(step);
    made.clip.setAttribute("width", x);
    const heights = made.heads.map(({ curve }) => made.y(valueAt(curve, step)));
    const apart = spread(heights);
    made.heads.forEach(({ curve, group, words }, i) => {
      group.setAttribute("transform", `translate(${x} ${heights[i]})`);
      words.textContent = `${curve.loss} ${(100 * valueAt(curve, step)).toFixed(0)}%`;
      const before = made.small && share > 0.45;
      words.setAttribute("text-anchor", before ? "end" : "start");
      words.setAttribute("x", x + (before ? -12 : 14));
      words.setAttribute("y", apart[i] + (made.small ? shift(apart, i, made) : 5));
    });
    show("race-step", step < 1 ? "0" : Math.floor(step + 1e-9).toLocaleString("en-US"));
  }

  /** On a small screen names are above and below the curves: below only where there is room over the axis. */
  function shift(heights, i, made) {
    const isLower = heights[i] > heights[1 - i];
    return isLower && heights[i] < made.height - made.room.bottom - 30 ? 22 : -12;
  }

  /** Two heights, moved apart so that the words at them do not overlap. */
  function spread([a, b]) {
    const gap = 20 - Math.abs(a - b);
    if (gap <= 0) return [a, b];
    return a <= b ? [a - gap / 2, b + gap / 2] : [a + gap / 2, b - gap / 2];
  }

  function start() {
    const host = at("race-picture");
    if (!host || !data.race) return;
    const button = at("race-again");
    let made = null;
    let share = isStill() ? 1 : 0;
    let stop = null;
    const name = (words) => (button.textContent = words);
    const play = () => {
      const from = share >= 1 ? 0 : share;
      name("Pause");
      stop = animate(SECONDS * (1 - from), (part) => drawTo(made, (share = from + (1 - from) * part)), () => {
        stop = null;
        name("Play again");
      });
      if (share >= 1) stop = null;
    };
    button.addEventListener("click", () => {
      if (!stop) return play();
      stop();
      stop = null;
      return name("Play");
    });
    whenSized(host, () => {
      const isFirst = made === null;
      made = scene(host, data.race);
      drawTo(made, share);
      if (isFirst && !isStill()) play();
    });
    name("Play again");
  }

  return { start, drawTo };
})();
