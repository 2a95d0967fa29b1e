// A plotly figure whose whole state is in the model: what every page and every tab draws.
// `parse` comes from dark.js, which `Figure` puts before.

const KEY = Symbol.for("workbook.plotly");
const CONFIG = {
  displaylogo: false,
  modeBarButtonsToRemove: ["lasso2d", "select2d"],
  toImageButtonOptions: { format: "svg", filename: "figure" },
};

// plotly.js lies in a model of its own: a page reads and compiles it once, for all figures.
async function load(model) {
  const id = model.get("library").replace("IPY_MODEL_", "");
  const library = await model.widget_manager.get_model(id);
  const packed = new Blob([library.get("packed")]);
  const text = packed.stream().pipeThrough(new DecompressionStream("gzip"));
  const module = { exports: {} };
  new Function("module", await new Response(text).text())(module);
  return module.exports;
}

function plotly(model) {
  globalThis[KEY] ??= load(model).catch((error) => {
    globalThis[KEY] = undefined;
    throw error;
  });
  return globalThis[KEY];
}

function isDark() {
  const { dataset, classList } = document.body;
  return dataset.jpThemeLight === "false" || classList.contains("vscode-dark");
}

async function render({ model, el }) {
  const Plotly = await plotly(model);
  const plot = el.appendChild(document.createElement("div"));
  let parsed = {};
  let waiting = false;
  let width = 0; // as drawn; 0 where the plot is hidden, and drawn once it is shown

  function draw() {
    waiting = false;
    width = plot.offsetWidth;
    if (!width) {
      requestAnimationFrame(fit); // a theme that loads hides the page, too briefly to be observed
      return;
    }
    const dark = isDark();
    const text = model.get("traces");
    // The same object says that nothing changed, so that a moved mark draws no heat map again.
    if (text !== parsed.text || dark !== parsed.dark) {
      parsed = { text, dark, traces: parse(text, dark) };
    }
    const axes = parse(model.get("axes"), dark);
    const first = !plot.on;
    Plotly.react(plot, parsed.traces, { ...axes, autosize: true }, CONFIG);
    if (first) plot.on("plotly_click", clicked);
  }
  function clicked({ points: [point] }) {
    const { x, y, customdata, data } = point;
    model.send({ name: data.name, x, y, customdata });
  }
  // Traces and axes arrive together, and are drawn together.
  function ask() {
    if (!waiting) queueMicrotask(draw);
    waiting = true;
  }
  model.on("change:traces change:axes", ask);
  // Of the height nothing follows; a change of it is the plot's own, just drawn.
  function fit() {
    if (plot.offsetWidth && plot.offsetWidth !== width) draw();
  }
  let later;
  const sized = new ResizeObserver(() => {
    clearTimeout(later);
    if (width) later = setTimeout(fit, 60); // plots beside it come and go, and draw it themselves
    else fit();
  });
  sized.observe(el);
  const themed = new MutationObserver(ask);
  themed.observe(document.body, { attributeFilter: ["data-jp-theme-light", "class"] });
  return () => {
    model.off("change:traces change:axes", ask);
    sized.disconnect();
    clearTimeout(later);
    themed.disconnect();
    Plotly.purge(plot);
  };
}

export default { render };
