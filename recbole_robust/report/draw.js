
"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = figures.map((_, i) => document.getElementById(`figure${i}`));
  const axis = { fixedrange: true, automargin: true, zeroline: false, ticks: "", gridcolor: "#888" };

  function slanted(xaxis, width) {
    // Names under the axis that are too wide for their places are turned; how much higher that makes them, at most.
    const names = (xaxis && xaxis.type === "category" && xaxis.categoryarray) || [];
    const widest = Math.max(0, ...names.map((name) => 10 + 6 * name.length));
    return widest > (width - 62) / names.length ? Math.max(0, widest - 45) : 0;
  }

  function layout(figure, width, short) {
    // The legend stands below the plot: as many rows as its names need at this width.
    const names = figure.data.filter((trace) => trace.showlegend !== false).map((trace) => trace.name);
    let rows = 1;
    let used = 0;
    for (const name of names) {
      const wide = 45 + 7 * name.length;
      if (used && used + wide > width - 60) {
        rows += 1;
        used = 0;
      }
      used += wide;
    }
    const panels = figure.layout.grid ? figure.layout.grid.rows : 1;
    const plot = (panels > 1 ? 230 * panels : 330) * (short ? 0.6 : 1);
    const below = slanted(figure.layout.xaxis, width);
    const height = plot + 75 + below + 25 * rows;
    const own = JSON.parse(JSON.stringify(figure.layout));
    for (const name of Object.keys(own)) {
      if (/^[xy]axis/.test(name)) {
        own[name] = { ...axis, ...own[name] };
        own[name].title = { standoff: 8, ...own[name].title };
      }
    }
    return {
      ...own,
      height,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: "#808080" },
      margin: { l: 50, r: 12, t: 12, b: 60 },
      hovermode: "closest",
      dragmode: false,
      showlegend: true,
      legend: { orientation: "h", x: 0, xanchor: "left", y: -(72 + below) / plot, yanchor: "top" },
    };
  }

  function draw(i, width, short) {
    const options = { displayModeBar: false, displaylogo: false, responsive: false };
    return Plotly.react(plots[i], figures[i].data, { ...layout(figures[i], width, short), width }, options);
  }

  function failed(i, error) {
    const told = document.createElement("p");
    told.className = "error";
    told.textContent = `This figure could not be drawn (${error}); the tables below hold its numbers.`;
    plots[i].replaceChildren(told);
    console.error(error);
  }

  function unfold() {
    // What is folded on the screen is on the paper, but for the commands.
    const folded = [...document.querySelectorAll("details.section:not([open], .commands)")];
    folded.forEach((part) => (part.open = true));
    window.addEventListener("afterprint", () => folded.forEach((part) => (part.open = false)), { once: true });
  }

  async function drawAll(width, short) {
    let drawn = 0;
    for (let i = 0; i < plots.length; i += 1) {
      try {
        await draw(i, width || plots[i].clientWidth, short);
        drawn += 1;
      } catch (error) {
        failed(i, error);
      }
    }
    root.dataset.drawn = drawn;
  }

  let last = window.innerWidth;
  let waiting = 0;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== last) {
      last = window.innerWidth;
      clearTimeout(waiting);
      waiting = setTimeout(() => drawAll(), 150);
    }
  });
  window.addEventListener("beforeprint", unfold);
  window.addEventListener("beforeprint", () => drawAll(480, true)); // half of a landscape page
  window.addEventListener("afterprint", () => drawAll());
  plots.forEach((plot) => plot.replaceChildren());
  drawAll();
})();
