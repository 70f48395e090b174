// Numbers as text, as report/numbers.py writes them, and small helpers for elements of the page.

xent.format = (() => {
  const SUPERSCRIPT = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

  function grouped(value, places) {
    return value.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places });
  }

  /** Three significant digits in plain notation: 4.61, 0.0280, −4,184. */
  function significant(value, digits = 3) {
    if (!Number.isFinite(value)) return value > 0 ? "∞" : Number.isNaN(value) ? "none" : "−∞";
    const size = value === 0 ? 0 : Math.floor(Math.log10(Math.abs(value)));
    return grouped(value, Math.min(20, Math.max(digits - 1 - size, 0))).replace("-", "−");
  }

  /** A power of ten, for numbers that would be hard to read: 2.56 × 10⁻⁴. */
  function scientific(value, digits = 3) {
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    const power = [...String(Number(exponent))].map((c) => SUPERSCRIPT[c]).join("");
    return `${mantissa.replace("-", "−")}\u00a0×\u00a010${power}`;
  }

  /** Plain digits, or a power of ten below 1/1000 and from a million on. */
  function magnitude(value, digits = 3) {
    const size = Math.abs(value);
    return value !== 0 && Number.isFinite(value) && !(size >= 1e-3 && size < 1e6)
      ? scientific(value, digits)
      : significant(value, digits);
  }

  /** A share as a percentage: 1%, 0.9%, 95.7%; what would be read as none or all keeps its digits. */
  function percent(share, digits = 1) {
    if (share > 0 && share < 0.001) return scientific(100 * share, 2) + "%";
    const text = (100 * share).toFixed(digits);
    return (Number(text) === 100 && share < 1 ? `>${(100 - 10 ** -digits).toFixed(digits)}` : String(Number(text))) + "%";
  }

  return { significant, scientific, magnitude, percent, grouped };
})();

xent.page = (() => {
  /** The element with this id. */
  const at = (id) => document.getElementById(id);

  /** The data that Python left in the page. */
  const data = JSON.parse(at("story").textContent);

  /** Whether the reader asked for stillness. */
  const isStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

  /** Writes a value wherever the page names it: every <output data-shows="name">. */
  function show(name, text) {
    for (const output of document.querySelectorAll(`[data-shows="${name}"]`)) {
      if (output.textContent !== text) output.textContent = text;
    }
  }

  /** A new element of HTML, with attributes and children (elements or text). */
  function make(tag, attributes = {}, ...children) {
    return filled(document.createElement(tag), attributes, children);
  }

  /** A new element of SVG. */
  function draw(tag, attributes = {}, ...children) {
    return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  }

  function filled(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  /** Calls `frame(share)` with 0 to 1 over so many seconds, and returns a function that stops it; at once where still. */
  function animate(seconds, frame, done = () => {}) {
    if (isStill()) {
      frame(1);
      done();
      return () => {};
    }
    let handle = 0;
    let began = null;
    const tick = (now) => {
      began ??= now;
      const share = Math.min(1, (now - began) / (1000 * seconds));
      frame(share);
      if (share < 1) handle = requestAnimationFrame(tick);
      else done();
    };
    handle = requestAnimationFrame(tick);
    return () => cancelAnimationFrame(handle);
  }

  return { at, data, isStill, show, make, draw, animate };
})();
