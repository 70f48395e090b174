// Starts each part that is on the page, after Vega has drawn its charts' first frames.

xent.race.start();
xent.sliders.start();
xent.rows.start();
xent.lab.start();
document.documentElement.dataset.story = "ready";
