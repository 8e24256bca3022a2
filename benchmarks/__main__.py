"""Names the commands that are here."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

HERE = Path(__file__).parent


def commands() -> dict[str, str]:
    """What each does, by the name that `python -m` takes."""
    files = {f"benchmarks.{file.stem}": file for file in HERE.glob("[a-z]*.py")}
    files |= {f"benchmarks.{file.parent.name}": file for file in HERE.glob("*/__main__.py")}
    files |= {f"benchmarks.paper.{n}": HERE / "paper" / f"{n}.py" for n in ("server", "unpack")}
    told = {name: ast.get_docstring(ast.parse(files[name].read_text("utf-8"))) for name in files}
    return {name: (text or "").split("\n")[0] for name, text in sorted(told.items())}


def main() -> None:
    """The command."""
    if len(sys.argv) > 1 and sys.argv[1] not in ("-h", "--help"):
        sys.exit(f"python -m benchmarks takes no argument: did you mean benchmarks.{sys.argv[1]}?")
    width = max(map(len, commands()))
    for name, what in commands().items():
        print(f"python -m {name:{width}}  {what}")
    print("\nbenchmarks/README.md says what they found; each has --help.")


if __name__ == "__main__":
    main()
