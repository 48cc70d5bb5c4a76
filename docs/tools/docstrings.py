"""How the pages of the API read the sources' docstrings and annotations: an extension of griffe, for mkdocstrings.

``Example:`` becomes the section ``Examples:``, whose prompts are drawn as code; notes and references become paragraphs.
An annotation that names one of the aliases of ``pathsum.options`` shows the words that it stands for.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from typing import Any

import griffe

OPTIONS = "pathsum.options"
PARAGRAPHS = re.compile(r"^(Notes|References):\n((?:(?: {4}.*)?(?:\n|\Z))+)", re.MULTILINE)
# A prompt, a literal, and last the product sign of plain text, which Markdown would read as emphasis.
VERBATIM = re.compile(r"^ *>>>.*|^ *\.\.\. .*|`+[^`]*`+|(?<=\w)\*(?=\w)", re.MULTILINE)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            text = PARAGRAPHS.sub(lambda found: f"**{found[1]}:**\n\n{textwrap.dedent(found[2])}", text)
            obj.docstring.value = VERBATIM.sub(lambda found: found[0] if len(found[0]) > 1 else "·", text)
        if isinstance(obj, griffe.Function):
            for parameter in obj.parameters:
                parameter.annotation = spelled_out(parameter.annotation, obj)
            obj.returns = spelled_out(obj.returns, obj)
        if isinstance(obj, griffe.Attribute):
            obj.annotation = spelled_out(obj.annotation, obj)


def spelled_out(annotation: Any, owner: griffe.Object) -> Any:
    """An annotation with the words in place of the aliases of ``pathsum.options``."""
    if isinstance(annotation, griffe.ExprName) and annotation.canonical_path.startswith(f"{OPTIONS}."):
        alias = owner.package.modules_collection[annotation.canonical_path]
        return alias.value if isinstance(alias, griffe.Attribute) else annotation
    if isinstance(annotation, griffe.Expr):
        for name in (field.name for field in dataclasses.fields(annotation)):
            value = getattr(annotation, name)
            if isinstance(value, griffe.Expr):
                setattr(annotation, name, spelled_out(value, owner))
            elif isinstance(value, list):
                setattr(annotation, name, [spelled_out(each, owner) for each in value])
    return annotation
