// Why the logarithm: three demands on a measure of surprise, and a slider that breaks each of them.
//
//     I(p) = offset + sign (1 - p^bend) / bend            which is -log p for offset 0, sign 1 and bend 0

xent.demands = (() => {
  const { at, draw, show } = xent.page;
  const { path, chart, whenSized } = xent.plot;
  const { significant } = xent.format;
  const { units } = xent;

  const value = (id) => Number(at(id).value);

  /** The measure that the sliders describe, in nats. */
  function measure() {
    const [offset, sign, bend] = [value("demand-offset"), value("demand-sign"), value("demand-bend")];
    return (p) => offset + sign * (bend === 0 ? -Math.log(p) : (1 - p ** bend) / bend);
  }

  const near = (a, b) => Math.abs(a - b) < 1e-9;

  /** Whether each demand holds, with its numbers. */
  function judge(I) {
    const whole = units.of(I(1 / 8));
    const parts = units.of(I(1 / 2) + I(1 / 4));
    const written = (x) => (Math.abs(x) < 1e-9 ? "0" : significant(x));
    return [
      { holds: near(I(1), 0), words: `I(1) = ${written(units.of(I(1)))}` },
      { holds: I(1 / 8) > I(1 / 2) + 1e-9, words: `I(1/8) = ${written(whole)}, I(1/2) = ${written(units.of(I(1 / 2)))}` },
      { holds: near(whole, parts), words: `I(1/8) = ${written(whole)}, I(1/2) + I(1/4) = ${written(parts)}` },
    ];
  }

  function paint() {
    const host = at("demands-picture");
    if (!host.clientWidth) return;
    const I = measure();
    const top = units.of(5 * Math.LN2);
    const ticks = units.isBits() ? [-2, 0, 2, 4] : [-2, -1, 0, 1, 2, 3];
    const judged = judge(I);
    const made = chart(host, {
      height: 300,
      label: `The measure I(p) over probabilities, beside the logarithm. ${judged.map((j) => j.words).join("; ")}.`,
      x: { domain: [0, 1], ticks: [[0, "0"], [0.125, "1/8"], [0.25, "1/4"], [0.5, "1/2"], [1, "1"]], title: "probability p" },
      y: { domain: [-0.6 * top, top], ticks: ticks.map((v) => [v, String(v).replace("-", "−")]), title: `I(p), ${units.name()}` },
    });
    const places = Array.from({ length: 200 }, (_, i) => ((i + 1) / 200) ** 2);
    const isInside = (p, f) => units.of(f(p)) <= top && units.of(f(p)) >= -0.6 * top;
    const curve = (f) => path(places.filter((p) => isInside(p, f)).map((p) => [made.x(p), made.y(units.of(f(p)))]));
    made.svg.append(draw("path", { class: "reference", d: curve((p) => -Math.log(p)) }));
    made.svg.append(draw("path", { class: "thick ink", d: curve(I) }));
    for (const p of [1 / 8, 1 / 4, 1 / 2, 1].filter((place) => isInside(place, I))) {
      made.svg.append(draw("circle", { class: "dot", cx: made.x(p), cy: made.y(units.of(I(p))), r: 5 }));
    }
    judged.forEach(({ holds, words }, k) => {
      const item = at(`demand-${k + 1}`);
      item.classList.toggle("broken", !holds);
      show(`demand-${k + 1}-verdict`, `${holds ? "holds" : "fails"}: ${words}`);
    });
    const kept = judged.filter(({ holds }) => holds).length;
    show("demands-verdict", kept === 3 ? "All three hold: this is a logarithm, and the unit is all that is left to choose." : `${3 - kept} of the three fail${kept === 2 ? "s" : ""}.`);
  }

  function reset() {
    for (const [id, start] of [["demand-offset", 0], ["demand-sign", 1], ["demand-bend", 0]]) at(id).value = start;
    paint();
  }

  function start() {
    if (!at("demands-picture")) return;
    for (const id of ["demand-offset", "demand-sign", "demand-bend"]) at(id).addEventListener("input", paint);
    at("demands-reset").addEventListener("click", reset);
    whenSized(at("demands-picture"), paint);
    units.follow(paint);
  }

  return { start, measure, judge };
})();
