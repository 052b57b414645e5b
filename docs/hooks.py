"""Makes the README the site's first page, and points links to other files of the repository there."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)(#[^)]*)?\)")


def on_files(files, config):
    """The README, its links seen from the folder of the documentation."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\((?!https?://|docs/|#)", "](../", text).replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown, config, **_):
    """Links that leave the documentation go to the repository."""

    def outside(found):
        path, anchor = found.group(1), found.group(2) or ""
        raw = "?raw=true" if path.endswith(".png") else ""
        return f"]({config['repo_url']}/blob/main/{path}{raw}{anchor})"

    return OUTSIDE.sub(outside, markdown)
