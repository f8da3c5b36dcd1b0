"""What turns the plain pages of the project into a site (see mkdocs.yml).

Pages that lie outside of docs/ join it, links follow them, and a page of all public names is made
from their docstrings. Links to other files lead to the repository if `repo_url` is set, and are
plain text otherwise.
"""

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# File of the project -> page of the site. All other pages are at their place below docs/.
OUTSIDE = {
    "README.md": "index.md",
    "docs/index.md": "all_pages.md",
    "config/README.md": "keys.md",
    "cltools/figures/papers/README.md": "papers.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
API = "api.md"
FENCE = re.compile(r"^ *```.*?^ *```$", re.M | re.S)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\]\([^)]*\))*)\]\(([^)\s]+)\)")
# GitHub takes two spaces for what belongs to an item of a list, Python's Markdown four.
INDENTED = re.compile(r"^ {2,3}(?=\S)", re.M)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside of docs/, and the one of all names."""
    for source, uri in OUTSIDE.items():
        if already := files.get_file_from_path(uri):  # docs/index.md, which gets another place
            files.remove(already)
        files.append(File.generated(config, uri, content=(ROOT / source).read_text()))
    files.append(File.generated(config, API, content=_api()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page with the links and the indents of the site, code left as it is."""
    uri = page.file.src_uri
    sources = {site: source for source, site in OUTSIDE.items()}
    folder = posixpath.dirname(sources.get(uri, f"docs/{uri}"))

    def link(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        path, hash_sign, section = target.partition("#")
        if not path or "://" in path:
            return match[0]
        source = posixpath.normpath(posixpath.join(folder, path))
        on_site = OUTSIDE.get(source, source.removeprefix("docs/"))
        if files.get_file_from_path(on_site):
            there = posixpath.relpath(on_site, posixpath.dirname(uri) or ".")
            return f"{image}[{text}]({there}{hash_sign}{section})"
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/HEAD/{source})"
        return text

    def outside_code(text: str) -> str:
        return INDENTED.sub("    ", LINK.sub(link, text))

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [outside_code(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, outside_code(markdown[end:])])


def _api() -> str:
    """A page with the docstrings of `cltools.__all__`, which is read without importing it."""
    tree = ast.parse((ROOT / "cltools/__init__.py").read_text())
    (table,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_NAMES"
    )
    homes = ast.literal_eval(table)
    names = [
        f"::: {module}.{name}\n    options: {{heading: cltools.{name}, toc_label: {name}}}"
        for module, own in homes.items()
        for name in own
    ]
    about = "All names of `import cltools`. [Python](python.md) shows them in use."
    return "\n\n".join(["# API reference", about, *names]) + "\n"
