// Handles of a drawing: dragged by a pointer or moved by the arrow keys, and named to screen readers as sliders.

xent.handles = (() => {
  const { draw } = xent.page;

  /** Where the pointer is, in the pixels of the drawing, which begins where its host does. */
  function place(host, event) {
    const box = host.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  /**
   * A handle. `options`: { name, axis: "x" or "y", grip: elements to show, drag(x, y), nudge(steps) }. Up and right are
   * positive steps; with Page Up and Page Down ten of them.
   */
  function handle(svg, { name, axis, grip, drag, nudge }) {
    const orientation = axis === "x" ? "horizontal" : "vertical";
    const group = draw("g", { class: `handle ${axis}`, role: "slider", tabindex: "0", "aria-label": name, "aria-orientation": orientation }, ...grip);
    group.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      group.focus({ focusVisible: false });
      const host = svg.parentNode; // it stays and keeps the pointer, while each move draws the picture anew
      host.setPointerCapture(event.pointerId);
      const move = (next) => drag(...place(host, next));
      const end = () => {
        for (const [kind, act] of acts) host.removeEventListener(kind, act);
      };
      const acts = [["pointermove", move], ["pointerup", end], ["pointercancel", end], ["lostpointercapture", end]];
      for (const [kind, act] of acts) host.addEventListener(kind, act);
    });
    const keys = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 };
    group.addEventListener("keydown", (event) => {
      if (!(event.key in keys)) return;
      event.preventDefault();
      nudge(keys[event.key]);
    });
    svg.append(group);
    return group;
  }

  /** Says where a handle is: its value between both ends, and in words. */
  function say(group, low, value, high, words) {
    for (const [key, number] of [["min", low], ["now", value], ["max", high]]) {
      group.setAttribute(`aria-value${key}`, String(Math.round(1000 * number) / 1000));
    }
    group.setAttribute("aria-valuetext", words);
  }

  /** The shares after one of them became `value`: the others keep their proportions. */
  function withShare(shares, which, value) {
    const rest = shares.reduce((sum, share, j) => (j === which ? sum : sum + share), 0);
    const others = shares.length - 1;
    return shares.map((share, j) => (j === which ? value : rest > 0 ? (share / rest) * (1 - value) : (1 - value) / others));
  }

  return { handle, say, withShare };
})();
