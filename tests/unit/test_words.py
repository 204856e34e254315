"""Texts are written in plain technical English: a short list of words stays out of them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXTS = [
    *sorted((ROOT / "src").rglob("*.py")),
    *sorted((ROOT / "src").rglob("*.pyi")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md")),
]

# A word, and what says the same to a stranger. A program is not a person, so pronouns for persons
# are not for programs.
WORDS = {
    "whoever": "the caller, the reader, a client",
    "nobody|no one|anybody|somebody": "no caller, another client",
    "mend(s|ed|ing)?": "fix, repair",
    "anew": "again",
    "rides?|ride together": "is batched",
    "comes? out (as|of|with)": "is raised as, results in",
    "(lies?|lay) in": "is stored in, is in",
    "for want of": "for lack of",
    "is other": "differs, has changed",
    "takes? note": "record",
    "(had|have|has) better": "should",
    "passe[ds] by the check": "bypass",
}


@pytest.mark.parametrize("words", WORDS)
def test_a_word_of_the_list_is_in_no_text(words: str) -> None:
    pattern = re.compile(rf"\b({words})\b", re.IGNORECASE)

    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in TEXTS
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]

    assert not found, f"say: {WORDS[words]}\n" + "\n".join(found)


def test_the_list_finds_its_words() -> None:
    """Else it would keep nothing out."""
    assert all(
        re.search(rf"\b({words})\b", text, re.IGNORECASE)
        for words, text in {
            "nobody|no one|anybody|somebody": "Nobody knows",
            "mend(s|ed|ing)?": "it is mended",
            "(lies?|lay) in": "what lies in etcd",
        }.items()
    )
