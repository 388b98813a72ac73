"""README.md says what configs/ and results/ hold."""

from scripts import readme


def test_the_generated_parts_of_the_readme_are_up_to_date():
    text = (readme.ROOT / "README.md").read_text()
    assert readme.render(text) == text, "run `python scripts/readme.py`"


def test_an_outdated_part_is_noticed():
    text = (readme.ROOT / "README.md").read_text()
    assert all(f"<!-- begin:{name} -->" in text for name in readme.SECTIONS)
    assert readme.render(text.replace("| `acgr_tatcs` |", "| `other` |")) == text
