// Line charts as SVG, as wide as their host. Colours are classes of the style sheet, so that both schemes hold.

xent.plot = (() => {
  const { draw } = xent.page;

  /** Maps a domain, of numbers or (`log`) of positive numbers, to pixels. */
  function scale([low, high], [from, to], log = false) {
    const place = log ? Math.log : (value) => value;
    return (value) => from + ((place(value) - place(low)) / (place(high) - place(low))) * (to - from);
  }

  /** The path through points [x, y] in pixels. */
  function path(points) {
    return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  }

  function text(x, y, words, attributes = {}) {
    return draw("text", { x, y, ...attributes }, words);
  }

  /**
   * An empty chart in `host`, in place of the one before: { svg, x, y, width, height } with both scales.
   * An axis is { domain, ticks: [[value, label], ...], title, log }; `label` describes the chart to screen readers.
   */
  function chart(host, { height, label, x, y, margin = {} }) {
    const room = { top: 26, right: 12, bottom: 44, left: 46, ...margin };
    const width = Math.max(host.clientWidth, 200);
    const svg = draw("svg", { width, height, role: "img", "aria-label": label });
    const across = scale(x.domain, [room.left, width - room.right], x.log);
    const up = scale(y.domain, [height - room.bottom, room.top], y.log);
    for (const [value, words] of y.ticks) {
      svg.append(draw("line", { class: "grid", x1: room.left, x2: width - room.right, y1: up(value), y2: up(value) }));
      svg.append(text(room.left - 8, up(value) + 4, words, { class: "tick", "text-anchor": "end" }));
    }
    for (const [value, words] of x.ticks) {
      svg.append(text(across(value), height - room.bottom + 18, words, { class: "tick", "text-anchor": "middle" }));
    }
    svg.append(text(room.left, room.top - 12, y.title ?? "", { class: "title" }));
    svg.append(text(width - room.right, height - 6, x.title ?? "", { class: "title", "text-anchor": "end" }));
    host.replaceChildren(svg);
    return { svg, x: across, y: up, width, height, room };
  }

  /** Draws now, and again when the host changes its width. */
  function whenSized(host, drawing) {
    let width = 0;
    new ResizeObserver(() => {
      if (host.clientWidth && host.clientWidth !== width) {
        width = host.clientWidth;
        drawing();
      }
    }).observe(host);
  }

  return { scale, path, text, chart, whenSized };
})();
