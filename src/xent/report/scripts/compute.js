// The mathematics of the page: softmax, both losses and their gradients by the logits, a small network and its training,
// and the quantities of information theory. The equations are those of docs/definitions.md; nothing here knows the page.
//
// A distribution is an array of probabilities, logits are an array of numbers, a label is the index of a class. All
// arithmetic is in float64, logarithms are natural, and results are in nats.

xent.compute = (() => {
  /** log(sum(exp(z))) relative to the largest logit: its index, and log1p of the rest, which keeps small losses exact. */
  function largest(z) {
    let top = 0;
    for (let j = 1; j < z.length; j++) if (z[j] > z[top]) top = j;
    let rest = 0;
    for (let j = 0; j < z.length; j++) if (j !== top) rest += Math.exp(z[j] - z[top]);
    return { top, rest };
  }

  /** q[j] = exp(z[j]) / sum(exp(z)), into `q`. */
  function softmax(z, q = new Float64Array(z.length)) {
    const { top, rest } = largest(z);
    for (let j = 0; j < z.length; j++) q[j] = j === top ? 1 / (1 + rest) : Math.exp(z[j] - z[top]) / (1 + rest);
    return q;
  }

  /** -log q[label] in nats, of the softmax q of the logits. */
  function crossEntropy(z, label) {
    const { top, rest } = largest(z);
    return z[top] - z[label] + Math.log1p(rest);
  }

  /** q - p, where p is one-hot: the label's entry is minus the sum of the others, which loses no digits near q = 1. */
  function difference(z, label, d = new Float64Array(z.length)) {
    softmax(z, d);
    let others = 0;
    for (let j = 0; j < z.length; j++) if (j !== label) others += d[j];
    d[label] = -others;
    return d;
  }

  /** The gradient of the cross-entropy by the logits, q - p. */
  function crossEntropyGradient(z, label, g = new Float64Array(z.length)) {
    return difference(z, label, g);
  }

  /** sum((q - p)^2), the Brier score: no unit, from 0 to 2. */
  function squaredError(z, label) {
    return difference(z, label).reduce((sum, d) => sum + d * d, 0);
  }

  /**
   * The gradient of the squared error by the logits, 2 q (d - sum(q d)) with d = q - p; written as
   * 2 q[j] ((1 - q[j]) d[j] - sum of the other q[k] d[k]), whose terms do not cancel where one class has all.
   */
  function squaredErrorGradient(z, label, g = new Float64Array(z.length)) {
    const q = softmax(z);
    const d = difference(z, label);
    for (let j = 0; j < z.length; j++) {
      let others = 0;
      let mean = 0;
      for (let k = 0; k < z.length; k++) {
        if (k === j) continue;
        others += q[k];
        mean += q[k] * d[k];
      }
      g[j] = 2 * q[j] * (others * d[j] - mean);
    }
    return g;
  }

  const LOSSES = {
    "cross-entropy": { value: crossEntropy, gradient: crossEntropyGradient },
    "squared error": { value: squaredError, gradient: squaredErrorGradient },
  };

  /** The Euclidean length of a vector. */
  function length(vector) {
    return Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0));
  }

  /** Random numbers in [0, 1) that repeat for a seed (the generator mulberry32). */
  function random(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  /** Standard normal numbers from a generator of uniform ones, by Box and Muller. */
  function normal(uniform) {
    return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  }

  /**
   * A network: logits = W relu(V x + c) + b, or logits = W x + b where `hidden` is 0. `weights` is [V, c, W, b] or
   * [W, b], matrices row by row. The start is that of the experiment: He initialisation, and small output weights.
   */
  function network(inputs, hidden, classes, seed) {
    const gauss = normal(random(seed));
    const drawn = (count, deviation) => Float64Array.from({ length: count }, () => deviation * gauss());
    const fan = hidden || inputs;
    const output = [drawn(classes * fan, 0.1 / Math.sqrt(fan)), new Float64Array(classes)];
    const layer = hidden ? [drawn(hidden * inputs, Math.sqrt(2 / inputs)), new Float64Array(hidden)] : [];
    return { inputs, hidden, classes, weights: [...layer, ...output] };
  }

  /** A network with the same weights, to be trained on its own. */
  function copy(net) {
    return { ...net, weights: net.weights.map((w) => w.slice()) };
  }

  /** y = W x + b, where x starts at `from` in an array. */
  function affine(W, b, x, from, y) {
    const width = W.length / b.length;
    for (let j = 0, k = 0; j < b.length; j++) {
      let sum = b[j];
      for (let i = 0; i < width; i++, k++) sum += W[k] * x[from + i];
      y[j] = sum;
    }
    return y;
  }

  /** The logits of one row, which starts at `from` in `x`; the hidden units, if any, are left in `units`. */
  function logits(net, x, from, units, z) {
    if (!net.hidden) return affine(net.weights[0], net.weights[1], x, from, z);
    affine(net.weights[0], net.weights[1], x, from, units);
    for (let i = 0; i < units.length; i++) if (!(units[i] > 0)) units[i] = 0;
    return affine(net.weights[2], net.weights[3], units, 0, z);
  }

  /** Calls visit(row, z, units) for the logits of every row of the data; both arrays are used again for the next. */
  function eachRow(net, data, visit) {
    const z = new Float64Array(net.classes);
    const units = new Float64Array(net.hidden);
    for (let row = 0; row < data.labels.length; row++) {
      visit(row, logits(net, data.x, row * net.inputs, units, z), units);
    }
  }

  /** The gradient of the mean loss of the data by the weights, by the chain rule: arrays as in `net.weights`. */
  function weightGradients(net, data, loss) {
    const gradients = net.weights.map((w) => new Float64Array(w.length));
    const [dW, db] = gradients.slice(-2);
    const W = net.weights.at(-2);
    const g = new Float64Array(net.classes);
    const { gradient } = LOSSES[loss];
    const fan = net.hidden || net.inputs;
    eachRow(net, data, (row, z, units) => {
      gradient(z, data.labels[row], g);
      for (let j = 0; j < g.length; j++) {
        g[j] /= data.labels.length;
        db[j] += g[j];
        for (let i = 0; i < fan; i++) dW[j * fan + i] += g[j] * (net.hidden ? units[i] : data.x[row * net.inputs + i]);
      }
      if (net.hidden) backwards(net, data, row, units, g, W, gradients);
    });
    return gradients;
  }

  /** Adds one row's part of the hidden layer's gradients. */
  function backwards(net, data, row, units, g, W, [dV, dc]) {
    for (let i = 0; i < net.hidden; i++) {
      if (!(units[i] > 0)) continue;
      let sum = 0;
      for (let j = 0; j < g.length; j++) sum += g[j] * W[j * net.hidden + i];
      dc[i] += sum;
      for (let k = 0; k < net.inputs; k++) dV[i * net.inputs + k] += sum * data.x[row * net.inputs + k];
    }
  }

  /** One step of gradient descent on all rows, in place. */
  function step(net, data, loss, rate) {
    const gradients = weightGradients(net, data, loss);
    net.weights.forEach((w, which) => {
      for (let k = 0; k < w.length; k++) w[k] -= rate * gradients[which][k];
    });
  }

  /** Means over the rows: share of right rows, both losses, and the length of one loss's gradient by the logits. */
  function measure(net, data, loss) {
    const found = { accuracy: 0, crossEntropy: 0, squaredError: 0, gradient: 0, nats: [] };
    const rows = data.labels.length;
    eachRow(net, data, (row, z) => {
      const label = data.labels[row];
      const nats = crossEntropy(z, label);
      found.nats.push(nats);
      found.accuracy += (largest(z).top === label) / rows;
      found.crossEntropy += nats / rows;
      found.squaredError += squaredError(z, label) / rows;
      found.gradient += length(LOSSES[loss].gradient(z, label)) / rows;
    });
    return found;
  }

  /** -log p: the information content of an event, in nats; 0 log 0 is 0 in the sums below. */
  function information(p) {
    return -Math.log(p);
  }

  /** H(p) = -sum p log p. */
  function entropy(p) {
    return cross(p, p);
  }

  /** H(p, q) = -sum p log q, infinite where an event of p is impossible under q. */
  function cross(p, q) {
    return p.reduce((sum, value, j) => sum + (value > 0 ? -value * Math.log(q[j]) : 0), 0);
  }

  /** KL(p || q) = sum p log(p / q). */
  function divergence(p, q) {
    return p.reduce((sum, value, j) => sum + (value > 0 ? value * Math.log(value / q[j]) : 0), 0);
  }

  /** A normal density at evenly spaced places, as probabilities that sum to 1; far tails keep 1e-300. */
  function bell(places, mean, width) {
    const values = places.map((x) => Math.max(Math.exp(-0.5 * ((x - mean) / width) ** 2), 1e-300));
    const total = values.reduce((sum, value) => sum + value, 0);
    return values.map((value) => value / total);
  }

  /** The [mean, width] whose bell has the least `distance(bell)`: from each start, smaller and smaller steps downhill. */
  function fitBell(places, distance, starts) {
    const cost = ([mean, width]) => (width > 0.05 ? distance(bell(places, mean, width)) : Infinity);
    let best = null;
    for (const start of starts) {
      let at = start;
      for (let size = 0.5; size > 1e-7; ) {
        const moves = [[size, 0], [-size, 0], [0, size], [0, -size]].map(([a, b]) => [at[0] + a, at[1] + b]);
        const next = moves.reduce((one, other) => (cost(other) < cost(one) ? other : one));
        if (cost(next) < cost(at)) at = next;
        else size /= 2;
      }
      if (best === null || cost(at) < cost(best)) best = at;
    }
    return best;
  }

  return {
    softmax, crossEntropy, crossEntropyGradient, squaredError, squaredErrorGradient, LOSSES, length, random, normal,
    network, copy, logits, eachRow, weightGradients, step, measure, information, entropy, cross, divergence, bell, fitBell,
  };
})();
