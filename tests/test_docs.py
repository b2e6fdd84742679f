"""What the documentation shows runs, and what it points at exists."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import ruvector

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [
    README,
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("**/*.md")),
    *(ROOT / name / "README.md" for name in ("examples/data", "wheelhouse")),
]
PROGRAMS = re.compile(r"^(?:cli|__main__)$")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def python_modules():
    names = ["ruvector"]
    for module in pkgutil.walk_packages(ruvector.__path__, "ruvector."):
        spec = module.module_finder.find_spec(module.name)
        if spec.origin.endswith(".py") and not PROGRAMS.match(module.name.split(".")[-1]):
            names.append(module.name)
    return names


def run_doctests(test):
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    report = []
    assert not runner.run(test, out=report.append).failed, "".join(report)


def examples_of(document):
    """Return the Python blocks with the rest blanked, so that line numbers stay true."""
    text = document.read_text(encoding="utf-8")
    kept = re.sub(r"[^\n]+", "", text)
    for block in FENCE.finditer(text):
        if block[1] == "python":
            before = text[: block.start(2)].count("\n")
            lines = kept.split("\n")
            code = block[2].split("\n")
            lines[before : before + len(code)] = code
            kept = "\n".join(lines)
    return kept


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", python_modules())
def test_docstrings(name):
    if name in ("ruvector.torch", "ruvector.dask"):
        pytest.importorskip(name.removeprefix("ruvector."))
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        run_doctests(test)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents(document):
    parser = doctest.DocTestParser()
    run_doctests(parser.get_doctest(examples_of(document), {}, document.name, str(document), 0))


def test_readme_has_examples():
    assert examples_of(README).count(">>>") > 10


@pytest.mark.parametrize("name", sorted(set(ruvector.__all__) - {"__version__"}))
def test_public_names_are_documented(name):
    assert (getattr(ruvector, name).__doc__ or "").strip()


def test_mechanisms_are_in_the_readme():
    text = README.read_text(encoding="utf-8")
    for name in ruvector.available_mechanisms():
        stem = name.replace("-", "")
        assert re.search(rf"\| `{stem}attention\(", text, re.IGNORECASE), name
    for name in ruvector.utils.__all__:
        assert f"`{name}`" in text, name


@pytest.mark.parametrize("command", ["main job", "tests"])
def test_commands_are_one_line(command):
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(rf"^<!-- command: {command} -->\n```sh\n(.*?)^```$", text, re.M | re.S)
    assert len(blocks) == 1
    assert blocks[0].count("\n") == 1


def test_switches_are_in_the_readme():
    listed = set(re.findall(r"`(RUVECTOR_\w+)=", README.read_text(encoding="utf-8")))
    sources = [ROOT / "setup.py", Path(ruvector.__path__[0], "_kernels", "__init__.py")]
    read = set(re.findall(r"RUVECTOR_[A-Z]\w+", "".join(path.read_text() for path in sources)))
    assert listed == read


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_exist(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            destination = document.parent / path if path else document
            assert destination.exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.*)$", destination.read_text(), re.M)
                slugs = [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]
                assert anchor in slugs, target
