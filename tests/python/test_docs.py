"""The documentation's own programs: the check of links, the page of settings."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TREE = {
    "README.md": """
# Name

[a](docs/page.md#two-words) [b](docs/page.md#two-words-1) [c](docs) [d](https://example.org/x?y=1)
`[not](a-link.md)`

```sh
[neither](is-this.md)
```
""",
    "docs/page.md": """
## Two `words`

![drawing](drawing.svg)

## Two words
""",
    "docs/drawing.svg": "<svg/>",
}
PAGE = '<p id="here"><a href="#here">x</a><img src="a.svg"><script src="js/a.js?v=1"></script></p>'
SITE = {"index.html": PAGE, "a.svg": "<svg/>", "js/a.js": "", "s.css": "p {background: url(a.svg)}"}


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "lib")
    return importlib.import_module


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_tree_without_broken_links(program, tmp_path):
    assert list(program("check_links").tree_problems(write(tmp_path, TREE))) == []


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("docs/none.md", "there is no such file"),
        ("docs/page.md#three-words", "there is no anchor 'three-words' in page.md"),
        ("#nowhere", "there is no anchor 'nowhere' in README.md"),
        ("../outside.md", "leads out of"),
        ("/docs/page.md", "begins with '/'"),
        ("https://nohost/", "no host 'nohost'"),
        ("htp://example.org", "unknown scheme 'htp'"),
        ("mailto:nobody", "no mail address"),
    ],
)
def test_a_broken_link_is_named(program, tmp_path, link, problem):
    write(tmp_path, TREE | {"README.md": f"# Name\n\n[text]({link})\n"})
    (found,) = program("check_links").tree_problems(tmp_path)
    assert found.startswith(f"README.md: link {link}: ") and problem in found


def test_a_site_without_broken_links(program, tmp_path):
    assert list(program("check_links").site_problems(write(tmp_path, SITE))) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"index.html": '<a href="b.html">x</a>'}, "link b.html: there is no such file"),
        ({"index.html": '<a href="#a">x</a>'}, "link #a: there is no anchor 'a' in index.html"),
        ({"index.html": '<img src="b.svg">'}, "loads b.svg: there is no such file"),
        ({"index.html": '<script src="https://e.org/x.js"></script>'}, "from elsewhere"),
        ({"index.html": '<link rel="stylesheet" href="//e.org/x.css">'}, "from elsewhere"),
        ({"s.css": "@import 'https://e.org/x.css';"}, "s.css: loads https://e.org/x.css"),
        ({"s.css": "p {background: url('b.svg')}"}, "s.css: loads b.svg: there is no such file"),
    ],
)
def test_what_is_wrong_with_a_site_is_named(program, tmp_path, change, problem):
    (found,) = program("check_links").site_problems(write(tmp_path, SITE | change))
    assert problem in found


def test_a_site_without_pages(program, tmp_path):
    assert list(program("check_links").site_problems(tmp_path)) == [f"{tmp_path}: no pages"]


@pytest.mark.parametrize(
    ("key", "kind", "allowed"),
    [
        ("seed", "int", "whole number, at least 0"),
        ("model.d_model", "int", "whole number, from 1 to 65,536"),
        ("model.dropout", "float", "number, at least 0 and less than 1"),
        ("dataset.fraction", "float", "number, greater than 0 and at most 1"),
        ("training.learning_rate", "float", "number, greater than 0"),
        ("model.padding", "str", "`masked`, `paper`"),
        ("dataset.path", "str", "text"),
        ("transfer.set", "str", "text"),
        ("pretraining.sets", "list[str]", "list of texts, empty, or of several sets"),
    ],
)
def test_what_the_library_allows(program, key, kind, allowed):
    assert program("configuration_page").allowed(key, kind) == allowed


def test_the_page_has_every_setting(program):
    import dmamba
    from dmamba.configuration import flatten

    rows = [line for line in program("configuration_page").page() if line.startswith("| `")]
    assert len(rows) == len(flatten(dmamba.Config().to_dict()))
    assert all(row.count(" | ") == 3 and not row.endswith("|  |") for row in rows)
    mixers = next(row for row in rows if row.startswith("| `token_mixer` |"))
    assert "`mamba`" in mixers and "`attention`" in mixers
