// The decision surface of a network as a picture: at each place the mixture of the classes' colours by the softmax
// there, with the points that it is trained on.

xent.surface = (() => {
  const { softmax, logits } = xent.compute;
  const GRID = 56;
  const STRENGTH = 0.5;
  let palette = null;

  /** The colours of the style sheet as [red, green, blue], read again when the scheme changes. */
  function colours() {
    if (palette) return palette;
    const style = getComputedStyle(document.documentElement);
    const rgb = (name) => {
      const text = style.getPropertyValue(name).trim().replace(/^#(.)(.)(.)$/, "#$1$1$2$2$3$3");
      return [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
    };
    palette = { classes: ["--class-1", "--class-2", "--class-3"].map(rgb), paper: rgb("--paper"), ink: rgb("--ink") };
    for (const [name, variable] of [["muted", "--muted"], ["faint", "--faint"]]) palette[name] = rgb(variable);
    palette["cross-entropy"] = rgb("--cross-entropy");
    palette["squared error"] = rgb("--squared-error");
    return palette;
  }

  const css = (rgb) => `rgb(${rgb.join(" ")})`;

  /** Calls `changed` when the reader's scheme changes, with the new colours in place. */
  function watchScheme(changed) {
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      palette = null;
      changed();
    });
  }

  /** Makes the canvas as sharp as the screen; returns its context in CSS pixels. */
  function sharp(canvas, width, height) {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    return pen;
  }

  /** A circle, a square or a triangle at a place. */
  function shape(pen, label, x, y, size) {
    pen.beginPath();
    if (label % 3 === 0) pen.arc(x, y, size, 0, 2 * Math.PI);
    else if (label % 3 === 1) pen.rect(x - 0.9 * size, y - 0.9 * size, 1.8 * size, 1.8 * size);
    else {
      pen.moveTo(x, y - 1.2 * size);
      pen.lineTo(x + 1.15 * size, y + 0.85 * size);
      pen.lineTo(x - 1.15 * size, y + 0.85 * size);
      pen.closePath();
    }
  }

  /** A view of one network on one canvas. */
  function view(canvas) {
    const field = document.createElement("canvas");
    field.width = field.height = GRID;
    const points = document.createElement("canvas");
    const image = field.getContext("2d").createImageData(GRID, GRID);
    let drawn = "";
    let size = 0;

    /** From the plane to the canvas and back. */
    const toCanvas = (value, reach) => ((value / reach + 1) / 2) * size;
    const toPlane = (value, reach) => ((2 * value) / size - 1) * reach;

    /** The mixture of colours at each place of the grid. */
    function paintField(net, reach) {
      const { classes, paper } = colours();
      const z = new Float64Array(net.classes);
      const q = new Float64Array(net.classes);
      const units = new Float64Array(net.hidden);
      const place = new Float64Array(2);
      for (let row = 0, k = 0; row < GRID; row++) {
        place[1] = reach * (1 - (2 * (row + 0.5)) / GRID);
        for (let column = 0; column < GRID; column++, k += 4) {
          place[0] = reach * ((2 * (column + 0.5)) / GRID - 1);
          softmax(logits(net, place, 0, units, z), q);
          for (let c = 0; c < 3; c++) {
            let mixed = 0;
            for (let j = 0; j < q.length; j++) mixed += q[j] * classes[j][c];
            image.data[k + c] = paper[c] + STRENGTH * (mixed - paper[c]);
          }
          image.data[k + 3] = 255;
        }
      }
      field.getContext("2d").putImageData(image, 0, 0);
    }

    /** The points, which change only with the data, the size and the scheme. */
    function paintPoints(data) {
      const { classes, paper } = colours();
      const key = [size, data.id, css(paper), window.devicePixelRatio].join();
      if (key === drawn) return;
      drawn = key;
      const pen = sharp(points, size, size);
      pen.clearRect(0, 0, size, size);
      pen.lineWidth = 1.25;
      pen.strokeStyle = css(paper);
      data.labels.forEach((label, row) => {
        shape(pen, label, toCanvas(data.x[2 * row], data.reach), toCanvas(-data.x[2 * row + 1], data.reach), size < 260 ? 2.3 : 4.2);
        pen.fillStyle = css(classes[label]);
        pen.fill();
        pen.stroke();
      });
    }

    /** A ring around a row. */
    function ring(pen, data, row, radius, width) {
      pen.beginPath();
      pen.arc(toCanvas(data.x[2 * row], data.reach), toCanvas(-data.x[2 * row + 1], data.reach), radius, 0, 2 * Math.PI);
      pen.lineWidth = width;
      pen.stroke();
    }

    /** Draws everything: the rows `worst` with a thin ring, the row `chosen` with a thick one. */
    function paint(net, data, worst, chosen) {
      size = canvas.clientWidth;
      if (!size) return;
      paintField(net, data.reach);
      paintPoints(data);
      const pen = sharp(canvas, size, size);
      pen.imageSmoothingEnabled = true;
      pen.drawImage(field, 0, 0, size, size);
      pen.drawImage(points, 0, 0, size, size);
      pen.strokeStyle = css(colours().ink);
      const scale = size < 260 ? 0.6 : 1;
      for (const row of worst) ring(pen, data, row, 7.5 * scale, 1.25);
      ring(pen, data, chosen, 10 * scale, 3 * scale);
    }

    /** The row nearest to a place on the canvas. */
    function nearest(data, x, y) {
      const at = [toPlane(x, data.reach), -toPlane(y, data.reach)];
      const distance = (row) => (data.x[2 * row] - at[0]) ** 2 + (data.x[2 * row + 1] - at[1]) ** 2;
      return data.labels.reduce((best, _, row) => (distance(row) < distance(best) ? row : best), 0);
    }

    /** Where a row is on the canvas. */
    const placeOf = (data, row) => [toCanvas(data.x[2 * row], data.reach), toCanvas(-data.x[2 * row + 1], data.reach)];

    return { paint, nearest, placeOf };
  }

  return { view, colours, css, sharp, shape, watchScheme };
})();
