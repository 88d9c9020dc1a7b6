"""Notebooks stand in the repository without outputs; scripts/lint.sh runs this check.

Outputs are large, differ from one execution to the next, and go stale unseen; the tests execute
every notebook anyway. What an editor adds (counts, its own metadata) goes with them.

    python scripts/lib/notebooks.py [--fix]     --fix rewrites what is not stripped
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}


def strip(notebook: dict[str, Any]) -> str:
    """The text of a notebook as it belongs into the repository."""
    for cell in notebook["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    notebook["metadata"] = METADATA
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> int:
    """Prints every notebook that is not stripped; returns the exit status."""
    fix, status = "--fix" in sys.argv[1:], 0
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        name, text = path.relative_to(ROOT), path.read_text(encoding="utf-8")
        try:
            stripped = strip(json.loads(text))
        except (ValueError, KeyError, TypeError) as error:
            print(f"{name}: not a notebook: {type(error).__name__}: {error}")
            status = 1
            continue
        if text == stripped:
            continue
        if fix:
            path.write_text(stripped, encoding="utf-8")
        else:
            print(f"{name}: has outputs or an editor's metadata: scripts/lint.sh --fix notebooks")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
