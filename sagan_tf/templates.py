"""Templates: the pages and texts in `assets/`, filled in by Jinja2."""

from typing import Any

import jinja2

__all__ = ["render"]


def render(name: str, /, **values: Any) -> str:
    """Fills in a template.

    In `.html` every value is escaped; `{{ value | tojson }}` gives JSON that is safe inside a script element, keys in
    their order. In other files, such as `.md`, values stand as they are. A line that holds a statement alone leaves no line.

    Args:
      name: of the file in `assets/`.
      **values: by their names in the template.

    Raises:
      jinja2.UndefinedError: if the template asks for a value that is not given.
    """
    return _ENVIRONMENT.get_template(name).render(**values)


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("sagan_tf", "assets"),
    autoescape=jinja2.select_autoescape(["html"], default=False),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.policies["json.dumps_kwargs"] = {}  # By default keys would be sorted.
