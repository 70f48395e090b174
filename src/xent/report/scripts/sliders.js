// The sliders of the first part, and the numbers of its text, which follow them.

xent.sliders = (() => {
  const { at, data, show } = xent.page;
  const { magnitude, significant, percent, scientific } = xent.format;
  const { LOSSES, softmax, length } = xent.compute;

  /** Both losses of one prediction and the lengths of their gradients, as text. */
  function numbers(z, label) {
    const [ce, se] = Object.values(LOSSES).map(({ value, gradient }) => [value(z, label), length(gradient(z, label))]);
    return { ce, se };
  }

  /** Beside the curves: a prediction of two classes that gives the true one a probability of the grid. */
  function followTruth(slider) {
    const p = data.truth[Number(slider.value)];
    const { ce, se } = numbers([Math.log(p), Math.log1p(-p)], 0);
    const words = p < 0.001 ? scientific(p, 2) : percent(p);
    show("truth-p", words);
    show("truth-ce", magnitude(ce[0]));
    show("truth-se", magnitude(se[0]));
    show("truth-ce-gradient", magnitude(ce[1]));
    show("truth-se-gradient", magnitude(se[1]));
    const ratio = ce[1] / se[1];
    show("truth-ratio", `${magnitude(ratio)} times as long`);
    const costs = `cross-entropy ${magnitude(ce[0])} nats, squared error ${magnitude(se[0])}`;
    slider.setAttribute("aria-valuetext", `${words}: ${costs}`);
  }

  /** Beside the three logits: a table of both losses and both lengths. */
  function followLogits(sliders) {
    const z = sliders.map((slider) => Number(slider.value));
    const { ce, se } = numbers(z, 0);
    const q = softmax(z);
    show("logits-q", q[0] < 0.001 ? scientific(q[0], 2) : percent(q[0]));
    show("logits-ce", `${magnitude(ce[0])} nats`);
    show("logits-se", `${magnitude(se[0])} of at most 2`);
    show("logits-ce-gradient", magnitude(ce[1]));
    show("logits-se-gradient", magnitude(se[1]));
    sliders.forEach((slider, j) => show(`logit-value-${j + 1}`, significant(z[j], 2)));
  }

  function start() {
    const truth = at("truth");
    followTruth(truth);
    truth.addEventListener("input", () => followTruth(truth));
    const logits = [1, 2, 3].map((k) => at(`logit-${k}`));
    followLogits(logits);
    for (const slider of logits) slider.addEventListener("input", () => followLogits(logits));
  }

  return { start };
})();
