"""Runs every notebook from top to bottom and fails at the first error: python notebooks/run.py [--write].

With --write the outputs are stored in the notebooks.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

for path in sorted(Path(__file__).parent.glob("*.ipynb")):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if "--write" in sys.argv[1:]:
        nbformat.write(notebook, path)
    print(f"{path.name}: {len(code)} cells ran")
