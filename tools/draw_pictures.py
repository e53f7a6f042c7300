"""Draws the pictures of the README from a running Omni: the sandbox phone in a real Chromium, and a trace in the terminal.

Starts `omni serve` in a temporary folder, writes to the phone, waits for the answer, takes the pictures and stops the server.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import Request, urlopen

from playwright.sync_api import sync_playwright
from rich.console import Console

from omni.cli.picture import draw_document

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
CHROMIUM_ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def main() -> int:
    """Draw both pictures."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("install the package 'chromium' first")
        return 1
    with TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [sys.executable, "-m", "omni.cli", "serve", "--port", "0"],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            base_url = _address(server)
            trace_id = _photograph_phone(base_url, chromium)
            key = (Path(folder) / "data" / "api-key").read_text(encoding="utf-8")
            _draw_trace(base_url, key, trace_id)
        finally:
            server.terminate()
            server.wait(30)
    return 0


def _address(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    for line in server.stdout:
        found = re.search(r"listens on (http://\S+)", line)
        if found:
            return found[1]
    raise SystemExit("the server did not start")


def _photograph_phone(base_url: str, chromium: str) -> str:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGS)
        page = browser.new_page(viewport={"width": 1280, "height": 860}, device_scale_factor=1.5)
        page.goto(f"{base_url}/sandbox/phone/")
        page.get_by_role("textbox").fill("/prose")
        with page.expect_response(re.compile("/traces/.+/streaming")) as first:
            page.keyboard.press("Enter")
        trace_id = first.value.url.rsplit("/", 2)[-2]
        page.get_by_text(re.compile(r"ms, 4 messages delivered, read after")).first.wait_for(timeout=30_000)
        page.wait_for_timeout(500)
        page.screenshot(path=PICTURES / "phone.png")
        browser.close()
    return trace_id


def _draw_trace(base_url: str, key: str, trace_id: str) -> None:
    request = Request(f"{base_url}/api/v1/traces/{trace_id}/streaming", headers={"x-api-key": key})  # noqa: S310 - our own server
    with urlopen(request) as answer:  # noqa: S310 - our own server
        document = json.load(answer)
    with (Path(os.devnull)).open("w", encoding="utf-8") as nowhere:
        console = Console(width=120, record=True, file=nowhere, force_terminal=True, color_system="truecolor")
        draw_document(document, console)
        svg = console.export_svg(title="omni traces show last")
    # The default template fetches its font from elsewhere; any monospaced font of the reader's will do.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace(
        "Fira Code", "ui-monospace, Menlo, Consolas"
    )
    (PICTURES / "trace.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
