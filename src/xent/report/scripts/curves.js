// The small charts under the surfaces: each measures both networks in one unit over the steps of the training.

xent.curves = (() => {
  const { colours, css, sharp } = xent.surface;
  const { magnitude } = xent.format;
  const MOST = 400;
  const MEASURES = [
    { name: "accuracy", title: "points right", top: 1, text: (v) => `${Math.round(100 * v)}%` },
    { name: "crossEntropy", title: "mean cross-entropy, nats", text: (v) => magnitude(v) },
    { name: "squaredError", title: "mean squared error, no unit", text: (v) => magnitude(v) },
    { name: "gradient", title: "mean length of the own gradient, no unit", text: (v) => magnitude(v) },
  ];

  /** Measures of both networks at some steps; when there are many, every second one is forgotten. */
  function history() {
    return { steps: [], values: {}, stride: 1 };
  }

  /** Adds what was measured at a step, unless a step so near is there already. */
  function add(past, step, measured) {
    if (past.steps.length && step - past.steps.at(-1) < past.stride) return;
    past.steps.push(step);
    for (const [loss, found] of Object.entries(measured)) {
      for (const { name } of MEASURES) ((past.values[loss] ??= {})[name] ??= []).push(found[name]);
    }
    if (past.steps.length <= MOST) return;
    const half = (list) => list.filter((_, i) => i % 2 === 0);
    past.steps = half(past.steps);
    for (const measures of Object.values(past.values)) for (const name in measures) measures[name] = half(measures[name]);
    past.stride *= 2;
  }

  /** One curve; infinite values end it. */
  function line(pen, past, loss, name, x, y) {
    pen.beginPath();
    past.steps.forEach((step, i) => {
      const value = past.values[loss][name][i];
      if (Number.isFinite(value)) pen.lineTo(x(step), y(value));
    });
    pen.strokeStyle = css(colours()[loss]);
    pen.setLineDash(loss === "squared error" ? [5, 3] : []);
    pen.lineWidth = 2;
    pen.stroke();
    pen.setLineDash([]);
  }

  /** Draws one measure on its canvas. */
  function paint(canvas, past, { name, top, text }) {
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (!width) return;
    const pen = sharp(canvas, width, height);
    pen.clearRect(0, 0, width, height);
    const all = Object.values(past.values).flatMap((measures) => measures[name]).filter(Number.isFinite);
    const most = top ?? (Math.max(...all, 1e-9) * 1.05);
    const last = Math.max(past.steps.at(-1) ?? 0, 20);
    const x = (step) => 2 + (step / last) * (width - 4);
    const y = (value) => height - 16 - (value / most) * (height - 32);
    pen.fillStyle = pen.strokeStyle = css(colours().muted);
    pen.font = '11px system-ui, "Segoe UI", Roboto, sans-serif';
    pen.lineWidth = 1;
    pen.textAlign = "left";
    pen.fillText(text(most), 0, 10);
    pen.fillText("0", 0, height - 3);
    pen.textAlign = "right";
    pen.fillText(`step ${last.toLocaleString("en-US")}`, width, height - 3);
    pen.strokeStyle = css(colours().faint);
    for (const value of [0, most]) {
      pen.beginPath();
      pen.moveTo(0, y(value));
      pen.lineTo(width, y(value));
      pen.stroke();
    }
    for (const loss of Object.keys(past.values)) line(pen, past, loss, name, x, y);
  }

  return { MEASURES, history, add, paint };
})();
