// Bits or nats: one switch for everything in the part on information.

xent.units = (() => {
  const { at, show } = xent.page;
  const { significant } = xent.format;
  const listeners = [];

  const isBits = () => at("unit-bits")?.checked ?? true;
  const name = () => (isBits() ? "bits" : "nats");
  /** Nats in the chosen unit. */
  const of = (nats) => (isBits() ? nats / Math.LN2 : nats);
  const back = (value) => (isBits() ? value * Math.LN2 : value);
  /** Nats as text in the chosen unit; rounding of less than 1e-12 is 0. */
  const text = (nats, digits = 3) => `${significant(Math.abs(nats) < 1e-12 ? 0 : of(nats), digits)} ${name()}`;

  /** Calls `changed` whenever the reader switches, and now. */
  function follow(changed) {
    listeners.push(changed);
    changed();
  }

  function start() {
    for (const id of ["unit-bits", "unit-nats"]) {
      at(id).addEventListener("change", () => {
        show("unit", name());
        for (const changed of listeners) changed();
      });
    }
    show("unit", name());
  }

  return { name, of, back, text, follow, start, isBits };
})();
