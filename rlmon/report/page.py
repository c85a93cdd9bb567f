"""One HTML file that needs nothing else: styles, scripts and data inside, no request to anywhere."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONTENT_SECURITY_POLICY = "default-src 'none'; script-src 'sha256-{script}'; style-src 'unsafe-inline'"
"""Even if a text slipped through as markup, the browser would run no script but ours (by its hash), load nothing for it
and send nothing out."""

_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{policy}}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{title}}</title>
<style>{{style}}</style>
</head>
<body>
{{body}}
<script type="application/json" id="data">{{data}}</script>
<script>{{script}}</script>
</body>
</html>
"""


def json_for_html(data: Any) -> str:
    """``data`` as ASCII JSON that is safe inside a ``<script>`` element, whatever strings it holds.

    ``<``, ``>`` and ``&`` become escapes, so no text can close the element or open a comment; lone surrogates and
    control characters become escapes too. Raises ``ValueError`` for NaN and infinities.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def render(
    *,
    title: str,
    body: str,
    data: Any,
    styles: tuple[str, ...],
    scripts: tuple[str, ...],
    asks_its_server: bool = False,
) -> str:
    """The page. ``body`` is trusted markup; ``data`` may hold anything; ``styles`` and ``scripts`` are files here.
    ``asks_its_server``: the page is served, and may ask where it came from (and nowhere else) for newer data."""
    script = "\n".join(_script(HERE / name) for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return fill(
        _PAGE,
        {
            "policy": html.escape(
                CONTENT_SECURITY_POLICY.format(script=digest) + ("; connect-src 'self'" if asks_its_server else ""),
                quote=False,
            ),
            "title": html.escape(title),
            "style": "\n".join((HERE / name).read_text(encoding="utf-8") for name in styles),
            "body": body,
            "data": json_for_html(data),
            "script": script,
        },
    )


def policy_of(text: str) -> str:
    """The policy that a page of ``render`` states, for whoever serves it to send as a header too."""
    found = _POLICY.search(text)
    if found is None:
        raise ValueError("this is no page of `render`: it states no policy")
    return html.unescape(found.group(1))


def _script(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.parent.name != "vendor":
        return text
    # Its first comment is an address; a page without any is easier to check. The licence goes in instead.
    licence = (path.parent / f"LICENSE.{path.name.split('.')[0]}").read_text(encoding="utf-8")
    return f"/*! {path.name} 1.6.32\n{licence}\n*/\n" + re.sub(r"\A/\*!.*?\*/\s*", "", text, flags=re.DOTALL)


def fill(template: str, values: Mapping[str, str]) -> str:
    """``template`` with each ``{{name}}`` replaced, in one pass: a value that holds ``{{...}}`` stays as it is."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match.group(1)], template)
