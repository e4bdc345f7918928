"""The pages of the documentation, and how a page is run: as the script that a reader would paste together."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "\x1e"
_END = "import cloudai; cloudai.cleanup().apply()"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it starts at, and why it is not run, if so."""

    kind: str
    text: str
    line: int
    not_run: str


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(match["kind"], match["text"], text.count("\n", 0, match.start("text")) + 1, match["reason"] or "")
        for match in _FENCE.finditer(text)
    ]


def runnable(page: Path) -> bool:
    return any(block.kind == "python" and not block.not_run for block in blocks(page))


def script(page: Path) -> str:
    """Return the page's code in one file, each line where it is on the page, so that an error names the right one."""
    lines = [""] * (page.read_text(encoding="utf-8").count("\n") + 1)
    for block in blocks(page):
        if block.kind == "python" and not block.not_run:
            lines[block.line - 2] = f"print('{_MARK}{block.line}')"  # in the place of the fence
            lines[block.line - 1 : block.line - 1 + block.text.count("\n")] = block.text.splitlines()
    return "\n".join([*lines, _END, ""])


def run(page: Path, home: Path, folder: Path) -> tuple[int, str, str]:
    """Run a page in a process of its own; returns its exit code, output and errors."""
    path = folder / f"{page.stem.replace('-', '_')}.py"
    path.write_text(script(page), encoding="utf-8")
    settings = {"CLOUDAI_HOME": str(home), "CLOUDAI_TRACKING": "none", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDAI_")}
    command = [sys.executable, str(path)]
    done = subprocess.run(command, cwd=folder, env=inherited | settings, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout, done.stderr


def promised(page: Path) -> dict[int, str]:
    """Return what the page says that its blocks print: an ``output`` block belongs to the code before it."""
    found = blocks(page)
    return {code.line: said.text for code, said in itertools.pairwise(found) if said.kind == "output"}


def printed(output: str) -> dict[int, str]:
    """Return what each block printed, by the block's line."""
    parts = output.split(_MARK)[1:]
    return {int(part.split("\n", 1)[0]): part.split("\n", 1)[1] for part in parts}


def agrees(said: str, was: str) -> bool:
    """Whether an output is as the page says: ``…`` alone on a line stands for any lines, within a line for any text."""
    pattern = "".join("(?:.*\n)*?" if line.strip() == "…" else _line_pattern(line) for line in said.rstrip().split("\n"))
    return re.fullmatch(pattern, "\n".join(line.rstrip() for line in was.rstrip().split("\n")) + "\n") is not None


def _line_pattern(line: str) -> str:
    return ".*?".join(re.escape(part) for part in line.rstrip().split("…")) + "\n"
