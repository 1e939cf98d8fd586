"""The pages of ``docs/reference/`` are what the code says."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Write the pages in a process of their own, as ``make reference`` does, whose terminal has no say in them."""
    folder = tmp_path_factory.mktemp("reference")
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from reference_pages import PAGES\n"
        f"for name, page in PAGES.items(): (Path({str(folder)!r}) / name).write_text(page())\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=240)
    return folder


@pytest.mark.parametrize("name", ["diagnostics.md", "cli.md", "http.md", "openapi.json", "roles.md"])
def test_the_page_is_fresh(written, name):
    assert (ROOT / "docs" / "reference" / name).read_text() == (written / name).read_text(), "run make reference"
