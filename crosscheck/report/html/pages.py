"""Where pages come from: templates whose values are escaped, one stylesheet, one small script."""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

__all__ = ["coded", "page", "restyled"]


def page(template: str, **values: Any) -> str:
    """A document from one of the templates; what it is given is text, never markup."""
    return _environment().get_template(template).render(**_assets(), **values)


def restyled(document: str) -> str:
    """A document of another part with the pages' stylesheet behind its own."""
    return document.replace("</head>", f"<style>{_assets()['style']}</style>\n</head>", 1)


def coded(text: str) -> Markup:
    """``text`` with what stands in backquotes as code.

    A sentence begins with a large letter, by the stylesheet; a name (``class="first"``) does not.
    """
    pieces = [escape(piece) for piece in text.split("`")]
    code, first = Markup("<code>{}</code>"), Markup('<code class="first">{}</code>')
    return Markup("").join(
        ((code if i > 1 or pieces[0] else first).format(p) if i % 2 else p)
        for i, p in enumerate(pieces)
    )


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("crosscheck.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["coded"] = coded
    return made


@functools.cache
def _assets() -> dict[str, Markup]:
    """Stylesheet and script, which are ours, and the hash by which a browser knows the script."""
    folder = files("crosscheck.report.html") / "templates"
    style, script = ((folder / name).read_text("utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"style": Markup(style), "script": Markup(script), "script_hash": Markup(digest)}
