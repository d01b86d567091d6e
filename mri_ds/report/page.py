"""The page: one HTML file that asks nobody for anything, made of what the other files gathered.

In: Content.  Out: HTML. Its policy (CSP) allows only this file's own script and style, told by their hashes, and what is inside
the page itself; so text from data could not run even if it were not escaped, and nothing is ever sent or fetched.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from mri_ds.report.markup import Html, join, tag
from mri_ds.report.sections import Content, foot_of, head_of, sections_of
from mri_ds.report.viewer import SCRIPT, NiiVue

STYLE = (Path(__file__).parent / "style.css").read_text()


def page(content: Content) -> str:
    sections = [(id, title, body) for id, title, body in sections_of(content) if body]
    nav = tag("nav", tag("ol", *(tag("li", tag("a", title, href=f"#{id}")) for id, title, _ in sections)), aria_label="Sections")
    main = tag(
        "main",
        head_of(content),
        *(
            tag("section", tag("h2", title, id=f"{id}-title"), body, id=id, aria_labelledby=f"{id}-title")
            for id, title, body in sections
        ),
        foot_of(content),
        id="content",
    )
    scripts = _scripts(content)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy()),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{content.g.run.name} · mri_ds report"),
        tag("style", Html(STYLE)),
    )
    body = tag(
        "body", tag("a", "Skip to the report", href="#content", class_="skip"), tag("div", nav, main, class_="page"), scripts
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def policy() -> str:
    script, style = (_hash(text) for text in (SCRIPT, STYLE))
    allowed = {
        "script-src": f"'{script}' blob:",
        "style-src": f"'{style}'",
        "img-src": "data: blob:",
        "connect-src": "data: blob:",
    }
    closed = {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'"}
    return "; ".join(f"{name} {value}" for name, value in {**closed, **allowed}.items())


def _scripts(c: Content) -> Html | None:
    shown: list[dict[str, Any]] = [
        {"rank": case.rank, "subject_id": case.subject_id, **case.viewer} for case in c.cases if case.viewer
    ]
    if not shown or not isinstance(c.viewer, NiiVue):
        return None
    cases = json.dumps(shown).replace("<", "\\u003c")  # no end tag, nor comment, in a text
    return join(
        tag("script", Html(cases), type="application/json", id="viewer-cases"),
        tag("script", Html(c.viewer.module), type="text/plain", id="niivue"),
        tag("script", Html(SCRIPT)),
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
