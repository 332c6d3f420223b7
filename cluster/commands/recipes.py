"""The recipes that come with Kanabo: `python -m cluster.commands.recipes`."""

from __future__ import annotations

from cluster.commands import app
from cluster.config import shipped


def main(as_json: app.AsJson = False) -> None:
    """List the recipes that come with Kanabo: `kanabo run NAME` starts one.

    Exit codes: 0 listed.
    """
    recipes = shipped.names()
    if as_json:
        app.print_json(
            [{"name": name, "path": path, "summary": shipped.summary(path)} for name, path in recipes.items()]
        )
        return
    width = max(map(len, recipes), default=0)
    for name, path in recipes.items():
        print(f"{name:<{width}}  {shipped.summary(path)}")


if __name__ == "__main__":
    app.start(main)
