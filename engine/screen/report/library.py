"""The plotting library whose JavaScript the page carries: BokehJS, read from the installed package `bokeh`.

Why Bokeh: it has zoom, linked axes, log axes and touch; a community has looked after it since 2013; and the two files
that curves need are 1.4 MB, where Plotly's one is 4.8 MB. uPlot would be 50 kB, but the packages on PyPI that carry it
are young, by one author each, or bring IPython along. Bokeh's files are read as they lie; its Python draws nothing.
"""

import functools
from pathlib import Path

FILES = ("bokeh.min.js", "bokeh-api.min.js")  # 1,268 and 122 kB in 3.9.2


@functools.cache
def javascript() -> str | None:
    """The library as the text of a <script>; None where it is not installed."""
    try:
        from bokeh.util.paths import bokehjs_path

        folder = Path(bokehjs_path()) / "js"
        text = "\n".join((folder / name).read_text(encoding="utf-8") for name in FILES)
    except (ImportError, OSError):
        return None
    return text.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")
