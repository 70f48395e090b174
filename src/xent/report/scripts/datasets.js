// Points in the plane to train on: three classes each, the same every time; or two columns of the reader's own rows.

xent.datasets = (() => {
  const { random, normal } = xent.compute;
  const ROWS = 180;
  const NAMES = ["round", "square", "triangle"];

  /** Points of three classes in turn, each from place(share, class, gauss, uniform): share runs from 0 to 1. */
  function made(seed, place) {
    const uniform = random(seed);
    const gauss = normal(uniform);
    const x = new Float64Array(2 * ROWS);
    const labels = Array.from({ length: ROWS }, (_, row) => row % 3);
    labels.forEach((label, row) => x.set(place(Math.floor(row / 3) / (ROWS / 3), label, gauss, uniform), 2 * row));
    return { x, labels, classes: NAMES, axes: ["x", "y"], reach: 2.6 };
  }

  const turned = (radius, angle) => [radius * Math.cos(angle), radius * Math.sin(angle)];
  const jittered = ([a, b], gauss, size) => [a + size * gauss(), b + size * gauss()];

  const SETS = {
    blobs: () => made(3, (share, label, gauss) => jittered(turned(1.35, Math.PI / 2 + (2 * Math.PI * label) / 3), gauss, 0.5)),
    rings: () => made(5, (share, label, gauss, uniform) => jittered(turned(0.35 + 0.85 * label, 2 * Math.PI * uniform()), gauss, 0.14)),
    spirals: () => made(7, (share, label, gauss) => jittered(turned(0.25 + 2 * share, (2 * Math.PI * label) / 3 + 3.6 * share), gauss, 0.07)),
  };

  /** The reader's rows: the columns chosen from the table that Python left, standardised by it. */
  function own(plane, [across, up]) {
    const columns = [across, up].map((i) => plane.columns[i]);
    const x = new Float64Array(2 * plane.labels.length);
    plane.labels.forEach((_, row) => x.set([columns[0].values[row], columns[1].values[row]], 2 * row));
    const reach = Math.max(...x.map(Math.abs)) * 1.08 || 1;
    return { x, labels: plane.labels, classes: plane.classes, axes: columns.map((c) => c.name), reach };
  }

  return { SETS, own };
})();
