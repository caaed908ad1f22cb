"""docs/kinds.md is what the sources would give today."""

from docs import kinds


def test_kinds_page_is_fresh():
    assert kinds.PAGE.read_text("utf-8") == kinds.page(), "docs/kinds.md is stale: run `python docs/kinds.py`"


def test_every_kind_has_a_line_and_says_what_it_is():
    lines = [line.split(" | ") for line in kinds.PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    files = [f for f in kinds.CONF.rglob("*.yaml") if f.stem[0] != "_" and f.parent != kinds.CONF]
    files = [f for f in files if f.relative_to(kinds.CONF).parts[0] != "hydra"]
    left_out = [
        f for f in files if str(f.parent.relative_to(kinds.CONF)) in kinds.LEFT_OUT[1:3] or f.parent.name == "size"
    ]
    assert len(lines) == len(files) - len(left_out)
    assert [line for line in lines if not line[1].strip()] == []


def test_sections_of_a_docstring():
    doc = """Summary.

    Args:
        a: first.

    Cost:
        ``2 a`` FLOPs;
        no cache.

    Source: Ye et al. 2024, "Differential Transformer", eq. 1, where it differs; shared experts: Dai & Li 2023, "MoE".
    """
    sections = kinds._parsed(kinds.inspect.cleandoc(doc))
    assert sections["Cost"] == "`2 a` FLOPs; no cache."
    assert kinds._papers(sections["Source"]) == [
        'Ye et al. 2024, "Differential Transformer"',
        'Dai & Li 2023, "MoE"',
    ]
