// Replaces the still drawings by interactive ones, with BokehJS, and says at a press what the title of a token says.
"use strict";
(() => {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)");
  const ends = { start: Infinity, end: 0 };
  for (const chart of data.charts) {
    chart.hidden = new Set();
    for (const curve of chart.curves) {
      ends.start = Math.min(ends.start, ...curve.x);
      ends.end = Math.max(ends.end, ...curve.x);
    }
  }
  let logX = false;
  let view = null; // what is open: figures by chart, and their common range

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const figure = (chart) => document.getElementById("chart-" + chart.key);

  function short(value) {
    const size = Math.abs(value);
    if (size > 0 && size < 1e-2) return parseFloat(value.toPrecision(3)).toExponential();
    const [scale, unit] = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([at]) => size >= at) || [1, ""];
    return parseFloat((value / scale).toPrecision(size >= 1000 ? 3 : 4)) + unit;
  }
  const shown = (chart, value) =>
    value === undefined ? "–" : chart.percent ? parseFloat((100 * value).toPrecision(3)) + "%" : short(value);

  // A formatter of ticks by a function; Bokeh's own that takes code would need eval, which the page forbids.
  function ticks(write) {
    const formatter = new Bokeh.BasicTickFormatter();
    formatter.doFormat = (values) => values.map(write);
    return formatter;
  }

  // The figure of the last point that is not beyond `tokens`.
  function at(curve, tokens) {
    let low = 0;
    let high = curve.x.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (curve.x[middle] <= tokens) low = middle + 1;
      else high = middle;
    }
    return curve.y[low - 1];
  }

  // Writes each curve's figure into the legends: at `tokens`, or the last one.
  function read(tokens) {
    for (const chart of data.charts) {
      figure(chart).querySelectorAll(".legend output").forEach((output, number) => {
        const curve = chart.curves[number];
        output.textContent = shown(chart, tokens === null ? curve.y[curve.y.length - 1] : at(curve, tokens));
      });
    }
    root.dataset.at = tokens === null ? "" : String(Math.round(tokens));
  }

  function axis(one, formatter) {
    Object.assign(one, {
      axis_line_color: colour("--line"),
      major_tick_line_color: null,
      minor_tick_line_color: null,
      major_label_text_color: colour("--quiet"),
      major_label_text_font: "system-ui, sans-serif",
      major_label_text_font_size: "12px",
      formatter,
    });
  }

  function plot(chart, range, line) {
    const B = Bokeh;
    const few = figure(chart).clientWidth < 420 ? 4 : 7;
    const tools = {
      zoom: new B.BoxZoomTool({ dimensions: "auto" }),
      pan: new B.PanTool({ dimensions: "width" }),
      wheel: new B.WheelZoomTool({ dimensions: "width" }),
    };
    const made = B.Plotting.figure({
      tools: [],
      x_range: range,
      y_range: new B.DataRange1d({ only_visible: true, range_padding: 0.06 }),
      x_axis_type: logX ? "log" : "linear",
      y_axis_type: chart.log ? "log" : "linear",
      window_axis: "x",
      sizing_mode: "stretch_both",
      min_border: 0,
      min_border_right: 16,
      background_fill_color: null,
      border_fill_color: null,
      outline_line_color: null,
    });
    made.add_tools(
      ...Object.values(tools), new B.ResetTool(), new B.SaveTool(),
      new B.CrosshairTool({ dimensions: "height", overlay: line }),
    );
    Object.assign(made.toolbar, {
      logo: null,
      autohide: !touch.matches,
      active_drag: touch.matches ? null : tools.zoom, // else a finger could not scroll the page
      active_scroll: null,
    });
    axis(made.below[0], ticks(short));
    axis(made.left[0], ticks((value) => shown(chart, value)));
    made.below[0].ticker.desired_num_ticks = few;
    made.left[0].ticker.desired_num_ticks = 5;
    for (const grid of made.center) if ("grid_line_color" in grid) grid.grid_line_color = colour("--line");
    if (made.center[0]) made.center[0].grid_line_color = null; // across alone is enough
    const drawn = chart.curves.map((curve, number) => {
      const source = new B.ColumnDataSource({ data: points(curve, chart.log) });
      const style = { source, color: colour("--curve-" + (number % 8)) };
      const both = [made.line({ field: "x" }, { field: "y" }, { ...style, line_width: 1.8 })];
      if (curve.dots) both.push(made.scatter({ field: "x" }, { field: "y" }, { ...style, size: 5 }));
      for (const one of both) one.visible = !chart.hidden.has(number);
      return both;
    });
    const kinds = { run: "--quiet", spike: "--warn", skip: "--warn", rollback: "--bad" };
    for (const mark of data.marks) {
      made.add_layout(new B.Span({
        location: mark.x, dimension: "height", line_color: colour(kinds[mark.kind]), line_dash: [4, 3],
      }));
    }
    made.on_event("mousemove", (event) => read(event.x));
    made.on_event("tap", (event) => read(event.x));
    made.on_event("mouseleave", () => read(null));
    made.on_event("doubletap", all);
    return { chart, made, drawn };
  }

  // On a log axis a figure that is not above zero has no place.
  function points(curve, log) {
    const keep = curve.x.map((x, number) => (!logX || x > 0) && (!log || curve.y[number] > 0));
    return { x: curve.x.filter((_, number) => keep[number]), y: curve.y.filter((_, number) => keep[number]) };
  }

  function all() {
    for (const { made } of view.plots) made.reset.emit();
  }

  // Draws all charts anew: in the colours of the moment, with the axes that are asked for.
  async function draw() {
    const open = view && { start: view.range.start, end: view.range.end };
    if (view) view.document.clear();
    const B = Bokeh;
    const least = logX ? Math.max(1, ends.start) : 0;
    const range = new B.Range1d({ start: least, end: Math.max(ends.end, least + 1) });
    const line = new B.Span({ dimension: "height", line_color: colour("--quiet"), line_alpha: 0.6 });
    const document = new B.Document();
    const plots = data.charts.map((chart) => plot(chart, range, line));
    for (const { made } of plots) document.add_root(made);
    const targets = data.charts.map((chart) => figure(chart).querySelector(".plot"));
    for (const target of targets) target.replaceChildren();
    view = { document, range, plots };
    await B.embed.add_document_standalone(document, targets[0], targets);
    if (open) Object.assign(range, { start: Math.max(least, open.start), end: open.end });
    read(null);
    window.report = view; // for a reader's own scripts
    root.dataset.drawn = String(Number(root.dataset.drawn || 0) + 1);
  }

  function press(button, on) {
    button.setAttribute("aria-pressed", String(on));
  }

  function start() {
    root.classList.add("live");
    for (const chart of data.charts) {
      const log = figure(chart).querySelector("button.log");
      log.addEventListener("click", () => {
        chart.log = !chart.log;
        press(log, chart.log);
        draw();
      });
      figure(chart).querySelectorAll(".legend button").forEach((button, number) => {
        button.addEventListener("click", () => {
          const hide = !chart.hidden.delete(number);
          if (hide) chart.hidden.add(number);
          press(button, !hide);
          const { drawn } = view.plots.find((one) => one.chart === chart);
          for (const one of drawn[number]) one.visible = !hide;
        });
      });
    }
    document.getElementById("all").addEventListener("click", all);
    const logTokens = document.getElementById("log-x");
    logTokens.addEventListener("click", () => {
      logX = !logX;
      press(logTokens, logX);
      draw();
    });
    dark.addEventListener("change", draw);
    draw();
  }

  const foreseen = document.getElementById("foreseen");
  if (foreseen) {
    const example = foreseen.textContent;
    const tell = (event) => {
      const token = event.target.closest(".passage span");
      if (token) foreseen.textContent = token.textContent.trim() + "\n" + token.title;
    };
    const box = document.querySelector(".passage");
    for (const kind of ["mouseover", "focusin", "click"]) box.addEventListener(kind, tell);
    box.addEventListener("mouseleave", () => (foreseen.textContent = example));
  }
  if (window.Bokeh && data.charts.length) start();
})();
