// Starts each part that is on the page.

for (const part of ["race", "rows", "sliders", "lab", "units", "areas", "demands", "fit", "game"]) xent[part].start();
document.documentElement.dataset.story = "ready";
