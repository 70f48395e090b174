// One point of the lab, as both networks see it: its softmax, both losses, both gradients, and where each step goes.

xent.inspect = (() => {
  const { draw, make, show } = xent.page;
  const { text } = xent.plot;
  const { magnitude, percent, scientific } = xent.format;
  const { LOSSES, softmax, logits, length } = xent.compute;

  const probability = (q) => (q > 0 && q < 0.001 ? scientific(q, 2) : percent(q));

  /** The logits of one row. */
  function logitsOf(net, data, row) {
    return logits(net, data.x, 2 * row, new Float64Array(net.hidden), new Float64Array(net.classes));
  }

  /** A right or left arrow from a place, with its head. */
  function arrow(from, y, by, kind) {
    const end = from + by;
    const tip = Math.sign(by) * Math.min(7, Math.abs(by));
    return [
      draw("line", { class: `arrow ${kind}`, x1: from, x2: end - tip / 2, y1: y, y2: y }),
      draw("path", { class: `tip ${kind}`, d: `M${end} ${y}l${-tip} -5v10z` }),
    ];
  }

  /** Bars of the softmax, and from the end of each the push of a descent on its logit: minus the gradient. */
  function bars(host, net, data, row, loss) {
    const z = logitsOf(net, data, row);
    const q = softmax(z);
    const g = LOSSES[loss].gradient(z, data.labels[row]);
    const width = Math.max(host.clientWidth, 220);
    const left = Math.min(96, width * 0.28);
    const reach = width - left - 60;
    const kind = loss.replace(" ", "-");
    const svg = draw("svg", { width, height: 48 * q.length, role: "img", "aria-label": words(data, row, q, g, loss) });
    q.forEach((share, j) => {
      const y = 48 * j + 16;
      const name = data.classes[j].length > 11 ? data.classes[j].slice(0, 10) + "…" : data.classes[j];
      const isLabel = j === data.labels[row];
      svg.append(text(0, y + 4, (isLabel ? "▸ " : "") + name, { class: isLabel ? "label" : "" }));
      svg.append(draw("rect", { class: "rail", x: left, y: y - 9, width: reach * 0.62, height: 18, rx: 3 }));
      svg.append(draw("rect", { class: `bar class-${j + 1}`, x: left, y: y - 9, width: Math.max(1.5, reach * 0.62 * share), height: 18, rx: 3 }));
      svg.append(text(width, y + 4, probability(share), { "text-anchor": "end" }));
      const from = left + reach * 0.62 * share;
      if (Math.abs(g[j]) > 0.003) svg.append(...arrow(from, y + 18, -g[j] * reach * 0.36, kind));
    });
    host.replaceChildren(svg);
    return { q, loss: LOSSES[loss].value(z, data.labels[row]), length: length(g), z };
  }

  function words(data, row, q, g, loss) {
    const each = data.classes.map((name, j) => `${name} ${probability(q[j])}, pushed by ${magnitude(-g[j])}`);
    return `The network trained with ${loss} gives this ${data.classes[data.labels[row]]} point: ${each.join("; ")}.`;
  }

  /** Shows a row of both networks; returns nothing, and changes the elements that the page has for it. */
  function look(hosts, nets, data, row) {
    for (const loss of Object.keys(LOSSES)) {
      const found = bars(hosts[loss], nets[loss], data, row, loss);
      const short = loss === "cross-entropy" ? "ce" : "se";
      show(`point-${short}-ce`, magnitude(LOSSES["cross-entropy"].value(found.z, data.labels[row])));
      show(`point-${short}-se`, magnitude(LOSSES["squared error"].value(found.z, data.labels[row])));
      for (const [other, name] of [["cross-entropy", "ce"], ["squared error", "se"]]) {
        show(`point-${short}-${name}-gradient`, magnitude(length(LOSSES[other].gradient(found.z, data.labels[row]))));
      }
    }
    show("point-name", `point ${row + 1}, ${data.classes[data.labels[row]]}`);
  }

  /** The rows with the largest cross-entropy. */
  function worst(nats, count) {
    const order = nats.map((_, row) => row);
    return order.sort((a, b) => nats[b] - nats[a]).slice(0, count);
  }

  /** Lists the worst rows of one network as buttons that choose them. The buttons stay, and keep the focus. */
  function list(host, rows, data, nats, choose) {
    while (host.children.length < rows.length) {
      const item = make("li", {}, make("button", { type: "button", class: "linkish" }), make("span"));
      item.firstChild.addEventListener("click", () => choose(Number(item.dataset.row)));
      host.append(item);
    }
    rows.forEach((row, place) => {
      const item = host.children[place];
      item.dataset.row = row;
      item.firstChild.textContent = `point ${row + 1}`;
      const q = probability(Math.exp(-nats[row]));
      item.lastChild.textContent = ` ${data.classes[data.labels[row]]}, q = ${q}, ${magnitude(nats[row])} nats`;
    });
  }

  return { look, worst, list, logitsOf, probability };
})();
