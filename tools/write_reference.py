"""Writes docs/reference/settings.md and docs/reference/rest.md from the code; `--check` only compares. A test runs the check."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic_core import PydanticUndefined

from omni.app import create_app
from omni.settings import ENV_PREFIX, Settings

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"


def settings_page() -> str:
    """Every setting with its default and meaning."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is PydanticUndefined else field.default
        shown = f"`{str(default).lower() if isinstance(default, bool) else default}`" if default != "" else "empty"
        rows.append(f"| `{ENV_PREFIX}{name.upper()}` | {shown} | {field.description} |")
    return "\n".join([
        "# Settings",
        "",
        "Read once at start from the environment and from a file `.env`. A value that is not acceptable stops the start with one line that",
        "names the variable and what it accepts. Names the predecessor had mean what they meant there.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
        *rows,
        "",
    ])  # fmt: skip


def rest_page() -> str:
    """Every route with its parameters, from the OpenAPI document."""
    with TemporaryDirectory() as folder:
        settings = Settings(_env_file=None, api_key="reference-key", sqlite_database_path=Path(folder) / "omni.db")
        app = create_app(settings, base_url="http://127.0.0.1:8882", with_sandbox=False)
        document = app.openapi()
        app.state.runtime.close()
    lines = [
        "# REST",
        "",
        "Keys as `x-api-key` or `Authorization: Bearer`. The running server has the same with schemas at `/openapi.json` and `/docs`.",
        'Every refusal is `{"detail": "<sentence>", "error": {"code", "stage", "status"}}`.',
        "",
        "| method | path | parameters | what it does |",
        "|---|---|---|---|",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            names = [f"`{item['name']}`" for item in operation.get("parameters", []) if item["in"] != "header"]
            lines.append(f"| {method.upper()} | `{path}` | {', '.join(names) or '–'} | {operation['summary']} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Write both pages, or with --check say which one is out of date."""
    pages = {REFERENCE / "settings.md": settings_page(), REFERENCE / "rest.md": rest_page()}
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" not in sys.argv:
        for path in stale:
            path.write_text(pages[path], encoding="utf-8")
        print(f"{len(stale)} pages written")
        return 0
    for path in stale:
        print(f"{path.name} is out of date: run python tools/write_reference.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
