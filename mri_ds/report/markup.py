"""HTML and SVG that cannot be broken by what it shows: whatever is no Html already is escaped.

In: names, attributes, children.  Out: Html, a string that is safe to put into a page.
"""

import html
from typing import Any

VOID = {"br", "img", "input", "link", "meta"}


class Html(str):
    """Markup. Only `tag` and `join` make it, and whoever vouches for a constant of this package."""


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """One element. Children: Html as it is, None not at all, anything else as escaped text. Attributes: True is bare, None and
    False are left out; `class_` is class, `data_x` is data-x.

    >>> tag("td", "<script>", class_="n", title='"')
    '<td class="n" title="&quot;">&lt;script&gt;</td>'
    """
    told = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        told += f" {key}" if value is True else f' {key}="{html.escape(str(value))}"'
    if name in VOID:
        return Html(f"<{name}{told}>")
    return Html(f"<{name}{told}>{join(*children)}</{name}>")


def join(*children: Any) -> Html:
    """Siblings, without an element around them."""
    return Html("".join(child if isinstance(child, Html) else html.escape(str(child)) for child in children if child is not None))
